//! Caller rules, one a line, applied to certificates of every kind.

use std::collections::BTreeSet;

use posture::caller::{Callers, Name, Peer};

/// Certificates, each with whether it is for clients.
const CERTIFICATES: [(&[u8], bool); 4] = [
    (include_bytes!("../corpus/certificate/step_ca.pem"), true),
    (include_bytes!("../corpus/certificate/no_names.pem"), true),
    (include_bytes!("../corpus/certificate/server_only.pem"), false),
    (include_bytes!("../corpus/certificate/spiffe.pem"), true),
];

/// Asserts that a rule reads back, and admits exactly the peers that have the name.
pub fn body(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rules: Vec<Name> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let written: BTreeSet<String> = rules.iter().map(ToString::to_string).collect();
    for rule in &rules {
        assert_eq!(rule.to_string().parse::<Name>().unwrap(), *rule);
        assert!(!matches!(rule, Name::Subject(_)), "no rule asks for a subject");
    }
    for (pem, for_clients) in CERTIFICATES {
        let (peer, _) = Peer::from_pem(pem).unwrap();
        assert_eq!(Callers::AnyVerified.admit(Some(&peer)).is_some(), for_clients);
        let named = peer.names().iter().any(|name| written.contains(&name.to_string()));
        let admitted = Callers::Named(rules.clone()).admit(Some(&peer));
        assert_eq!(admitted.is_some(), for_clients && named);
        if let Some(caller) = admitted {
            assert!(written.contains(caller.as_str()));
        }
        assert!(Callers::Anonymous.admit(Some(&peer)).is_some());
    }
    assert!(Callers::Named(rules).admit(None).is_none());
}
