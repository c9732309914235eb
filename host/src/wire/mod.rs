//! The 0.20 wire, both ends of it.

pub mod message;
