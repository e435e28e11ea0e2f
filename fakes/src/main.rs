//! `stepward-fake-mdm`: a device management to try Stepward with, on this machine.
#![allow(clippy::print_stdout, reason = "what it prints is for the person who started it")]

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;
use fakes::{Device, Fake, Fault, Service};

/// One service: its word, which is its `type` in stepward.toml, and what Stepward needs to ask it.
struct Entry {
    name: &'static str,
    start: fn() -> Box<dyn Service>,
    /// Lines of `[provider.<name>]` behind `type`, where `{url}` is the address of the fake.
    lines: &'static str,
    /// How the secrets are set that the lines name.
    secrets: &'static str,
}

const SERVICES: &[Entry] = &[
    Entry {
        name: "jamf",
        start: || Box::new(fakes::jamf::Jamf::new()),
        lines: "base_url = \"{url}\"\nclient_id = \"client\"\nclient_secret = { env = \"JAMF_CLIENT_SECRET\" }",
        secrets: "JAMF_CLIENT_SECRET=secret",
    },
    Entry {
        name: "intune",
        start: || Box::new(fakes::intune::Intune::new()),
        lines: "tenant_id = \"6f1b2c3d-0000-4000-8000-00000000aaaa\"\nclient_id = \"6f1b2c3d-0000-4000-8000-00000000bbbb\"\n\
                client_secret = { env = \"INTUNE_CLIENT_SECRET\" }\nlogin_url = \"{url}\"\ngraph_url = \"{url}\"",
        secrets: "INTUNE_CLIENT_SECRET=secret",
    },
    Entry {
        name: "kandji",
        start: || Box::new(fakes::kandji::Kandji::default()),
        lines: "base_url = \"{url}\"\ntoken = { env = \"KANDJI_TOKEN\" }",
        secrets: "KANDJI_TOKEN=secret",
    },
    Entry {
        name: "addigy",
        start: || Box::new(fakes::addigy::Addigy::default()),
        lines: "base_url = \"{url}/api/v2\"\napi_key = { env = \"ADDIGY_API_KEY\" }",
        secrets: "ADDIGY_API_KEY=secret",
    },
    Entry {
        name: "mosyle",
        start: || Box::new(fakes::mosyle::Mosyle::new(fakes::mosyle::Product::Business)),
        lines: "base_url = \"{url}/v1\"\nproduct = \"business\"\naccess_token = { env = \"MOSYLE_ACCESS_TOKEN\" }\n\
                email = \"api@example.org\"\npassword = { env = \"MOSYLE_PASSWORD\" }",
        secrets: "MOSYLE_ACCESS_TOKEN=secret\nMOSYLE_PASSWORD=secret",
    },
    Entry {
        name: "fleet",
        start: || Box::new(fakes::fleet::Fleet::default()),
        lines: "base_url = \"{url}\"\ntoken = { env = \"FLEET_TOKEN\" }",
        secrets: "FLEET_TOKEN=secret",
    },
    Entry {
        name: "http",
        start: || Box::new(fakes::inventory::Inventory::Listed),
        lines: "base_url = \"{url}\"\npath = \"/devices?serial={identifier}\"\ntoken = { env = \"INVENTORY_TOKEN\" }\n\
                items = \"/devices\"\ntotal = \"/total\"\nidentifier = \"/serial\"\ndata = \"/custom\"\n\n\
                [provider.fake.fields]\nname = \"/name\"\nmanaged = \"/mdm/enrolled\"\nlost = \"/mdm/lost\"\n\
                compliance = \"/compliant\"\ngroups = \"/groups\"\nlast_seen = \"/seen\"\nuser.email = \"/owner/mail\"",
        secrets: "INVENTORY_TOKEN=secret",
    },
];

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
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(SERVICES.iter().map(|entry| entry.name)))]
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
    let Some(entry) = SERVICES.iter().find(|entry| entry.name == arguments.service) else { bail!("there is no such service") };
    let devices = match &arguments.devices {
        Some(path) => read(path)?,
        None => built_in(),
    };
    let fake = Fake::start_on(arguments.listen, (entry.start)()).await.with_context(|| format!("listen on {}", arguments.listen))?;
    let (count, serials) = (devices.len(), devices.iter().take(8).map(|device| device.serial.as_str()).collect::<Vec<_>>().join(", "));
    let more = if count > 8 { ", …" } else { "" };
    println!("{} with {count} devices ({serials}{more}) at {}", entry.name, fake.url());
    println!("\nFor stepward.toml, where a webhook has providers = [\"fake\"]:\n");
    println!("[provider.fake]\ntype = \"{}\"\n{}", entry.name, entry.lines.replace("{url}", &fake.url()));
    println!("\nand for the environment of `stepward serve`:\n\n{}", entry.secrets);
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
