//! The token endpoint of Microsoft Entra ID, with its errors.

use std::collections::BTreeMap;

use serde_json::json;

use super::{CLIENT, Inner, TENANT};
use crate::Seen;
use crate::server::Answer;

impl Inner {
    pub(super) fn login(&mut self, request: &Seen) -> Answer {
        let form: BTreeMap<_, _> = request.form().into_iter().collect();
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        let refused = |status, error: &str, code: u32, text: &str| {
            let body = json!({
                "error": error,
                "error_description": format!("AADSTS{code}: {text}"),
                "error_codes": [code],
                "timestamp": "2026-11-24 08:00:00Z",
                "trace_id": "00000000-0000-4000-8000-000000000001",
                "correlation_id": "00000000-0000-4000-8000-000000000002",
            });
            Answer::status(status, body)
        };
        if request.path != format!("/{TENANT}/oauth2/v2.0/token") {
            return refused(400, "invalid_request", 90_002, "the tenant was not found");
        }
        if field("grant_type") != "client_credentials" {
            return refused(400, "unsupported_grant_type", 70_003, "the grant type is not supported");
        }
        let own = format!("http://{}/.default", request.header("host").unwrap_or_default());
        if field("scope") != own && field("scope") != "https://graph.microsoft.com/.default" {
            return refused(400, "invalid_scope", 70_011, "the scope is not valid");
        }
        if field("client_id") != CLIENT {
            return refused(400, "unauthorized_client", 700_016, "the application was not found in the directory");
        }
        match &self.assertion {
            Some(check) => {
                let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
                if field("client_assertion_type") != kind || !check(field("client_assertion")) {
                    return refused(401, "invalid_client", 700_027, "the certificate is not registered, or the signature is wrong");
                }
            }
            None if field("client_secret") != "secret" => return refused(401, "invalid_client", 7_000_215, "the client secret is wrong"),
            None => {}
        }
        let number = self.issued;
        self.issued += 1;
        let mut body = json!({"token_type": "Bearer", "ext_expires_in": 3599, "access_token": format!("token-{number}")});
        if !self.expires_in.is_null() {
            body["expires_in"] = self.expires_in.clone();
        }
        Answer::json(body)
    }
}
