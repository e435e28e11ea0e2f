//! Checks of what an operator can get wrong: the credentials, and each permission of the application.

use http::StatusCode;
use tokio::time::Instant;

use super::graph::Graph;
use crate::answer::Unavailable;
use crate::http::LOOKUP;
use crate::inventory::{Finding, State};

/// Asks for a token, for the clock, and for one thing by each permission.
pub(super) async fn probe(graph: &Graph, deadline: Instant) -> Vec<Finding> {
    if let Err(error) = graph.tokens().current(deadline).await {
        return vec![credentials(graph, error)];
    }
    let mut findings = vec![Finding::good("credentials", "Microsoft Entra ID gives a token")];
    let selected = graph.selected();
    let url = graph.url("/deviceManagement/managedDevices", &[("$top", "1"), ("$select", &selected)]);
    match graph.get(&url, deadline, LOOKUP).await {
        Err(error) => {
            findings.push(Finding::bad("address", error.text(), "check graph_url, and whether a proxy lets this machine reach it"));
            return findings;
        }
        Ok(reply) => {
            findings.extend(reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead)));
            findings.push(devices(reply.status, &reply.json().unwrap_or_default()));
        }
    }
    let addresses: Vec<_> = PERMISSIONS.iter().map(|permission| permission.address.to_owned()).collect();
    match graph.batch(&addresses, deadline).await {
        Ok(items) => {
            findings.extend(PERMISSIONS.iter().zip(items).map(|(permission, item)| permission.finding(item.status())));
        }
        Err(error) => findings.push(Finding::bad("batches", error.text(), "check whether a proxy lets POST /$batch pass")),
    }
    findings
}

/// A permission that some fields need.
struct Permission {
    name: &'static str,
    /// Address that only this permission lets the application ask for.
    address: &'static str,
    fields: &'static str,
}

const PERMISSIONS: &[Permission] = &[
    Permission { name: "Device.Read.All", address: "/devices?$top=1&$select=id", fields: "groups" },
    Permission { name: "GroupMember.Read.All", address: "/groups?$top=1&$select=id,displayName", fields: "groups" },
    Permission {
        name: "User.Read.All",
        address: "/users?$top=1&$select=id,department,accountEnabled",
        fields: "user.department, user.title and user.active",
    },
];

impl Permission {
    fn finding(&self, status: StatusCode) -> Finding {
        let (name, fields) = (self.name, self.fields);
        let check = format!("permission {name}");
        match status {
            StatusCode::OK => Finding::good(check, "granted"),
            // A missing permission is only doubtful: a policy that does not use its fields needs none.
            StatusCode::FORBIDDEN => Finding {
                check,
                state: State::Doubtful,
                detail: format!("not granted: a policy over {fields} gets no answer"),
                fix: grant(name),
            },
            other => Finding {
                check,
                state: State::Doubtful,
                detail: format!("Microsoft Graph answers {}", other.as_u16()),
                fix: "run the check again in a minute".to_owned(),
            },
        }
    }
}

fn devices(status: StatusCode, body: &serde_json::Value) -> Finding {
    let name = "DeviceManagementManagedDevices.Read.All";
    let check = format!("permission {name}");
    match status {
        StatusCode::OK => Finding::good(check, "granted"),
        StatusCode::FORBIDDEN => Finding::bad(check, "not granted: no device can be looked up", grant(name)),
        StatusCode::BAD_REQUEST => {
            let text = body.pointer("/error/message").and_then(serde_json::Value::as_str).unwrap_or_default();
            let text: String = text.chars().filter(|letter| !letter.is_control()).take(MOST_SHOWN).collect();
            let detail = format!("Microsoft Graph does not take the question: {text}");
            Finding::bad(check, detail, "see that graph_url is Microsoft Graph, and set the other api_version if this one lacks a property")
        }
        StatusCode::UNAUTHORIZED => {
            Finding::bad(check, "Microsoft Graph refuses the token", "check that login_url and graph_url are of one cloud")
        }
        other => {
            Finding::bad(check, format!("Microsoft Graph answers {}", other.as_u16()), "check that the tenant has a licence for Intune")
        }
    }
}

fn credentials(graph: &Graph, error: Unavailable) -> Finding {
    let login = graph.tokens().login();
    match (error, login.refusal()) {
        (Unavailable::AuthRejected, Some((number, page))) => Finding::bad(
            "credentials",
            format!("Microsoft Entra ID refuses them with AADSTS{number}"),
            format!("look at {page}, then correct tenant_id, client_id, or the secret or certificate"),
        ),
        (Unavailable::AuthRejected, None) => {
            Finding::bad("credentials", error.text(), "correct tenant_id, client_id, or the secret or certificate")
        }
        _ => Finding::bad("credentials", error.text(), "check login_url, and whether a proxy lets this machine reach it"),
    }
}

fn grant(name: &str) -> String {
    format!("in the application's API permissions add the application permission {name} of Microsoft Graph, and grant admin consent")
}

/// Most letters of Graph's error that are shown.
const MOST_SHOWN: usize = 300;
