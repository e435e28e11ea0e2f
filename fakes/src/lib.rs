//! Stand-ins for device managements. Each reproduces one service from its published description, including its quirks, and
//! can be told to fail, request by request. This crate knows nothing of Stepward's clients.
//!
//! A fake keeps [`Device`]s, counts and records its requests ([`Seen`]), and misbehaves as a [`Fault`] says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::needless_pass_by_value,
    reason = "test code: a panic with its place is the report"
)]

pub mod addigy;
pub mod device;
pub mod fault;
pub mod fleet;
pub mod intune;
pub mod inventory;
pub mod jamf;
pub mod kandji;
pub mod mosyle;
pub mod server;
pub mod services;

pub use device::{Device, User};
pub use fault::{Fault, RetryAfter};
pub use server::{Fake, Seen, Service};
