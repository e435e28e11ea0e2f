//! The sidecar of Stepward: the service that knows the fleet, and the operator's command line.

/// Allocator jemalloc: the system's is slow where one thread frees what another one allocated, as threads do here all the time.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub mod admin;
pub mod authz;
mod calls;
pub mod cli;
pub mod config;
#[cfg(test)]
mod fixture;
pub mod folders;
mod misspelt;
pub mod pages;
pub mod push;
pub mod query;
pub mod runtime;
pub mod server;
pub mod telemetry;
mod users;
pub mod webhook;
