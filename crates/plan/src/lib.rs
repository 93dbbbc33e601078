//! Floor 2: every choice, as a pure function of values.
//!
//! [`spec`] turns a fleet into what each node should be; [`render`] turns that into files; [`steps`] turns (desired, observed) into
//! ordered steps; [`session`] is the protocol between agents, masters and the panel as a state machine; [`balance`] chooses weights
//! from health and load; [`logs`] merges access logs; [`score`] makes one number of a node's pressure; [`account`] renders what one account runs.
//!
//! Deliberately absent: I/O, clocks and randomness. Time and random numbers are arguments.

pub mod account;
pub mod balance;
pub mod directive;
pub mod guard_config;
pub mod launcher_config;
pub mod logs;
pub mod mail;
pub mod proxy_config;
pub mod render;
pub mod report;
pub mod rights;
pub mod score;
pub mod session;
pub mod spec;
pub mod steps;
