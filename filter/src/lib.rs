//! The filter in Envoy: steps 1 to 4 of a webhook, the question to the sidecar, and step 10, the reply.
//!
//! [`exchange`] holds the rules and knows nothing of Envoy; [`host`] is the seam between both; `host::envoy` is the only
//! module that speaks Proxy-Wasm.

pub mod config;
pub mod exchange;
pub mod host;
pub mod keys;
pub mod metrics;
