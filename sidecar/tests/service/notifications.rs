//! Tests of what step-ca tells after a certificate was issued, or was not.

use posture::secret::Secret;
use posture::verify::SigningKeys;
use proto::v1::sidecar_message::Message as ToFilter;
use serde_json::{Value, json};

use crate::served::{Folder, Served};

/// Bodies of a real step-ca, at a time of their own.
const ISSUED: &str = include_str!("../../../posture/testdata/step-ca/notifying.success.json");
const FAILED: &str = include_str!("../../../posture/testdata/step-ca/notifying.failure.authorizing-denied.json");

/// Returns the body as if it were made now.
fn now(body: &str) -> String {
    let mut body: Value = serde_json::from_str(body).unwrap();
    body["timestamp"] = humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string().into();
    body.to_string()
}

/// Waits for the log's event of a decision that says this of a notification.
fn event(served: &mut Served, result: &str) -> Value {
    served.until(|line| line["message"] == "decision" && line["notification"] == result)
}

#[tokio::test]
async fn d10_log_and_record_tell_success_from_failure() {
    let folder = Folder::new();
    folder.change("stepward.toml", "providers = [\"staff\"]", "kind = \"notifying\"");
    let mut served = folder.serve();
    let mut filter = served.attach().await;
    let keys = SigningKeys::new(&[Secret::from_base64(&served.folder.read("secrets/webhook")).unwrap()]);
    for body in [ISSUED, FAILED] {
        let body = now(body);
        let signature = keys.sign(body.as_bytes()).unwrap().as_bytes().to_vec();
        filter.send(body, signature);
        while !matches!(filter.next().await, Some(ToFilter::Answer(_))) {}
    }
    let issued = event(&mut served, "issued");
    assert_eq!(issued["certificate_serial"], "c3c0b21564929c2f793aa6ed1055c01a");
    assert_eq!(issued["scep_transaction"], "VT6uRqiFYmqI+uFTcHqcxIJFyww=");
    assert_eq!(issued.get("scep_error"), None);
    let failed = event(&mut served, "failed");
    assert_eq!(failed["scep_transaction"], "fcwcfTfpypsIu18WDtHZakKbVtw=");
    assert_eq!(failed["scep_error"], "error generating certificate: error creating certificate: serial not bound (no)");
    assert_eq!(failed.get("certificate_serial"), None);
    for (event, inputs) in [
        (&issued, json!({"result": "issued", "transaction": "VT6uRqiFYmqI+uFTcHqcxIJFyww=", "serial": issued["certificate_serial"]})),
        (&failed, json!({"result": "failed", "transaction": "fcwcfTfpypsIu18WDtHZakKbVtw=", "error": failed["scep_error"]})),
    ] {
        let record = served.record(event["id"].as_str().unwrap());
        assert_eq!(record["checks"], json!([{ "check": "notification", "code": null, "inputs": inputs }]));
        assert_eq!(record["code"], "notification_recorded");
    }
}
