//! Floor 3: drivers. Each observes a part of the machine and carries out what was decided; none decides.

pub mod address;
pub mod atomic;
pub mod command;
pub mod directory;
pub mod exports;
pub mod facts;
pub mod generation;
pub mod homes;
pub mod logs;
pub mod mail_lookup;
pub mod mount;
pub mod nft;
pub mod openers;
pub mod pressure;
pub mod queue;
pub mod rights;
pub mod service;
