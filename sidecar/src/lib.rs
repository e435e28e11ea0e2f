//! The sidecar of Stepward: the service that knows the fleet, and the operator's command line.

/// What one thread puts together another one frees, over and over, which the system's allocator does slowly.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub mod admin;
pub mod authz;
pub mod cache;
pub mod captured;
pub mod cli;
pub mod clock;
pub mod config;
pub mod decide;
pub mod evaluate;
pub mod files;
pub mod folders;
pub mod gate;
pub mod locks;
pub mod metrics;
pub mod placeholders;
pub mod provider;
pub mod push;
pub mod query;
pub mod replay;
pub mod runtime;
pub mod server;
pub mod shown;
pub mod store;
pub mod telemetry;
pub mod webhook;
