//! Checks of what an operator can get wrong: the address, the token, and each request that the token has to allow.

use serde_json::Value;
use tokio::time::Instant;

use super::api::Api;
use super::record;
use crate::answer::Unavailable;
use crate::http::{LOOKUP, Reply};
use crate::inventory::{Finding, State};

/// Tries each request once; the one for a device's status only where it is needed.
pub(super) async fn probe(api: &Api, needs_status: bool, deadline: Instant) -> Vec<Finding> {
    let reply = match api.get("/api/v1/devices", &[("limit", "1")], deadline, LOOKUP).await {
        Ok(reply) => reply,
        Err(fault) => return vec![faulty("List Devices", fault)],
    };
    let clock = reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead));
    let devices: Value = match reply.ok().and_then(|reply| reply.json()) {
        Ok(devices) => devices,
        Err(fault) => return [Some(faulty("List Devices", fault)), clock].into_iter().flatten().collect(),
    };
    let mut findings = vec![
        Finding::good("address", "it answers"),
        Finding::good("credentials", "the token is taken"),
        Finding::good("permission List Devices", "devices can be read"),
    ];
    findings.extend(clock);
    let rows = devices.get("results").unwrap_or(&devices);
    if let Some(id) = rows.get(0).and_then(record::id) {
        let details = "device.udid, supervised, ownership and encrypted need it";
        findings.push(ask(api, "Get Device Details", &format!("/api/v1/devices/{id}/details"), details, deadline).await);
        if needs_status {
            findings
                .push(ask(api, "Get Device Status", &format!("/api/v1/devices/{id}/status"), "device.compliance needs it", deadline).await);
        }
    } else {
        findings.push(doubtful("devices", "the tenant shows no device, so requests for a single one could not be tried", "enrol one"));
    }
    for (name, path, what) in [
        ("List Users", "/api/v1/users", "device.user.department and title need it"),
        ("Device information", "/api/v1/prism/device_information?limit=1", "[provider.<name>.sync] needs it for what changed"),
        ("List audit events", "/api/v1/audit/events?limit=1", "without it a removal is noticed only when an answer grows old"),
    ] {
        findings.push(ask(api, name, path, what, deadline).await);
    }
    findings
}

/// Tries one request that only some fields or features need.
async fn ask(api: &Api, name: &str, path: &str, what: &str, deadline: Instant) -> Finding {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, query.split_once('=')));
    let query: Vec<_> = query.into_iter().collect();
    match api.get(path, &query, deadline, LOOKUP).await.and_then(Reply::ok).and_then(|reply| reply.json::<Value>()) {
        Ok(_) => Finding::good(format!("permission {name}"), "it answers"),
        Err(Unavailable::Forbidden) => doubtful(&format!("permission {name}"), what, &allow(name)),
        Err(fault) => doubtful(&format!("request {name}"), fault.text(), "try again; if it stays so, ask Kandji's support"),
    }
}

fn faulty(name: &str, fault: Unavailable) -> Finding {
    match fault {
        Unavailable::AuthRejected => {
            let fix = "make a token in Kandji under Settings, Access, and put it into the file that `token` names: this one is wrong, revoked or expired";
            Finding::bad("credentials", fault.text(), fix)
        }
        Unavailable::Forbidden => Finding::bad(format!("permission {name}"), fault.text(), allow(name)),
        Unavailable::RateLimited(_) => {
            let fix = "the tenant's 10,000 requests of an hour are spent: lower per_second in [provider.<name>.limits], and see what else uses them";
            Finding::bad("limits", fault.text(), fix)
        }
        Unavailable::Timeout | Unavailable::Network => {
            Finding::bad("address", fault.text(), "check base_url, ca_file, DNS and the way out of this machine")
        }
        Unavailable::ServerError(_) => Finding::bad("service", fault.text(), "look at Kandji's status page, and try again"),
        _ => {
            let fix = "write base_url as Kandji shows it under Settings, Access, such as https://tenant.api.kandji.io: no path behind it";
            Finding::bad("address", fault.text(), fix)
        }
    }
}

fn allow(name: &str) -> String {
    format!("allow the token `{name}` in Kandji under Settings, Access")
}

fn doubtful(check: &str, detail: &str, fix: &str) -> Finding {
    Finding { check: check.to_owned(), state: State::Doubtful, detail: detail.to_owned(), fix: fix.to_owned() }
}
