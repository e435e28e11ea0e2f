//! Checks of what an operator can get wrong: the address, the key, and each request that the key has to allow.

use posture::record::Fields;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::api::Api;
use super::record;
use super::rows::Rows;
use crate::answer::Unavailable;
use crate::http::{LOOKUP, PAGE, Reply};
use crate::inventory::{Finding, State};

/// Tries each request once, the one for the names of policies only where they are needed, and checks whether filters work.
pub(super) async fn probe(api: &Api, policy_names: bool, deadline: Instant) -> Vec<Finding> {
    let body = json!({"desired_fact_identifiers": record::facts(Fields::NONE), "page": 1, "per_page": 1});
    let reply = match api.post("/devices", &body, deadline, LOOKUP).await {
        Ok(reply) => reply,
        Err(fault) => return vec![faulty(fault)],
    };
    let clock = reply.clock_skew().map(|(skew, ahead)| Finding::clock(skew, ahead));
    let answer = reply.ok().and_then(|reply| reply.json::<Value>());
    let answer = answer.and_then(|answer| if answer.get("items").is_some() { Ok(answer) } else { Err(Unavailable::Protocol) });
    if let Err(fault) = answer {
        return [Some(faulty(fault)), clock].into_iter().flatten().collect();
    }
    let mut findings = vec![
        Finding::good("address", "it answers"),
        Finding::good("credentials", "the key is taken"),
        Finding::good("permission POST /devices", "devices can be read"),
    ];
    findings.extend(clock);
    findings.push(match Rows::new(Some(NO_SERIAL), Fields::NONE).next(api, deadline, LOOKUP).await {
        Ok(page) if page.items.is_empty() => Finding::good("filter", "a search for a serial number that nobody has finds none"),
        Ok(_) => Finding {
            check: "filter".to_owned(),
            state: State::Doubtful,
            detail: "Addigy answers a search for one serial number with other devices, so each lookup reads all of them".to_owned(),
            fix: "write [provider.<name>.sync], so that lookups are answered from a list, and ask Addigy's support".to_owned(),
        },
        Err(fault) => faulty(fault),
    });
    if policy_names {
        let reply = api.post("/oa/policies/query", &json!({"policies": []}), deadline, PAGE).await;
        findings.push(match reply.and_then(Reply::ok).and_then(|reply| reply.json()).and_then(record::policies) {
            Ok(_) => Finding::good("permission POST /oa/policies/query", "policies can be read"),
            Err(fault) => Finding {
                check: "permission POST /oa/policies/query".to_owned(),
                state: State::Doubtful,
                detail: format!("{}; lookups whose policy uses device.groups fail", fault.text()),
                fix: "let the key view policies, or write policy_names = false and name policies by their ids".to_owned(),
            },
        });
    }
    findings
}

fn faulty(fault: Unavailable) -> Finding {
    let (check, fix) = match fault {
        Unavailable::AuthRejected => (
            "credentials",
            "make a key of API version 2 in Addigy's console, and put it into the file that `api_key` names; client ids and secrets of version 1 are no longer taken",
        ),
        Unavailable::Forbidden => ("permission POST /devices", "let the key view devices, in Addigy's console"),
        Unavailable::RateLimited(_) => ("limits", "lower per_second in [provider.<name>.limits], or wait"),
        Unavailable::Timeout | Unavailable::Network => ("address", "check base_url, ca_file, DNS and the way out of this machine"),
        Unavailable::ServerError(_) => ("service", "look at Addigy's status page, and try again"),
        _ => ("address", "leave base_url away, or check that it ends in /api/v2"),
    };
    Finding::bad(check, fault.text(), fix)
}

/// A serial number that no maker gives.
const NO_SERIAL: &str = "stepward-no-such-device";
