//! The binary `stepward`.

use std::process::ExitCode;

use clap::Parser as _;
use settings::Environment;
use sidecar::cli::Cli;

fn main() -> ExitCode {
    // No other TLS provider is installed, so the error of a second installation cannot come.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Cli::parse().run(&Environment::current())
}
