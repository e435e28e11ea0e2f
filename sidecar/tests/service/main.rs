//! Tests of the service as its users see it: the built binary, its sockets, its pages, its signals and what it prints.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "test code: a panic with its place is the report"
)]

mod attach;
mod cache;
mod clients;
mod costs;
mod doctor;
mod files;
mod keys;
mod life;
mod locks;
mod notifications;
mod operator;
mod queries;
mod reload;
mod replays;
mod secrecy;
mod send;
mod served;
mod sockets;
mod store;
mod tcp;
