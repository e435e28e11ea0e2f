//! The harness of the end-to-end tests: real processes on free ports, killed when dropped, with their logs shown when a test fails.
//!
//! [`deployment`] puts the parts together as an operator would: Envoy with the filter, the sidecar, and, if a test asks for
//! it, a step-ca that signs for devices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stderr,
    clippy::large_futures,
    reason = "test code: a panic with its place is the report"
)]

pub mod client;
pub mod deployment;
pub mod device;
pub mod fake_sidecar;
pub mod load;
pub mod management;
pub mod metrics;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod step;
pub mod tools;
pub mod wait;
pub mod webhook;
pub mod world;
