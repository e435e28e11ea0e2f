//! The decision: whom to ask about a device, what is remembered of the answers, what the rules say, and what is recorded.
//!
//! [`decide::decide`] judges a device by a [`plan::Plan`]; [`evaluate`] judges a webhook. Only [`gate`] makes an allow.

pub mod cache;
pub mod captured;
pub mod checks;
pub mod decide;
pub mod digest;
mod engine;
pub mod evaluate;
pub mod fleet;
pub mod follow;
pub mod gate;
pub mod locks;
pub mod metrics;
pub mod peers;
pub mod plan;
pub mod provider;
pub mod record;
pub mod replay;
pub mod samples;
pub mod snapshot;
pub mod webhooks;

pub use crate::engine::Engine;
