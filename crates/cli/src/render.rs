//! From the panel's JSON to text for a person: pure functions, so that every picture is a snapshot in a test.

pub mod detail;
pub mod event;
pub mod status;
pub mod style;
pub mod table;
pub mod text;
pub mod zone;
