//! Questions to device managements, their answers, and a client for each service.
//!
//! A service implements [`Inventory`], and its settings implement [`setup::Setup`]. Lifetimes, single flight, limits and outages
//! are its callers' matter; what both go by, how long a service may be silent and how many witnesses are asked, is in [`errand`].

pub mod addigy;
mod answer;
pub mod errand;
pub mod file;
pub mod fleet;
pub mod http;
pub mod http_json;
pub mod intune;
mod inventory;
pub mod jamf;
pub mod kandji;
mod leftovers;
mod lenient;
pub mod mosyle;
mod placeholders;
mod push;
mod service;
pub mod setup;
mod shown;
pub mod shrink;
pub mod strict;
pub mod token;

pub use answer::{Answer, AnswerKind, Blame, Source, Unavailable};
pub use inventory::{Change, Finding, Inventory, Listed, Listing, Logged, NotAnEvent, Question, State, Subject, Way};
pub use placeholders::Placeholders;
pub use push::{Proof, Push};
pub use service::Service;
