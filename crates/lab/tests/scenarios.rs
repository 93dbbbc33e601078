//! What the product promises, shown on real hosts: each scenario brings a topology up with the product's package in it, drives it from outside
//! as people and their customers do, and breaks things.
//!
//! `make scenario NAME=death` runs those whose name contains the word. A missing tool or image is a failure, never a skip.

mod scenarios {
    mod bad_config;
    mod crash_points;
    mod death;
    mod drift;
    mod even;
    mod hand_over;
    mod hostile;
    mod isolation;
    mod join_and_leave;
    mod live;
    mod logs;
    mod mail;
    mod masters_only;
    mod nfs;
    mod overload;
    mod php_versions;
    mod rules;
    mod session;
    mod share;
    mod without_panel;
}
