//! A step-ca, and what it tells of itself.
//!
//! Nothing is believed of the CA before its root is known: either the root is a file, or its SHA-256 is given and the CA is asked
//! for the certificate that has it, as `step ca bootstrap` does. What it says of itself comes over a connection that the root proves.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use posture::caller::{Callers, Name, Peer};
use posture::shown;
use reqwest::{Certificate, Client, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use settings::{Environment, files};

use crate::cli::causes::causes;
use crate::cli::init::args::InitArgs;
use crate::cli::init::fingerprint::Fingerprint;

/// Facts that a CA told of itself.
#[derive(Debug)]
pub(super) struct Ca {
    pub(super) url: Url,
    /// Root that proved the rest, PEM.
    pub(super) root: String,
    /// Authorities of its client certificate: roots and intermediates, PEM.
    pub(super) authorities: String,
    /// Name of its client certificate, by which it calls.
    pub(super) caller: Name,
    pub(super) provisioners: Vec<Provisioner>,
}

/// A provisioner, as far as it is needed, in the JSON of step-ca.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Provisioner {
    #[serde(rename = "type")]
    pub(super) of_type: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) claims: Claims,
    #[serde(default)]
    challenges: Vec<String>,
    #[serde(default)]
    pub(super) attestation_formats: Vec<String>,
    #[serde(default)]
    pub(super) options: Options,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Claims {
    #[serde(default)]
    pub(super) disable_renewal: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Options {
    #[serde(default)]
    pub(super) webhooks: Vec<Hook>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Hook {
    pub(super) name: String,
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

impl Provisioner {
    /// Returns whether devices prove by attestation what they are.
    pub(super) fn attests(&self) -> bool {
        self.of_type == "ACME" && self.challenges.iter().any(|challenge| challenge == "device-attest-01")
    }
}

/// Asks the CA for its root, its authorities, its name and its provisioners.
///
/// # Errors
/// Where it does not answer, its root is another one than was named, or it cannot have webhooks.
pub(super) async fn ask(url: &Url, args: &InitArgs, environment: &Environment) -> anyhow::Result<Ca> {
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
    // Releases before 0.25 have no `/intermediates`, and send the intermediate with their certificate.
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

/// Fetches the certificate with this fingerprint from whoever answers there: the fingerprint is all the proof that there is, and
/// all that is needed.
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

/// Returns the one certificate of a PEM text, as PEM, and its fingerprint.
fn only(text: &str) -> anyhow::Result<(String, Fingerprint)> {
    let mut all = CertificateDer::pem_slice_iter(text.as_bytes());
    let (Some(Ok(der)), None) = (all.next(), all.next()) else { bail!("there has to be one certificate in PEM, the root") };
    Ok((text.trim().to_owned() + "\n", Fingerprint::of(&der)))
}

/// Returns the name that step-ca calls webhooks by: its client certificate is the one that it serves with. That of its address
/// comes first, then names of DNS; names that every machine has, such as localhost, come last.
fn caller(url: &Url, peer: &Peer) -> anyhow::Result<Name> {
    let names = peer.names().iter().filter(|name| matches!(name, Name::Dns(_) | Name::Ip(_) | Name::Uri(_)));
    // The name is printed among commands, so it may have no hidden character.
    let names: Vec<&Name> = names.filter(|name| !name.to_string().contains(shown::is_hidden)).collect();
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
    ensure!((200..300).contains(&status), "{url} answers {status}: is it a step-ca?");
    serde_json::from_slice(&body).with_context(|| format!("{url} does not answer as step-ca does"))
}

/// Status and body of an answer, and the certificate of who answered.
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

/// Describes what to look at where there is no answer.
fn explain(error: &reqwest::Error, url: &Url) -> anyhow::Error {
    let causes = causes(error);
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

/// Largest number of pages of provisioners, of a hundred each, that are read.
const PAGES: usize = 100;

/// Path at which step-ca hands out the root of a fingerprint.
const ROOT: &str = "root";

/// Largest answer, in bytes.
const LARGEST: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

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
        // A name that would add lines to the commands is not taken.
        let uri = rcgen::SanType::URI("spiffe://a\n\nNext:\n curl https://evil.example".try_into().unwrap());
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.extended_key_usages = vec![client.clone()];
        params.subject_alt_names = vec![uri];
        let lines = Peer::from_der(params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der()).unwrap();
        assert!(caller(&"https://a.example.org".parse().unwrap(), &lines).unwrap_err().to_string().contains("has no name"));
        let server = of(&["a.example.org"], rcgen::ExtendedKeyUsagePurpose::CodeSigning);
        assert!(caller(&"https://a.example.org".parse().unwrap(), &server).unwrap_err().to_string().contains("is not for clients"));
    }
}
