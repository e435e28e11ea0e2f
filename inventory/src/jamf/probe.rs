//! Checks of what an operator can get wrong: address, credentials, clock, and the privileges of the API role.

use http::StatusCode;
use posture::record::Form;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use url::Host;

use super::api::{Api, Filter};
use super::{extras, record};
use crate::answer::Unavailable;
use crate::http::{LOOKUP, Reply};
use crate::inventory::{Finding, State};

/// Checks one thing after the other, and ends where the rest can only fail.
pub(super) async fn probe(api: &Api, kinds: &[Form], deadline: Instant) -> Vec<Finding> {
    let mut findings = Vec::new();
    let reached = address(api, deadline).await;
    let reply = match reached {
        Ok(reply) => reply,
        Err(finding) => return vec![*finding],
    };
    findings.push(health(api, &reply));
    if let Some((skew, ahead)) = reply.clock_skew() {
        findings.push(Finding::clock(skew, ahead));
    }
    match api.tokens.current(deadline).await {
        Ok(_) => findings.push(Finding::good("credentials", "the API client was given a token")),
        Err(error) => {
            findings.push(Finding::bad("credentials", error.text(), refused(error)));
            return findings;
        }
    }
    for form in kinds {
        let found = api.page(*form, &Filter::All, (0, 1), deadline, LOOKUP).await;
        let name = match form {
            Form::Computer => "Read Computers",
            Form::MobileDevice => "Read Mobile Devices",
        };
        let detail = found.as_ref().map(|page| format!("{} records", page.total.unwrap_or_default()));
        findings.push(privilege(name, detail.map_err(|error| *error), Need::Required));
        let Ok(page) = found else { continue };
        // Any id will do: without the privilege the answer is 403 for every device.
        let id = page.rows.first().and_then(|row| record::id(*form, row)).unwrap_or_else(|| "1".to_owned());
        let answer = api.get(&extras::compliance_path(*form, &id), &[], deadline, LOOKUP).await.and_then(|reply| {
            if reply.status == StatusCode::NOT_FOUND {
                Ok("not set up, or of no device".to_owned())
            } else {
                reply.ok().map(|_| String::new())
            }
        });
        if !findings.iter().any(|finding| finding.check.ends_with(COMPLIANCE)) {
            findings.push(privilege(COMPLIANCE, answer, Need::For("compliance")));
        }
    }
    if kinds.contains(&Form::Computer) {
        let query = [("page", "0"), ("page-size", "1")];
        let answer = api.get(extras::DEPARTMENTS, &query, deadline, LOOKUP).await.and_then(Reply::ok).map(|_| String::new());
        findings.push(privilege("Read Departments", answer, Need::For("user.department")));
    }
    findings
}

/// Checks name, port, TLS and HTTP, each with its own remedy.
async fn address(api: &Api, deadline: Instant) -> Result<Reply, Box<Finding>> {
    let bad = |detail: String, fix: &str| Box::new(Finding::bad("address", detail, fix));
    let base = api.client.base_url();
    let port = base.port_or_known_default().unwrap_or(443);
    let host = match base.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    };
    let addresses: Vec<_> = match timeout_at(deadline, lookup_host((host.as_str(), port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(bad(format!("{host} has no address: {error}"), "correct base_url, or this machine's DNS")),
        Err(_) => return Err(bad(format!("DNS does not answer for {host}"), "correct this machine's DNS")),
    };
    match timeout_at(deadline, TcpStream::connect(addresses.as_slice())).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(bad(format!("{host}:{port} takes no connection: {error}"), "open the way to it in the firewall")),
        Err(_) => return Err(bad(format!("{host}:{port} does not answer"), "open the way to it in the firewall")),
    }
    let request = api.client.get(api.client.url("/api/v1/health-check", &[]));
    api.client.send(request, deadline, LOOKUP).await.map_err(|error| match error {
        Unavailable::Network => bad(
            format!("{host}:{port} takes connections, but TLS or HTTP fails"),
            "where its certificate is your own authority's, set ca_file; where a proxy stands between, let it pass this host",
        ),
        error => bad(error.text().to_owned(), "correct base_url"),
    })
}

fn health(api: &Api, reply: &Reply) -> Finding {
    let host = api.client.base_url().host_str().unwrap_or_default();
    match reply.status.as_u16() {
        204 | 200 => Finding::good("address", format!("{host} is up")),
        503 => Finding::bad("address", format!("{host} is starting, or under maintenance"), "wait until it is up"),
        // Some versions have no health check.
        404 => Finding {
            state: State::Doubtful,
            ..Finding::bad("address", format!("{host} has no health check"), "see that base_url is Jamf Pro's")
        },
        status => Finding::bad("address", format!("{host} answers its health check with {status}"), "see that base_url is Jamf Pro's"),
    }
}

/// The remedy for a failed login.
const fn refused(error: Unavailable) -> &'static str {
    match error {
        Unavailable::AuthRejected => {
            "see in Settings > System > API roles and clients that the client is enabled, that client_id is its own, and make a new secret"
        }
        Unavailable::Protocol => "see that base_url is Jamf Pro's, and that its version has API roles and clients",
        _ => "try again",
    }
}

/// The use of a privilege.
#[derive(Clone, Copy)]
enum Need {
    Required,
    /// The privilege serves only this field of a record.
    For(&'static str),
}

fn privilege(name: &str, answer: Result<String, Unavailable>, need: Need) -> Finding {
    let check = format!("privilege {name}");
    let error = match answer {
        Ok(detail) => return Finding::good(check, detail),
        Err(error) => error,
    };
    let fix = match error {
        Unavailable::Forbidden => format!("give the API role the privilege {name}"),
        _ => "try again".to_owned(),
    };
    match need {
        Need::Required => Finding::bad(check, error.text(), fix),
        Need::For(field) => {
            let detail = format!("{}; only policies and data with device.{field} need it", error.text());
            Finding { state: State::Doubtful, ..Finding::bad(check, detail, fix) }
        }
    }
}

const COMPLIANCE: &str = "Read Device Compliance Information";
