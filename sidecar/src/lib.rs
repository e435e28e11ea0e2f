//! The sidecar of Stepward: the service that knows the fleet, and the operator's command line.

pub mod cli;
pub mod config;
pub mod provider;
