//! `stepward init --step-ca`: a starting folder that fits a CA that runs.

mod ca;
mod fit;

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use reqwest::Url;
use settings::Environment;

use super::args::InitArgs;
use super::folder::{WASM, exists, found, program, wasm, write};
use crate::cli::exit::Exit;
use crate::cli::pasted::shell_word;
use ca::{Ca, ask};
use fit::Fit;

/// Asks the CA that is named, makes the folder, and says what is next.
///
/// # Errors
/// Where a file is there already or cannot be written, the CA cannot be asked, is another one, or cannot have webhooks.
pub async fn run_for_step_ca(args: &InitArgs, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
    let url = args.step_ca.as_ref().context("--step-ca is missing")?;
    ensure!(url.scheme() == "https" && url.host().is_some(), "--step-ca: `{url}` must begin with https://");
    let hook = match &args.url {
        Some(url) => url.clone(),
        None if is_local(url) => Url::parse("https://localhost:9443/webhook/device")?,
        None => bail!("where will step-ca reach Envoy? Name it by --url, as in --url https://stepward.example.org:9443/webhook/device"),
    };
    ensure!(
        hook.scheme() == "https" && hook.path().starts_with("/webhook/") && hook.host().is_some(),
        "--url: `{hook}` must begin with https:// and have a path below /webhook/, as in https://stepward.example.org:9443/webhook/device"
    );
    let wasm = wasm(args, environment);
    exists(&FILES.map(|name| args.dir.join(name)))?;
    let ca = ask(url, args, environment).await?;
    let fit = Fit::choose(args.provisioner.as_deref(), &ca.provisioners)?;
    let address = format!("{}:{}", if is_local(&hook) { "127.0.0.1" } else { "0.0.0.0" }, hook.port_or_known_default().unwrap_or(443));
    let configuration = format!(
        "[listen]\nsockets = \"run\"\nadmin = \"127.0.0.1:9464\"\n\n\
         [envoy]\nwebhook_address = \"{address}\"\ncertificate = \"tls/server.crt\"\nprivate_key = \"tls/server.key\"\nclient_ca = \"tls/ca.crt\"\n{wasm}\n\n\
         # `{webhook}` of the provisioner `{provisioner}`\n\
         [[webhook]]\nid = \"{ID}\"\nsecrets = [{{ file = \"secrets/webhook\" }}]\ncallers = [{caller}]\n{identity}providers = [\"staff\"]\n\n\
         [provider.staff]\ntype = \"file\"\npath = \"devices.csv\"\n{identifier}",
        wasm = found(wasm.as_deref())?,
        webhook = fit.webhook,
        provisioner = fit.name,
        caller = toml::Value::from(ca.caller.to_string()),
        identity = fit.identity,
        identifier = fit.identifier,
    );
    let content = [configuration, "Identifier,owner\n".to_owned(), ca.authorities.clone(), ca.root.clone()];
    for (name, content) in FILES.iter().zip(&content) {
        write(&args.dir.join(name), content, 0o644)?;
    }
    out.write_all(next(args, environment, &ca, &fit, &hook, wasm.is_some()).as_bytes())?;
    Ok(Exit::Done)
}

/// Returns the steps that are left, for whoever may administer the CA.
fn next(args: &InitArgs, environment: &Environment, ca: &Ca, fit: &Fit, hook: &Url, has_filter: bool) -> String {
    let stepward = shell_word(&program(environment).display().to_string());
    let folder = |path: &Path| shell_word(&path.display().to_string());
    let (dir, here) = (folder(&args.dir), args.dir.display());
    let of_ca = format!("--ca-url {} --root tls/root.crt", shell_word(ca.url.as_str().trim_end_matches('/')));
    let (name, webhook) = (shell_word(&fit.name), shell_word(&fit.webhook));
    let host = shell_word(hook.host_str().unwrap_or_default());
    let mut text = format!("Made {here}: stepward.toml, devices.csv, tls/ca.crt, tls/root.crt.\n");
    // Writing to a text does not fail.
    let _ = writeln!(text, "The CA calls as {}: let no provisioner give that name to anybody else.", ca.caller);
    if !has_filter {
        let _ = writeln!(text, "{WASM} was not found: name it under [envoy] in stepward.toml first.");
    }
    for note in &fit.notes {
        let _ = writeln!(text, "{note}");
    }
    text += "\nNext, as an administrator of the CA:\n";
    let _ = writeln!(text, "  cd {dir}");
    for command in &fit.commands {
        let _ = writeln!(text, "  {command} {of_ca}");
    }
    let _ = write!(
        text,
        "  (umask 077; mkdir -p secrets; step ca provisioner webhook add {name} {webhook} --url {url} {of_ca} > secrets/printed)\n\
         \x20 (umask 077; sed -n 's/^Secret: //p' secrets/printed > secrets/webhook)\n\
         \x20 sed -i \"s/{ID}/$(sed -n 's/^Webhook ID: \\([0-9a-f-]\\{{36\\}}\\)$/\\1/p' secrets/printed)/\" stepward.toml && rm secrets/printed\n\
         \x20 step ca certificate {host} tls/server.crt tls/server.key {of_ca}\n\
         \x20 {stepward} check-config --config stepward.toml\n\
         \n\
         Then list your devices in devices.csv, and start each of these in a terminal of its own, there:\n\
         \x20 {stepward} serve --config stepward.toml\n\
         \x20 {stepward} envoy-config --config stepward.toml --output envoy.yaml && envoy -c envoy.yaml\n\
         \n\
         {stepward} doctor --config stepward.toml says what is missing.\n",
        url = shell_word(hook.as_str()),
    );
    text
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Files that are made.
const FILES: [&str; 4] = ["stepward.toml", "devices.csv", "tls/ca.crt", "tls/root.crt"];

/// Placeholder for the id until step-ca has given one.
const ID: &str = "WEBHOOK_ID";

#[cfg(test)]
mod tests {
    use posture::caller::Name;

    use super::*;

    #[test]
    fn e14_an_id_that_is_none_becomes_no_part_of_a_command() {
        let folder = tempfile::tempdir().unwrap();
        let (url, hook) = ("https://ca.example.org".parse::<Url>().unwrap(), "https://localhost:9443/webhook/device".parse().unwrap());
        let caller = Name::Dns("ca.example.org".to_owned());
        let ca = Ca { caller, url, root: String::new(), authorities: String::new(), provisioners: Vec::new() };
        let args = InitArgs::new(folder.path().to_owned());
        let text = next(&args, &Environment::new(folder.path()), &ca, &Fit::default(), &hook, true);
        let line = text.lines().find(|line| line.contains("sed -i")).unwrap();
        let good = "0a1b2c3d-0000-4000-8000-000000000000";
        for (id, expected) in [(good, good), ("x/;1e touch pwned; echo '#", ""), ("$(touch pwned)", "")] {
            std::fs::create_dir_all(folder.path().join("secrets")).unwrap();
            std::fs::write(folder.path().join("secrets/printed"), format!("Webhook ID: {id}\nWebhook Secret: x\n")).unwrap();
            std::fs::write(folder.path().join("stepward.toml"), format!("id = \"{ID}\"\n")).unwrap();
            let done = std::process::Command::new("sh").args(["-c", line]).current_dir(folder.path()).status().unwrap();
            assert!(done.success() && !folder.path().join("pwned").exists(), "{id}");
            assert_eq!(std::fs::read_to_string(folder.path().join("stepward.toml")).unwrap(), format!("id = \"{expected}\"\n"));
        }
    }
}
