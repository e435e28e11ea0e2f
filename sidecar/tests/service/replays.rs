//! Tests of equal bytes before and after an end of the service.

use nix::sys::signal::Signal;
use proto::v1::Verdict;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};

use crate::served::{DEVICE, Filter, Folder, Served, body};

const OTHER: &str = "spiffe://example.org/other";

/// Attaches a filter whose caller is another one that may call.
async fn other(served: &Served) -> Filter {
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::URI(OTHER.try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let mut filter = served.attach().await;
    filter.certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    filter
}

#[tokio::test]
async fn g8_after_a_restart_equal_bytes_are_their_callers_and_nobody_elses() {
    let folder = Folder::new();
    folder.change("stepward.toml", "callers = [", &format!("callers = [\"uri:{OTHER}\", "));
    let mut served = folder.serve();
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let (allowed, denied, new) = (body(DEVICE, "{}"), body("STRANGER", "{}"), body(DEVICE, r#"{"x":1}"#));
        let mut filter = served.attach().await;
        assert_eq!(filter.ask_with(allowed.clone()).await.verdict(), Verdict::Allow);
        assert_eq!(filter.ask_with(denied.clone()).await.verdict(), Verdict::Deny);
        drop(filter);
        // The command asks for what is kept, and by that waits until it is.
        assert!(served.folder.run(&["decisions"]).status.success());
        served.signal(end);
        served.ended();
        served = served.again();
        let mut stranger = other(&served).await;
        for sent in [&allowed, &denied] {
            let answer = stranger.ask_with(sent.clone()).await;
            assert_eq!((answer.verdict(), &*answer.code), (Verdict::Refuse, "replayed_by_another"), "{end}");
        }
        assert_eq!(stranger.ask_with(new.clone()).await.verdict(), Verdict::Allow, "{end}: it may call");
        let mut filter = served.attach().await;
        assert_eq!(filter.ask_with(allowed.clone()).await.verdict(), Verdict::Allow, "{end}: its own second attempt");
        assert_eq!(filter.ask_with(denied.clone()).await.verdict(), Verdict::Deny, "{end}");
        assert_eq!(filter.ask_with(new).await.verdict(), Verdict::Refuse, "{end}");
    }
}
