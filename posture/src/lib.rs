//! The rules of Stepward, pure: no I/O, no clock, no async. The crate builds for wasm32 and natively, so that the filter in
//! Envoy and the sidecar judge by the same code.
//!
//! Modules in the order in which a webhook meets them: [`shape`], [`caller`], [`credential`], [`verify`], [`webhook`],
//! [`identity`], [`outcome`], [`reply`]. A [`notification`] is what step-ca reports afterwards, and a [`record`] is what is
//! known of a device. The feature `policy` adds [`policy`], the operator's rules over a record, and [`shown`], which makes
//! text from elsewhere safe to display.

pub mod caller;
mod certificate;
pub mod credential;
pub mod identity;
pub mod key;
pub mod notification;
pub mod outcome;
#[cfg(feature = "policy")]
pub mod policy;
pub mod record;
pub mod reply;
pub mod secret;
pub mod shape;
#[cfg(feature = "policy")]
pub mod shown;
pub mod time;
pub mod verify;
pub mod webhook;
