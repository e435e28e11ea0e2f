//! Reading of a TOML file into types: every value knows its place, and all mistakes are reported together.
//!
//! This crate knows no keys: the caller that reads a key knows its meaning and default. What messages say of other keys comes
//! from [`Hints`].

pub mod document;
pub mod dotenv;
mod environment;
pub mod files;
mod fingerprint;
mod mistakes;
mod secret;
mod section;
pub mod words;

pub use environment::Environment;
pub use fingerprint::Fingerprint;
pub use mistakes::{Hints, Mistake, Mistakes, Place, Report};
pub use secret::SecretSource;
pub use section::{Section, duration};
