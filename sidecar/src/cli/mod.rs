//! The command line.

pub mod envoy_config;
pub mod serve;
