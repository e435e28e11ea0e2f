//! `stepward init --step-ca`: a starting folder that fits a CA that runs.
//!
//! Nothing is believed of the CA before its root is known: either the root is a file, or its SHA-256 is given and the CA is asked
//! for the certificate that has it, as `step ca bootstrap` does. What it says of itself comes over a connection that the root proves.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use posture::caller::{Callers, Name, Peer};
use reqwest::{Certificate, Client, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::super::{Exit, may_be_printed, shell_word, webhook};
use super::{InitArgs, WASM, exists, found, program, write};
use crate::config::Environment;
use crate::evaluate::{bytes_of, hexadecimal};
use crate::files;

/// SHA-256 of a root certificate, as `step certificate fingerprint` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl std::str::FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = bytes_of(&text.replace(':', "")).map(Self);
        whole.ok_or_else(|| {
            "is no SHA-256: write the 64 hexadecimal digits that `step certificate fingerprint root_ca.crt` prints".to_owned()
        })
    }
}

impl Fingerprint {
    fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hexadecimal(&self.0))
    }
}

/// A CA, as far as it was asked.
#[derive(Debug)]
struct Ca {
    url: Url,
    /// The root that proved the rest, PEM.
    root: String,
    /// What its client certificate comes from: roots and intermediates, PEM.
    authorities: String,
    /// A name of its client certificate.
    caller: Name,
    provisioners: Vec<Provisioner>,
}

/// A provisioner, as far as it is needed, in the JSON of step-ca.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provisioner {
    #[serde(rename = "type")]
    of_type: String,
    name: String,
    #[serde(default)]
    claims: Claims,
    #[serde(default)]
    challenges: Vec<String>,
    #[serde(default)]
    attestation_formats: Vec<String>,
    #[serde(default)]
    options: Options,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claims {
    #[serde(default)]
    disable_renewal: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Options {
    #[serde(default)]
    webhooks: Vec<Hook>,
}

#[derive(Clone, Debug, Deserialize)]
struct Hook {
    name: String,
}

#[derive(Deserialize)]
struct Root {
    ca: String,
}

#[derive(Deserialize)]
struct Certificates {
    crts: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    provisioners: Vec<Provisioner>,
    #[serde(default)]
    next_cursor: String,
}

/// Asks the CA, makes the folder, and says what is next.
///
/// # Errors
/// Where a file is there already or cannot be written, the CA cannot be asked, is another one, or cannot have webhooks.
pub(in crate::cli) async fn run(args: &InitArgs, environment: &Environment, out: &mut impl Write) -> anyhow::Result<Exit> {
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
    let wasm = super::wasm(args, environment);
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

/// What there is to do, for whoever may administer the CA.
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
         \x20 sed -i \"s/{ID}/$(sed -n 's/^Webhook ID: //p' secrets/printed)/\" stepward.toml && rm secrets/printed\n\
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

/// A provisioner, and how a webhook of it identifies a device.
#[derive(Debug, Default)]
struct Fit {
    name: String,
    webhook: String,
    /// Lines of `[[webhook]]`.
    identity: String,
    /// A line of the provider.
    identifier: String,
    /// What has to be done to the provisioner first.
    commands: Vec<String>,
    notes: Vec<String>,
}

impl Fit {
    fn choose(named: Option<&str>, all: &[Provisioner]) -> anyhow::Result<Self> {
        let listed = || all.iter().map(|one| format!("`{}` ({})", one.name, one.of_type)).collect::<Vec<_>>().join(", ");
        let attesting: Vec<&Provisioner> = all.iter().filter(|one| one.attests()).collect();
        match (named, attesting.as_slice()) {
            (Some(name), _) => match all.iter().find(|one| one.name == name) {
                Some(one) => Self::of(one),
                None => bail!(
                    "the CA has no provisioner `{name}`; it has {}: name one of them, or add it by `step ca provisioner add`",
                    listed()
                ),
            },
            (None, [one]) => Self::of(one),
            (None, []) => Ok(Self {
                name: "devices".to_owned(),
                webhook: WEBHOOK.to_owned(),
                commands: vec![
                    "step ca provisioner add devices --type ACME --challenge device-attest-01 --attestation-format apple --disable-renewal"
                        .to_owned(),
                ],
                ..Self::default()
            }),
            (None, _) => bail!("several provisioners of the CA attest devices: name one by --provisioner; it has {}", listed()),
        }
    }

    fn of(provisioner: &Provisioner) -> anyhow::Result<Self> {
        let name = &provisioner.name;
        may_be_printed(name)?;
        let taken = |name: &str| provisioner.options.webhooks.iter().any(|hook| hook.name == name);
        let webhook = if taken(WEBHOOK) { webhook::next_name(WEBHOOK, taken) } else { WEBHOOK.to_owned() };
        let mut fit = Self { name: name.clone(), webhook, ..Self::default() };
        let hostname = "identifier = \"hostname\"\n";
        let mut named = |identity: &str, field: &str| {
            fit.identity = format!("identity = \"{identity}\"\nidentity_field = \"{field}\"\n{hostname}");
            fit.identifier = hostname.to_owned();
        };
        match provisioner.of_type.as_str() {
            "ACME" if provisioner.attests() => fit.attest(provisioner)?,
            "ACME" => named("claimed", "san.dns"),
            "JWK" | "OIDC" => named("claimed", "subject.cn"),
            "X5C" => named("certificate", "subject.cn"),
            "AWS" | "GCP" | "Azure" => fit.identity = "identity = \"principal\"\n".to_owned(),
            other => bail!(
                "provisioner `{name}` is of the type {other}, which Stepward has no way to identify devices by: name one of ACME, JWK, OIDC, X5C, AWS, GCP or Azure by --provisioner"
            ),
        }
        if !provisioner.claims.disable_renewal {
            fit.commands.push(format!("step ca provisioner update {} --disable-renewal", shell_word(name)));
            fit.notes.push(format!("step-ca asks no webhook when it renews, so renewals of `{name}` are switched off below."));
        }
        Ok(fit)
    }

    fn attest(&mut self, provisioner: &Provisioner) -> anyhow::Result<()> {
        let formats = &provisioner.attestation_formats;
        // Without a list step-ca takes all that it knows.
        let takes = |format: &str| formats.is_empty() || formats.iter().any(|one| one == format);
        let (format, kind) = [("apple", "serial"), ("step", "yubico"), ("tpm", "tpm")]
            .into_iter()
            .find(|(format, _)| takes(format))
            .with_context(|| format!("provisioner `{}` takes the attestation formats {}, none of which Stepward knows an identifier of: add apple, step or tpm", provisioner.name, formats.join(", ")))?;
        if format != "apple" {
            self.identity = format!("attestation = [\"{format}\"]\nidentifier = \"{kind}\"\n");
            self.identifier = format!("identifier = \"{kind}\"\n");
        }
        if format == "tpm" {
            self.identity += "# Only where the roots stamp an identifier into every attestation key's certificate: see docs/configuration.md.\n# tpm_roots_stamp_identifier = true\n";
            self.notes.push(
                "With attestation by TPM, see `tpm_roots_stamp_identifier` in stepward.toml: without it check-config refuses the webhook."
                    .to_owned(),
            );
        }
        if formats.len() != 1 {
            self.notes.push(format!(
                "`{}` takes other attestation formats as well; devices that attest by another one than `{format}` are denied.",
                provisioner.name
            ));
        }
        Ok(())
    }
}

impl Provisioner {
    fn attests(&self) -> bool {
        self.of_type == "ACME" && self.challenges.iter().any(|challenge| challenge == "device-attest-01")
    }
}

/// Asks the CA for all that is needed of it.
async fn ask(url: &Url, args: &InitArgs, environment: &Environment) -> anyhow::Result<Ca> {
    let root = match &args.root {
        Some(file) => {
            let path = environment.directory.join(file);
            let text = files::text(&path, files::CERTIFICATES).with_context(|| format!("read {}", file.display()))?;
            let (root, is) = only(&text).with_context(|| format!("read {}", file.display()))?;
            if let Some(wanted) = args.fingerprint.filter(|wanted| *wanted != is) {
                bail!("{} has the fingerprint {is}, and --fingerprint is {wanted}: one of them is of another CA", file.display());
            }
            root
        }
        None => match args.fingerprint {
            Some(fingerprint) => bootstrap(url, fingerprint).await?,
            None => bail!(
                "what is the CA's root? Name it by --root FILE, or by --fingerprint with what `step certificate fingerprint root_ca.crt` prints"
            ),
        },
    };
    let client = builder().tls_certs_only([Certificate::from_pem(root.as_bytes())?]).tls_info(true).build().context("set up TLS")?;
    let (health, peer) = get(&client, &url.join("/health")?).await?;
    ensure!(health.0 == 200, "{url} answers {} to /health: is it a step-ca that runs?", health.0);
    let peer = peer.context("the certificate of the CA was not seen")?;
    let peer = Peer::from_der(&peer).context("read the certificate of the CA")?;
    let (status, _) = get(&client, &url.join("/admin/admins")?).await?.0;
    ensure!(
        status != 404,
        "{url} has no remote management, without which step-ca gives webhooks no secret: set `\"enableAdmin\": true` in the `authority` of its ca.json, and start it again"
    );
    let roots: Certificates = json(&client, &url.join("/roots")?).await?;
    // Releases before 0.25 do not have it, and send the intermediate with their certificate.
    let intermediates: Option<Certificates> = json(&client, &url.join("/intermediates")?).await.ok();
    let mut authorities: Vec<&str> = vec![root.trim()];
    for one in roots.crts.iter().chain(intermediates.iter().flat_map(|more| &more.crts)).map(|one| one.trim()) {
        if !authorities.contains(&one) {
            authorities.push(one);
        }
    }
    let authorities = authorities.join("\n") + "\n";
    let (mut provisioners, mut cursor) = (Vec::new(), String::new());
    for _ in 0..PAGES {
        let mut page = url.join("/provisioners?limit=100")?;
        if !cursor.is_empty() {
            page.query_pairs_mut().append_pair("cursor", &cursor);
        }
        let page: Page = json(&client, &page).await?;
        provisioners.extend(page.provisioners);
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    Ok(Ca { caller: caller(url, &peer)?, url: url.clone(), root, authorities, provisioners })
}

/// The certificate with this fingerprint, of whoever answers there: the fingerprint is all the proof that there is, and all that is
/// needed.
async fn bootstrap(url: &Url, fingerprint: Fingerprint) -> anyhow::Result<String> {
    let client = builder().tls_danger_accept_invalid_certs(true).build().context("set up TLS")?;
    let ((status, body), _) = get(&client, &url.join(&format!("/{ROOT}/{fingerprint}"))?).await?;
    ensure!(
        status == 200,
        "the CA at {url} has no root with the fingerprint {fingerprint} (it answers {status}): `step certificate fingerprint root_ca.crt` prints the right one"
    );
    let answer: Root = serde_json::from_slice(&body).with_context(|| format!("{url} is no step-ca: its root cannot be read"))?;
    let (root, is) = only(&answer.ca)?;
    ensure!(
        is == fingerprint,
        "{url} gave a certificate with the fingerprint {is} for {fingerprint}: somebody stands between, or it is no step-ca"
    );
    Ok(root)
}

/// The one certificate of a PEM text, as PEM, and its fingerprint.
fn only(text: &str) -> anyhow::Result<(String, Fingerprint)> {
    let mut all = CertificateDer::pem_slice_iter(text.as_bytes());
    let (Some(Ok(der)), None) = (all.next(), all.next()) else { bail!("there has to be one certificate in PEM, the root") };
    Ok((text.trim().to_owned() + "\n", Fingerprint::of(&der)))
}

/// The name that step-ca calls webhooks by: its client certificate is the one that it serves with. That of its address if it is no
/// name of every machine, else the first.
fn caller(url: &Url, peer: &Peer) -> anyhow::Result<Name> {
    let names: Vec<&Name> = peer.names().iter().filter(|name| matches!(name, Name::Dns(_) | Name::Ip(_) | Name::Uri(_))).collect();
    let everywhere = |name: &Name| match name {
        Name::Dns(name) => name == "localhost",
        Name::Ip(address) => address.is_loopback(),
        _ => false,
    };
    let host = url.host_str().map(|host| host.trim_matches(['[', ']']).to_ascii_lowercase()).unwrap_or_default();
    let is_host = |name: &Name| match name {
        Name::Dns(name) => *name == host,
        Name::Ip(address) => address.to_string() == host,
        _ => false,
    };
    let mut sorted = names;
    sorted.sort_by_key(|name| (everywhere(name), !is_host(name), !matches!(name, Name::Dns(_))));
    let name = sorted.first().map(|name| (*name).clone());
    let name = name.context("the CA's certificate has no name that callers can be told by: give it one by `dnsNames` in its ca.json")?;
    ensure!(
        Callers::Named(vec![name.clone()]).let_in(Some(peer)),
        "the CA's certificate is not for clients, and Envoy lets in no other: see `tls` in its ca.json"
    );
    Ok(name)
}

fn builder() -> reqwest::ClientBuilder {
    Client::builder().timeout(Duration::from_secs(10)).redirect(reqwest::redirect::Policy::none()).no_proxy()
}

async fn json<T: DeserializeOwned>(client: &Client, url: &Url) -> anyhow::Result<T> {
    let ((status, body), _) = get(client, url).await?;
    // Roots and intermediates come with 201.
    ensure!((200..300).contains(&status), "{url} answers {status}: is it a step-ca of release 0.30 or newer?");
    serde_json::from_slice(&body).with_context(|| format!("{url} does not answer as step-ca does"))
}

/// Status and body, and the certificate of who answered.
type Answer = ((u16, Vec<u8>), Option<Vec<u8>>);

async fn get(client: &Client, url: &Url) -> anyhow::Result<Answer> {
    let mut response = client.get(url.clone()).send().await.map_err(|error| explain(&error, url))?;
    let peer = response.extensions().get::<reqwest::tls::TlsInfo>().and_then(|info| info.peer_certificate()).map(<[u8]>::to_vec);
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(|error| explain(&error, url))? {
        body.extend_from_slice(&part);
        ensure!(body.len() <= LARGEST, "{url} answers with more than {LARGEST} bytes: it is no step-ca");
    }
    Ok(((response.status().as_u16(), body), peer))
}

/// What to look at where there is no answer.
fn explain(error: &reqwest::Error, url: &Url) -> anyhow::Error {
    let causes = webhook::causes(error);
    let why = causes.last().map(ToString::to_string).unwrap_or_default();
    match causes.iter().find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer | rustls::CertificateError::BadSignature)) => {
            anyhow::anyhow!("the certificate of {url} does not come from that root: it is another CA's, or somebody stands between")
        }
        Some(rustls::Error::InvalidCertificate(wrong)) => {
            anyhow::anyhow!(
                "the certificate of {url} is not good for that address ({wrong}): use a name of the CA's `dnsNames`, and see the clocks"
            )
        }
        _ => anyhow::anyhow!("{url} cannot be asked ({why}): is the CA running, and is this its address?"),
    }
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The files that are made.
const FILES: [&str; 4] = ["stepward.toml", "devices.csv", "tls/ca.crt", "tls/root.crt"];

/// What stands for the id until step-ca has given one.
const ID: &str = "WEBHOOK_ID";

/// The webhook's name, by which templates read its data.
const WEBHOOK: &str = "posture";

/// Pages of provisioners, of a hundred each, that are read.
const PAGES: usize = 100;

/// Where step-ca hands out the root of a fingerprint.
const ROOT: &str = "root";

/// Bytes of an answer.
const LARGEST: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn provisioners(json: serde_json::Value) -> Vec<Provisioner> {
        serde_json::from_value(json).unwrap()
    }

    fn listed() -> Vec<Provisioner> {
        provisioners(serde_json::json!([
            { "type": "JWK", "name": "laptops", "claims": { "disableRenewal": true }, "options": { "webhooks": [{ "name": "posture" }] } },
            { "type": "ACME", "name": "web" },
            { "type": "ACME", "name": "phones", "challenges": ["device-attest-01"], "attestationFormats": ["apple"] },
            { "type": "X5C", "name": "x5c", "claims": {} },
            { "type": "SSHPOP", "name": "sshpop" },
        ]))
    }

    #[test]
    fn e14_a_fingerprint_is_64_digits_in_either_case_with_colons_or_without() {
        let digits = "7070b2d9bbaee7f8d3fba79511e56c0ad95c5ad0cea60bf5debdc62ff06521c0";
        let wanted: Fingerprint = digits.parse().unwrap();
        assert_eq!(wanted.to_string(), digits);
        let pairs: Vec<&str> = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
        assert_eq!(pairs.join(":").to_uppercase().parse(), Ok(wanted));
        for wrong in ["", "70", &digits.replacen("7", "", 1), &format!("{digits}00"), &digits.replace('7', "g")] {
            assert!(wrong.parse::<Fingerprint>().unwrap_err().contains("64 hexadecimal digits"), "{wrong}");
        }
    }

    #[test]
    fn e14_the_provisioner_that_attests_is_taken_unasked_and_what_is_named_is_fitted() {
        let all = listed();
        let fit = Fit::choose(None, &all).unwrap();
        assert_eq!((&*fit.name, &*fit.webhook, &*fit.identity, &*fit.identifier), ("phones", "posture", "", ""));
        assert_eq!(fit.commands, ["step ca provisioner update phones --disable-renewal"]);
        let fit = Fit::choose(Some("laptops"), &all).unwrap();
        assert_eq!((&*fit.webhook, fit.commands.len()), ("posture2", 0), "its name is taken, and it renews nothing");
        assert_eq!(fit.identity, "identity = \"claimed\"\nidentity_field = \"subject.cn\"\nidentifier = \"hostname\"\n");
        assert_eq!(fit.identifier, "identifier = \"hostname\"\n");
        assert!(Fit::choose(Some("web"), &all).unwrap().identity.contains("san.dns"));
        assert!(Fit::choose(Some("x5c"), &all).unwrap().identity.contains("\"certificate\""));
        let of = |formats: &[&str]| {
            let one =
                serde_json::json!([{ "type": "ACME", "name": "a", "challenges": ["device-attest-01"], "attestationFormats": formats }]);
            Fit::choose(None, &provisioners(one))
        };
        assert_eq!(of(&["step"]).unwrap().identity, "attestation = [\"step\"]\nidentifier = \"yubico\"\n");
        assert!(of(&["tpm"]).unwrap().identity.contains("# tpm_roots_stamp_identifier = true"));
        assert!(of(&["step", "apple"]).unwrap().notes.iter().any(|note| note.contains("takes other attestation formats")));
        assert!(of(&["odd"]).unwrap_err().to_string().contains("add apple, step or tpm"));
        let none = Fit::choose(None, &[]).unwrap();
        assert!(none.name == "devices" && none.commands[0].contains("provisioner add devices --type ACME"));
        for (named, said) in [("nobody", "the CA has no provisioner `nobody`; it has `laptops` (JWK)"), ("sshpop", "is of the type SSHPOP")]
        {
            let error = Fit::choose(Some(named), &all).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let twice = [&all[2..3], &all[2..3]].concat();
        let odd = serde_json::json!([{ "type": "ACME", "name": "a\n[envoy]", "challenges": ["device-attest-01"] }]);
        assert!(Fit::choose(None, &provisioners(odd)).unwrap_err().to_string().contains("cannot stand in a command"));
        assert!(Fit::choose(None, &twice).unwrap_err().to_string().contains("name one by --provisioner"));
    }

    #[test]
    fn e14_the_caller_is_a_name_that_not_every_machine_has() {
        let of = |names: &[&str], usage: rcgen::ExtendedKeyUsagePurpose| {
            let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, usage];
            Peer::from_der(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap()
        };
        let client = rcgen::ExtendedKeyUsagePurpose::ClientAuth;
        let caller_of = |url: &str, names: &[&str]| caller(&url.parse().unwrap(), &of(names, client.clone())).unwrap().to_string();
        assert_eq!(caller_of("https://localhost:9000", &["localhost", "ca.example.org"]), "dns:ca.example.org");
        assert_eq!(caller_of("https://b.example.org", &["a.example.org", "b.example.org"]), "dns:b.example.org");
        assert_eq!(caller_of("https://127.0.0.1", &["localhost", "10.0.0.1", "a.example.org"]), "dns:a.example.org");
        assert_eq!(caller_of("https://localhost", &["localhost"]), "dns:localhost");
        let server = of(&["a.example.org"], rcgen::ExtendedKeyUsagePurpose::CodeSigning);
        assert!(caller(&"https://a.example.org".parse().unwrap(), &server).unwrap_err().to_string().contains("is not for clients"));
    }
}
