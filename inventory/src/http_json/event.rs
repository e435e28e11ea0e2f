//! Events that a customer's own inventory may push: `{"identifier": "…"}`, `{"identifiers": ["…"]}` or `{"all": true}`, each with
//! `"revoking": true` where the device lost something.

use serde::Deserialize;

use crate::inventory::{Change, NotAnEvent, Subject};
use crate::strict;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    identifier: Option<String>,
    identifiers: Option<Vec<String>>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    revoking: bool,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<Change>, NotAnEvent> {
    const WORDS: &str = "an event is JSON with identifier, identifiers or all, and perhaps revoking";
    let Event { identifier, identifiers, all, revoking } = strict::read(body).map_err(|_| NotAnEvent(WORDS))?;
    let named = identifier.is_some() || identifiers.is_some();
    let identifiers: Vec<String> = identifier.into_iter().chain(identifiers.into_iter().flatten()).collect();
    if identifiers.iter().any(|identifier| identifier.trim().is_empty()) {
        return Err(NotAnEvent("an identifier is blank"));
    }
    match (all, named) {
        (true, false) => Ok(vec![Change { device: Subject::Everything, revoking }]),
        (false, true) if identifiers.len() > MOST => Ok(vec![Change { device: Subject::Everything, revoking }]),
        (false, true) => Ok(identifiers.into_iter().map(|name| Change { device: Subject::Identifier(name), revoking }).collect()),
        _ => Err(NotAnEvent(WORDS)),
    }
}

/// Most devices that one event can name; an event with more counts for all devices.
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_one_several_and_all() {
        let named = |name: &str, revoking| Change { device: Subject::Identifier(name.to_owned()), revoking };
        let all = |revoking| Change { device: Subject::Everything, revoking };
        for (body, expected) in [
            (r#"{"identifier": "C02A"}"#, vec![named("C02A", false)]),
            (r#"{"identifiers": ["C02A", "C02B"], "revoking": true}"#, vec![named("C02A", true), named("C02B", true)]),
            (r#"{"identifiers": []}"#, vec![]),
            (r#"{"all": true}"#, vec![all(false)]),
            (r#"{"all": true, "revoking": true}"#, vec![all(true)]),
        ] {
            assert_eq!(parse(body.as_bytes()), Ok(expected), "{body}");
        }
    }

    #[test]
    fn refuses_what_is_no_event() {
        for body in [
            "",
            "{}",
            "[]",
            r#"{"all": false}"#,
            r#"{"all": true, "identifier": "C02A"}"#,
            r#"{"identifier": " "}"#,
            r#"{"identifier": 7}"#,
            r#"{"identifier": "C02A", "revoked": true}"#,
            r#"{"identifier": "C02A", "revoking": "yes"}"#,
        ] {
            assert!(parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
