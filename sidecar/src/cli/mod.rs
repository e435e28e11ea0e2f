//! The command line.

pub mod envoy_config;
