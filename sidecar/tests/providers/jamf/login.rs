//! Tests of tokens, cookies, and a server that starts.

use fakes::jamf::Jamf;
use fakes::{Fake, Fault};
use inventory::{Answer, Unavailable};
use posture::record::Form;
use serde_json::json;

use crate::Stand;

use super::{LINES, found, hinted, plainly, two};

#[tokio::test]
async fn the_token_endpoint_that_the_server_has_is_remembered() {
    let (jamf, stand) = two().await;
    for (token, old_token) in [(false, true), (true, false), (false, true)] {
        jamf.set(|knobs| (knobs.token, knobs.old_token) = (token, old_token));
        jamf.revoke();
        stand.fake.forget();
        found(hinted(&stand, "C02X", Form::Computer).await);
        assert_eq!(stand.fake.logins(), 2, "the one that is gone, and the other");
        jamf.revoke();
        stand.fake.forget();
        found(hinted(&stand, "C02X", Form::Computer).await);
        assert_eq!(stand.fake.logins(), 1);
    }
    jamf.set(|knobs| (knobs.token, knobs.old_token) = (false, false));
    jamf.revoke();
    assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn any_lifetime_of_a_token_works_without_a_login_for_every_lookup() {
    for lifetime in [json!(60), json!(0), json!(null), json!("1200"), json!("soon"), json!(-1), json!(1_000_000_000_000_u64), json!([])] {
        let (jamf, stand) = two().await;
        jamf.set(|knobs| knobs.expires_in = lifetime.clone());
        for _ in 0..5 {
            found(plainly(&stand, "C02X").await);
        }
        assert_eq!(stand.fake.logins(), 1, "{lifetime}");
    }
}

#[tokio::test]
async fn a_token_that_was_revoked_is_renewed_once_for_all() {
    let (jamf, stand) = two().await;
    found(plainly(&stand, "C02X").await);
    jamf.revoke();
    stand.fake.forget();
    let answers = futures::future::join_all((0..50).map(|_| plainly(&stand, "C02X"))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Found(_))));
    assert_eq!(stand.fake.logins(), 1);
    assert!(stand.fake.lookups().len() <= 200, "none is sent more than twice");
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_from_an_outage() {
    let fake = Fake::start(Jamf::new()).await;
    let stand = Stand::open(fake, &LINES.replace("\"client\"", "\"stranger\""));
    assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::AuthRejected));
    let (_, stand) = two().await;
    for (fault, expected) in [
        (Fault::Body(b"{}".to_vec()), Unavailable::Protocol),
        (Fault::Html, Unavailable::Protocol),
        (Fault::Status(500), Unavailable::ServerError(None)),
        (Fault::Status(400), Unavailable::Protocol),
        (Fault::Body(b"{\"access_token\":\"\"}".to_vec()), Unavailable::Protocol),
        (Fault::Body(b"{\"access_token\":\"a\\nb\"}".to_vec()), Unavailable::Protocol),
    ] {
        stand.fake.fail_logins(Some(fault.clone()));
        assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(expected), "{fault:?}");
    }
    stand.fake.fail_logins(None);
    found(plainly(&stand, "C02X").await);
}

#[tokio::test]
async fn a_client_that_is_refused_by_400_is_refused_and_not_tried_again_at_once() {
    let (_, stand) = two().await;
    stand.fake.fail_logins(Some(Fault::Answer(400, br#"{"error":"invalid_client"}"#.to_vec())));
    for _ in 0..10 {
        assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::AuthRejected));
    }
    assert_eq!(stand.fake.logins(), 1);
}

#[tokio::test]
async fn the_cookie_of_the_node_that_gave_the_token_is_sent_back() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.sticky = true);
    for _ in 0..3 {
        found(plainly(&stand, "C02X").await);
    }
    assert_eq!(stand.fake.logins(), 1);
}

#[tokio::test]
async fn a_server_that_starts_is_not_one_without_devices() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.starting = true);
    assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::ServerError(None)));
}
