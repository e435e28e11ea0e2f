//! `stepward-fake-mdm`: runs the stand-in for a device management on this machine, to try Stepward with it.
#![allow(clippy::print_stdout, reason = "what it prints is for the person who started it")]

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;
use fakes::services::SERVICES;
use fakes::{Device, Fake, Fault};

const EXAMPLES: &str = "\
Examples:
  stepward-fake-mdm jamf
  stepward-fake-mdm jamf --devices devices.json --listen 127.0.0.1:9600
  stepward-fake-mdm intune --fault status:503
  stepward-fake-mdm jamf --fault slow:2s

A file of devices:
  [
    {\"serial\": \"C02XL0GYJGH5\", \"groups\": [\"Compliant\"], \"user\": {\"id\": \"ada\"}},
    {\"serial\": \"F2LXK0AAAAAA\", \"mobile\": true, \"managed\": false}
  ]

Faults:
  status:500  rate-limited  rate-limited:5  hang  slow:2s  drip  reset  cut  cut-chunked  html  huge:50000000
  wrong-device  filter-ignored  redirect:https://example.org/  gzip  bom  plain-text";

/// A stand-in for a device management, with devices of your own, that fails as you say.
///
/// It is for tests and demonstrations: its credentials are printed, and whoever reaches it may use them.
#[derive(Parser)]
#[command(name = "stepward-fake-mdm", version, after_help = EXAMPLES)]
struct Arguments {
    /// Which one.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(SERVICES.iter().map(|stand_in| stand_in.word)))]
    service: String,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:9600")]
    listen: SocketAddr,
    /// JSON file of devices, `-` for standard input; without it there are a few.
    #[arg(long)]
    devices: Option<PathBuf>,
    /// What happens to every request but logins.
    #[arg(long)]
    fault: Option<Fault>,
    /// What happens to every login.
    #[arg(long)]
    login_fault: Option<Fault>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Some(stand_in) = SERVICES.iter().find(|stand_in| stand_in.word == arguments.service) else { bail!("there is no such service") };
    let devices = match &arguments.devices {
        Some(path) => read(path)?,
        None => built_in(),
    };
    let fake = Fake::start_on(arguments.listen, (stand_in.start)()).await.with_context(|| format!("listen on {}", arguments.listen))?;
    let (count, serials) = (devices.len(), devices.iter().take(8).map(|device| device.serial.as_str()).collect::<Vec<_>>().join(", "));
    let more = if count > 8 { ", …" } else { "" };
    println!("{} with {count} devices ({serials}{more}) at {}", stand_in.word, fake.url());
    println!("\nFor stepward.toml, where a webhook has providers = [\"fake\"]:\n");
    println!("[provider.fake]\ntype = \"{}\"\n{}", stand_in.word, stand_in.lines.replace("{url}", &fake.url()));
    println!("\nand for the environment of `stepward serve`:\n\n{}", stand_in.secrets);
    fake.set(devices);
    fake.fail(arguments.fault);
    fake.fail_logins(arguments.login_fault);
    std::future::pending().await
}

fn read(path: &Path) -> anyhow::Result<Vec<Device>> {
    let from = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let devices = text.map_err(anyhow::Error::from).and_then(|text| Device::list(&text).map_err(anyhow::Error::msg));
    devices.with_context(|| format!("read devices from {from}"))
}

fn built_in() -> Vec<Device> {
    vec![
        Device::computer("C02XL0GYJGH5").in_groups(&["All Managed", "Compliant"]),
        Device { compliant: Some(false), ..Device::computer("C02NONCOMPL1") },
        Device { managed: false, user: None, ..Device::computer("C02UNMANAGED") },
        Device::phone("F2LXK0AAAAAA").in_groups(&["All Managed", "Compliant"]),
        Device { lost: true, ..Device::phone("F2LLOSTAAAAA") },
    ]
}
