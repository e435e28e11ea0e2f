//! Fuzz targets: what Stepward does with bytes that others choose, and what must hold for any bytes.
//!
//! Each module is one target, whose `body` panics if something does not hold. `cargo fuzz` runs the targets under libFuzzer,
//! and `cargo test` runs them over the files in `corpus`.

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

mod line;
mod stand;

#[cfg(test)]
mod corpora;

/// The body of a target, which panics if something does not hold for these bytes.
pub type Body = fn(&[u8]);

/// All targets by name, which is also the name of a file in `fuzz_targets` and of a folder in `corpus`.
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

/// The program of one target: under `cargo fuzz` that of libFuzzer; otherwise it runs the files in its arguments.
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
