//! The sidecar of Stepward: the service that knows the fleet, and the operator's command line.

use mimalloc::MiMalloc;

/// What one thread puts together another one frees, over and over; the system's allocator takes twice as long for that.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

pub mod admin;
pub mod authz;
pub mod cache;
pub mod captured;
pub mod cli;
pub mod config;
pub mod decide;
pub mod evaluate;
pub mod locks;
pub mod metrics;
pub mod provider;
pub mod push;
pub mod query;
pub mod replay;
pub mod runtime;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod webhook;
