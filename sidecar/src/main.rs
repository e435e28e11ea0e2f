//! The binary `stepward`.

use std::process::ExitCode;

use clap::Parser as _;
use sidecar::cli::Cli;
use sidecar::config::Environment;

fn main() -> ExitCode {
    // The only TLS provider there is; a second installation cannot happen, so its error means nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Cli::parse().run(&Environment::current())
}
