//! What step-ca reports of a SCEP request: that a certificate was issued, or why none was.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::certificate::Certificate;
use crate::webhook::{Webhook, X509};

/// step-ca's report on one SCEP request (`NotifySuccess` and `NotifyFailure` in `authority/provisioner/scep.go`). Every text
/// is printable, and holds at most 256 characters of what was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notification {
    /// Result of the request: `issued` or `failed`.
    pub result: &'static str,
    /// Name of the provisioner, if step-ca sends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioner: Option<String>,
    /// Id that the client gave the SCEP transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// Serial number of the certificate, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Code of the error; step-ca omits 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<i64>,
    /// Text of the error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Notification {
    /// Reads a notification from a body of kind `notifying`. A body with both a certificate and an error reports a failure.
    pub fn of(webhook: &Webhook<'_>) -> Self {
        let failed = webhook.x509_certificate.is_none() || webhook.scep_error_code.is_some() || webhook.scep_error_description.is_some();
        Self {
            result: if failed { "failed" } else { "issued" },
            provisioner: webhook.provisioner_name.as_deref().and_then(printable),
            transaction: webhook.scep_transaction_id.as_deref().and_then(printable),
            serial: webhook.x509_certificate.as_ref().and_then(serial),
            error_code: webhook.scep_error_code,
            error: webhook.scep_error_description.as_deref().and_then(printable),
        }
    }
}

fn serial(certificate: &X509<'_>) -> Option<String> {
    let der = STANDARD.decode(certificate.raw.as_deref()?).ok()?;
    let number = Certificate::from_der(&der).ok()?.serial_number().to_vec();
    // A leading zero only marks the number as not negative.
    let digits: String = number.iter().skip_while(|byte| **byte == 0).map(|byte| format!("{byte:02x}")).collect();
    Some(digits.chars().take(LONGEST).collect())
}

/// Makes a text printable; `None` if it is empty. Control and format characters are escaped, since they may rearrange a line.
fn printable(text: &str) -> Option<String> {
    let escape = |letter: char| match letter {
        '"' | '\'' => letter.to_string(),
        letter => letter.escape_debug().to_string(),
    };
    let shown: String = text.chars().take(LONGEST).map(escape).collect();
    let more = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    (!shown.is_empty()).then(|| shown + more)
}

/// Most characters that are kept of one text.
const LONGEST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> Notification {
        Notification::of(&serde_json::from_str(body).unwrap())
    }

    #[test]
    fn d10_success_and_failure_are_told_apart() {
        let issued = of(include_str!("../testdata/step-ca/notifying.success.json"));
        assert_eq!(
            serde_json::to_string(&issued).unwrap(),
            r#"{"result":"issued","transaction":"VT6uRqiFYmqI+uFTcHqcxIJFyww=","serial":"c3c0b21564929c2f793aa6ed1055c01a"}"#
        );
        let failed = of(include_str!("../testdata/step-ca/notifying.failure.authorizing-denied.json"));
        assert_eq!(
            serde_json::to_string(&failed).unwrap(),
            r#"{"result":"failed","transaction":"fcwcfTfpypsIu18WDtHZakKbVtw=","error":"error generating certificate: error creating certificate: serial not bound (no)"}"#
        );
        for body in [
            include_str!("../testdata/step-ca/notifying.renewalreq.json"),
            include_str!("../testdata/step-ca/notifying.static-challenge.json"),
        ] {
            let told = of(body);
            assert_eq!((told.result, told.error), ("issued", None));
            assert!(told.serial.is_some_and(|serial| serial.len() >= 30));
        }
        for body in [
            include_str!("../testdata/step-ca/notifying.failure.enriching-denied.json"),
            include_str!("../testdata/step-ca/notifying.failure.template.json"),
        ] {
            let told = of(body);
            assert_eq!((told.result, told.serial), ("failed", None));
            assert!(told.error.is_some_and(|error| error.starts_with("error generating certificate: ")));
        }
    }

    #[test]
    fn d10_whatever_it_tells_is_short_and_can_be_printed() {
        let text = |error: &str| {
            let body = serde_json::json!({
                "timestamp": "", "provisionerName": "scep\u{202e}", "scepTransactionID": "a\nb", "scepErrorCode": 2,
                "scepErrorDescription": error, "x509CertificateRequest": {}, "x509Certificate": {"raw": "AAAA"},
            });
            of(&body.to_string())
        };
        let told = text("it's \"bad\" \u{1b}[31m\u{200b}");
        assert_eq!(told.result, "failed", "a certificate and an error");
        assert_eq!(told.provisioner.as_deref(), Some(r"scep\u{202e}"));
        assert_eq!(told.transaction.as_deref(), Some(r"a\nb"));
        assert_eq!(told.error.as_deref(), Some(r#"it's "bad" \u{1b}[31m\u{200b}"#));
        assert_eq!((told.error_code, told.serial), (Some(2), None));
        assert_eq!(text(&"é".repeat(LONGEST)).error, Some("é".repeat(LONGEST)));
        assert_eq!(text(&"é".repeat(LONGEST + 1)).error, Some("é".repeat(LONGEST) + "…"));
        assert_eq!(text("").error, None);
        assert_eq!(of(r#"{"timestamp":"","scepErrorDescription":"x"}"#).result, "failed");
        assert_eq!(of(r#"{"timestamp":"","x509Certificate":{},"scepErrorCode":1}"#).result, "failed");
        assert_eq!(of(r#"{"timestamp":"","x509Certificate":{}}"#).result, "issued");
        assert_eq!(of(r#"{"timestamp":""}"#).result, "failed");
    }
}
