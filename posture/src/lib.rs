//! The rules of Stepward, pure: no I/O, no clock, no async. It builds for wasm32 and natively, so that the filter in
//! Envoy and the sidecar judge by the same code.
//!
//! In the order in which a webhook meets them: [`shape`], [`caller`], [`credential`], [`verify`], [`webhook`],
//! [`identity`], [`outcome`], [`reply`]. What is known of a device is a [`record`]; with the feature `policy` there are the
//! operator's rules over it.

pub mod caller;
mod certificate;
pub mod credential;
pub mod identity;
pub mod outcome;
#[cfg(feature = "policy")]
pub mod policy;
pub mod record;
pub mod reply;
pub mod secret;
pub mod shape;
pub mod time;
pub mod verify;
pub mod webhook;
