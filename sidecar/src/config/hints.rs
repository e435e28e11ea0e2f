//! Hints for messages about the configuration: the table that a key belongs to, and examples.

use posture::policy::NAMED;
use settings::Hints;

/// Hints for every file with keys of Stepward.
pub(super) const HINTS: Hints = Hints { elsewhere, example_file: "secrets/webhook", example_variable: "WEBHOOK_SECRET" };

/// The table that a key belongs to.
fn elsewhere(key: &str) -> Option<&'static str> {
    let listed = ELSEWHERE.iter().find(|(known, _)| *known == key).map(|(_, table)| *table);
    listed.or_else(|| NAMED.iter().any(|named| named.key == key).then_some("[policy.NAME]"))
}

/// Keys that one kind of table has, for whoever writes them into another one. Those of rules are in [`NAMED`].
const ELSEWHERE: &[(&str, &str)] = &[
    ("enforcement", "[[webhook]], where it says what becomes of the policy's denials"),
    ("callers", "[[webhook]]"),
    ("deadline", "[[webhook]]"),
    ("body_limit", "[[webhook]]"),
    ("unsigned", "[[webhook]]"),
    ("window", "[[webhook]]"),
    ("identity", "[[webhook]]"),
    ("identity_field", "[[webhook]]"),
    ("attestation", "[[webhook]]"),
    ("client_ca", "[envoy], or for questions over TCP to [query]"),
    ("webhook_address", "[envoy]"),
    ("public_address", "[envoy]"),
    ("wasm", "[envoy]"),
    ("sockets", "[listen]"),
    ("role_folders", "[listen]"),
    ("require", "[policy.NAME]"),
    ("deny_if", "[policy.NAME]"),
    ("on_not_found", "[policy.NAME]"),
    ("on_unavailable", "[policy.NAME]"),
    ("combine", "[policy.NAME]"),
    ("remediation_url", "[policy.NAME]"),
    ("base_url", "[provider.NAME]"),
    ("ca_file", "[provider.NAME]"),
    ("identifier_column", "[provider.NAME] of type = \"file\""),
    ("positive", "[provider.NAME.cache]"),
    ("negative", "[provider.NAME.cache]"),
    ("stale_if_error", "[provider.NAME.cache]"),
    ("per_second", "[provider.NAME.limits]"),
    ("unknown_per_minute", "[provider.NAME.limits]"),
    ("retention", "[store]"),
    ("max_decisions", "[store]"),
    ("level", "[log]"),
    ("placeholders", "the top of the file, above every table"),
];
