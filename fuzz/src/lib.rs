//! What Stepward does with bytes that others choose, and what must hold whatever they are.
//!
//! Each module is one target: its `body` panics where something does not hold. `cargo fuzz` runs them under libFuzzer, and
//! `cargo test` runs them over the files that are kept in `corpus`.

pub mod answers;
pub mod authority;
pub mod callers;
pub mod certificate;
pub mod configuration;
pub mod devices_csv;
pub mod devices_json;
pub mod exchange;
pub mod headers;
pub mod managements;
pub mod policy;
pub mod push;
pub mod questions;
pub mod settings;
pub mod variables;
pub mod webhook;

mod stand;

#[cfg(test)]
mod corpora;

/// Panics where something does not hold for these bytes.
pub type Body = fn(&[u8]);

/// Every target by its name, which is that of its file in `fuzz_targets` and of its folder in `corpus`.
pub const TARGETS: &[(&str, Body)] = &[
    ("answers", answers::body),
    ("authority", authority::body),
    ("callers", callers::body),
    ("certificate", certificate::body),
    ("configuration", configuration::body),
    ("devices_csv", devices_csv::body),
    ("devices_json", devices_json::body),
    ("exchange", exchange::body),
    ("headers", headers::body),
    ("managements", managements::body),
    ("policy", policy::body),
    ("push", push::body),
    ("questions", questions::body),
    ("settings", settings::body),
    ("variables", variables::body),
    ("webhook", webhook::body),
];

/// The program of one target: libFuzzer's under `cargo fuzz`; otherwise it runs the files that it is given.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name::body(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            std::env::args_os().skip(1).try_for_each(|file| std::fs::read(file).map(|data| $crate::$name::body(&data)))
        }
    };
}
