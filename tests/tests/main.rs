//! The behaviour of Stepward as seen from outside, one to a file.
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

mod attacks;
mod bad_input;
mod capabilities;
mod documents;
mod drop_in;
mod drop_in_jamf;
mod fleet;
mod guard;
mod harness;
mod images;
mod management;
mod metrics;
mod never_lost;
mod outage;
mod packages;
mod real_certificates;
mod replicas;
mod rotation;
mod sdk;
mod secrets;
mod several;
mod starting;
mod stream;
mod tls;
