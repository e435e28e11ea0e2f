//! Tests of what is Jamf Pro's own.

mod list;
mod login;
mod operator;
mod records;

use std::sync::Arc;
use std::time::Duration;

use engine::cache::Terms;
use engine::provider::{self, Context, Provider, ProviderSettings};
use fakes::jamf::Jamf;
use fakes::{Device, Fake, Fault};
use inventory::{Answer, Change, Listed, Question, Source, Subject, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fact, Fields, Form, Record};
use posture::time::UnixTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Stand;

const LINES: &str = "type = \"jamf\"\nbase_url = \"{url}\"\nclient_id = \"client\"\nclient_secret = { env = \"SECRET\" }";

/// Jamf Pro with no device in it.
pub(crate) async fn stand() -> Stand {
    with(&Jamf::new()).await
}

async fn with(jamf: &Jamf) -> Stand {
    Stand::open(Fake::start(jamf.clone()).await, LINES)
}

/// Makes a Jamf Pro with one computer, `C02X`, and one phone, `F2LX`.
async fn two() -> (Jamf, Stand) {
    let jamf = Jamf::new();
    let stand = with(&jamf).await;
    stand.fake.set(vec![Device::computer("C02X"), Device::phone("F2LX")]);
    (jamf, stand)
}

async fn hinted(stand: &Stand, serial: &str, hint: Form) -> Answer {
    let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
    let deadline = Instant::now() + Duration::from_secs(3);
    stand.inventory.lookup(&Question { device, need: Fields::NONE, hint: Some(hint), deadline, way: Way::Webhook }).await
}

async fn plainly(stand: &Stand, serial: &str) -> Answer {
    stand.ask(IdentifierKind::Serial, serial, Fields::NONE).await
}

fn paths(stand: &Stand) -> Vec<String> {
    stand.fake.lookups().into_iter().map(|seen| seen.path).collect()
}

async fn list(stand: &Stand, since: Option<UnixTime>) -> (Vec<Record>, Result<Listed, Unavailable>) {
    let (sender, mut pages) = mpsc::channel(1000);
    let listed = stand.inventory.list(since, stand.inventory.fields(), sender).await;
    let mut records = Vec::new();
    while let Some(page) = pages.recv().await {
        records.extend(page);
    }
    (records, listed)
}

/// Makes the provider of a stand as the service has it, with its cache before it.
fn provider(stand: &Stand, lines: &str) -> Arc<dyn Provider> {
    let remote = crate::remote(&format!("{}\n{lines}", LINES.replace("{url}", &stand.fake.url())));
    let secrets = [posture::secret::Secret::new(b"secret".to_vec())];
    provider::open("it", &ProviderSettings::Remote(remote), &secrets, None, &Context::default()).unwrap()
}

#[tokio::test]
async fn a13_a_device_of_the_other_kind_than_a_binding_mode_names_is_none() {
    let (_, stand) = two().await;
    let ask = async |provider: &dyn Provider, serial: &str, hint| {
        let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);
        let question = Question { device: device.clone(), need: Fields::NONE, hint, deadline, way: Way::Webhook };
        let looked = provider.lookup(&question, Terms::default()).await;
        assert!(provider.stands(&device, &looked));
        match looked.answer {
            Answer::Found(_) => true,
            Answer::NotFound => false,
            other => panic!("{other:?}"),
        }
    };
    let binding = provider(&stand, "device_group = \"Fit phones\"\nmode_is_binding = true");
    let loose = provider(&stand, "device_group = \"Fit phones\"");
    // The second time the answers come from the cache.
    for _ in 0..2 {
        for (serial, form, other) in [("C02X", Form::Computer, Form::MobileDevice), ("F2LX", Form::MobileDevice, Form::Computer)] {
            assert!(!ask(&*binding, serial, Some(other)).await, "{serial}");
            assert!(ask(&*binding, serial, Some(form)).await, "{serial}");
            assert!(ask(&*binding, serial, None).await, "{serial}");
            assert!(ask(&*loose, serial, Some(other)).await, "{serial}");
        }
    }
}

fn found(answer: Answer) -> Arc<Record> {
    match answer {
        Answer::Found(record) => record,
        other => panic!("{other:?}"),
    }
}

fn text(text: &str) -> Fact<String> {
    Fact::Value(text.to_owned())
}

#[tokio::test]
async fn an_empty_inventory_has_no_device() {
    assert_eq!(stand().await.serial("C02X").await, Answer::NotFound);
}

#[tokio::test]
async fn a_device_is_found_by_its_udid_of_either_kind() {
    let (_, stand) = two().await;
    for device in [Device::computer("C02X"), Device::phone("F2LX")] {
        let record = found(stand.ask(IdentifierKind::Udid, &device.udid.to_lowercase(), Fields::NONE).await);
        assert_eq!(record.serial, Fact::Value(device.serial));
    }
    assert_eq!(stand.ask(IdentifierKind::Udid, "C02X", Fields::NONE).await, Answer::NotFound);
    assert_eq!(stand.ask(IdentifierKind::Hostname, "C02X", Fields::NONE).await, Answer::InvalidIdentifier);
}

#[tokio::test]
async fn a_wildcard_is_never_asked_for() {
    let (jamf, stand) = two().await;
    for serial in ["C02*", "*", "X\" or general.name==\"*"] {
        assert_eq!(stand.serial(serial).await, Answer::InvalidIdentifier, "{serial}");
    }
    assert_eq!(jamf.filters(), [""; 0]);
}

#[tokio::test]
async fn whatever_is_asked_for_stays_one_literal() {
    let (jamf, stand) = two().await;
    for serial in
        ["X',Y", "X' or 1 eq 1", "a&b=c", "#", "%00", "../", "(a,b)", "X\",udid==\"Y", "\\", "\\\"", "x;y=in=(z)", "{{.}}", "a+b c"]
    {
        assert_eq!(plainly(&stand, serial).await, Answer::NotFound, "{serial}");
        let literals = jamf.literals();
        assert!(literals.iter().rev().take(2).all(|literals| *literals == Some(vec![serial.to_owned()])), "{serial}: {literals:?}");
    }
}

#[tokio::test]
async fn a3_both_kinds_are_asked_whatever_the_mode_says() {
    let (_, stand) = two().await;
    for hint in [Form::Computer, Form::MobileDevice] {
        stand.fake.forget();
        found(hinted(&stand, "C02X", hint).await);
        let mut asked = paths(&stand);
        asked.sort();
        assert_eq!(asked, ["/api/v2/mobile-devices/detail", "/api/v4/computers-inventory"]);
    }
    assert_eq!(hinted(&stand, "NONE", Form::Computer).await, Answer::NotFound);
    stand.fake.add(Device { lost: true, managed: false, ..Device::phone("C02X") });
    for hint in [Form::Computer, Form::MobileDevice] {
        assert_eq!(hinted(&stand, "C02X", hint).await, Answer::Ambiguous, "what is remembered of one mode is believed of the other");
    }
}

#[tokio::test]
async fn one_serial_number_of_both_kinds_is_ambiguous() {
    let (_, stand) = two().await;
    stand.fake.add(Device::phone("C02X"));
    assert_eq!(plainly(&stand, "C02X").await, Answer::Ambiguous);
}

#[tokio::test]
async fn two_records_of_one_serial_number_are_ambiguous() {
    let (_, stand) = two().await;
    stand.fake.add(Device { id: "77".to_owned(), managed: false, ..Device::computer("c02x") });
    assert_eq!(plainly(&stand, "C02X").await, Answer::Ambiguous);
}

#[tokio::test]
async fn a3_half_an_answer_is_none_and_ends_no_ambiguity() {
    let (jamf, stand) = two().await;
    plainly(&stand, "C02X").await;
    for (fault, expected) in [(Fault::Hang, Unavailable::Timeout), (Fault::Status(503), Unavailable::ServerError(None))] {
        // Either of the two requests may be the first, and fails.
        stand.fake.fail_next(1, fault);
        assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(expected));
    }
    stand.fake.add(Device { lost: true, managed: false, ..Device::phone("C02X") });
    let cache = stand.cache();
    assert_eq!(stand.ask_through(&cache, "C02X").await, Answer::Ambiguous);
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    let device = DeviceId::new(IdentifierKind::Serial, "C02X").unwrap();
    cache.purge(Some(&device));
    assert_eq!(stand.ask_through(&cache, "C02X").await, Answer::Unavailable(Unavailable::Forbidden));
}

#[tokio::test]
async fn a13_an_inventory_that_may_not_be_read_takes_nothing_from_the_one_that_a_binding_mode_names() {
    let (jamf, stand) = two().await;
    let binding = Stand::open(stand.fake, &format!("{LINES}\nmode_is_binding = true"));
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    found(hinted(&binding, "C02X", Form::Computer).await);
    assert_eq!(hinted(&binding, "NONE", Form::Computer).await, Answer::NotFound);
    assert_eq!(hinted(&binding, "C02X", Form::MobileDevice).await, Answer::Unavailable(Unavailable::Forbidden));
    assert_eq!(plainly(&binding, "C02X").await, Answer::Unavailable(Unavailable::Forbidden));
}

#[tokio::test]
async fn a13_what_was_said_while_an_inventory_may_not_be_read_answers_no_mode_that_means_it() {
    let forbidden = Answer::Unavailable(Unavailable::Forbidden);
    for (privilege, form, other, own) in [
        ("Read Mobile Devices", Form::MobileDevice, Form::Computer, "F2LX"),
        ("Read Computers", Form::Computer, Form::MobileDevice, "C02X"),
    ] {
        let (jamf, stand) = two().await;
        jamf.set(|knobs| knobs.privileges.retain(|known| *known == privilege));
        let binding = provider(&stand, "mode_is_binding = true");
        let ask = async |serial: &str, hint| {
            let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
            let deadline = Instant::now() + Duration::from_secs(3);
            let question = Question { device: device.clone(), need: Fields::NONE, hint, deadline, way: Way::Webhook };
            let looked = binding.lookup(&question, Terms::default()).await;
            assert!(binding.stands(&device, &looked), "{serial} {hint:?}");
            (looked.answer, looked.source)
        };
        // Nobody knows whether the inventory that may not be read has the device, whether it was found in the other one or not.
        for serial in ["NONE", own] {
            let (first, _) = ask(serial, Some(form)).await;
            assert_eq!(matches!(first, Answer::Found(_)), serial == own);
            for hint in [Some(other), None] {
                assert_eq!(ask(serial, hint).await.0, forbidden, "{serial} {hint:?}");
            }
            assert_eq!(ask(serial, Some(form)).await, (first, Source::Cached), "it is remembered for its own mode");
        }
        // Of two questions at once neither gets the answer to the other one.
        let ((one, _), (two, _)) = tokio::join!(ask("AT-ONCE", Some(form)), ask("AT-ONCE", Some(other)));
        assert_eq!((one, two), (Answer::NotFound, forbidden.clone()));
    }
}

#[tokio::test]
async fn a13_that_one_inventory_has_no_such_device_takes_back_nothing_of_the_other_one() {
    let (jamf, stand) = two().await;
    let binding = provider(&stand, "mode_is_binding = true");
    let ask = async |hint, terms| {
        let device = DeviceId::new(IdentifierKind::Serial, "F2LX").unwrap();
        let deadline = Instant::now() + Duration::from_secs(3);
        let question = Question { device: device.clone(), need: Fields::NONE, hint, deadline, way: Way::Webhook };
        let looked = binding.lookup(&question, terms).await;
        assert!(binding.stands(&device, &looked), "{hint:?}");
        (looked.answer, looked.source)
    };
    let (known, source) = ask(Some(Form::MobileDevice), Terms::default()).await;
    assert!(matches!((&known, source), (Answer::Found(_), Source::Live)), "{known:?} {source:?}");
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    tokio::time::sleep(Duration::from_millis(5)).await;
    let anew = Terms { not_older: Some(Duration::ZERO), ..Terms::default() };
    assert_eq!(ask(Some(Form::Computer), anew).await, (Answer::NotFound, Source::Live), "of the inventory that may be read");
    assert_eq!(ask(Some(Form::MobileDevice), Terms::default()).await, (known, Source::Cached));
    assert_eq!(ask(Some(Form::Computer), Terms::default()).await.0, Answer::NotFound);
}

#[tokio::test]
async fn a3_a_double_behind_an_ignored_filter_is_found_on_a_later_page() {
    let (_, stand) = two().await;
    let mut fleet: Vec<_> =
        (0..150).map(|number| Device { id: (number + 1).to_string(), ..Device::computer(&format!("C{number:04}")) }).collect();
    fleet.push(Device { id: "151".to_owned(), managed: false, ..Device::computer("C0000") });
    stand.fake.set(fleet);
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(plainly(&stand, "C0000").await, Answer::Ambiguous);
}

#[tokio::test]
async fn only_the_kinds_that_are_set_are_asked_for() {
    let jamf = Jamf::new();
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    let stand = Stand::open(Fake::start(jamf).await, &format!("{LINES}\nkinds = [\"computer\"]"));
    stand.fake.set(vec![Device::computer("C02X"), Device::phone("F2LX")]);
    found(plainly(&stand, "C02X").await);
    assert_eq!(plainly(&stand, "F2LX").await, Answer::NotFound);
    assert!(paths(&stand).iter().all(|path| path == "/api/v4/computers-inventory"));
}

#[tokio::test]
async fn a_privilege_that_is_missing_is_never_a_device_that_is_missing() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.privileges.retain(|privilege| *privilege == "Read Computers"));
    assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::Forbidden), "nobody knows whether a phone has it too");
    assert_eq!(plainly(&stand, "F2LX").await, Answer::Unavailable(Unavailable::Forbidden));
    assert_eq!(hinted(&stand, "F2LX", Form::MobileDevice).await, Answer::Unavailable(Unavailable::Forbidden));
    assert_eq!(hinted(&stand, "F2LX", Form::Computer).await, Answer::Unavailable(Unavailable::Forbidden));
}

#[tokio::test]
async fn the_version_that_the_server_has_is_remembered() {
    let (jamf, stand) = two().await;
    for (versions, expected) in [(vec![3, 2, 1], "v3"), (vec![1], "v1"), (vec![4], "v4")] {
        jamf.set(|knobs| knobs.versions = versions.into_iter().collect());
        let record = found(hinted(&stand, "C02X", Form::Computer).await);
        assert_eq!(record.last_seen, Fact::Value(UnixTime::parse("2026-11-24T08:00:00.123Z").unwrap()), "{expected}");
        stand.fake.forget();
        found(hinted(&stand, "C02X", Form::Computer).await);
        let computers: Vec<_> = paths(&stand).into_iter().filter(|path| path.ends_with("computers-inventory")).collect();
        assert_eq!(computers, [format!("/api/{expected}/computers-inventory")]);
    }
    jamf.set(|knobs| knobs.versions.clear());
    assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn a_record_without_its_serial_number_is_not_taken_for_none() {
    let (_, stand) = two().await;
    stand.fake.fail(Some(Fault::Body(br#"{"totalCount":1,"results":[{"id":"1","mobileDeviceId":"1","hardware":null}]}"#.to_vec())));
    assert_eq!(plainly(&stand, "C02X").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn a_filter_that_is_ignored_hides_no_device_and_denies_none() {
    let (_, stand) = two().await;
    stand.fake.set((0..300).map(|number| Device { id: (number + 1).to_string(), ..Device::computer(&format!("C{number:04}")) }).collect());
    stand.fake.fail(Some(Fault::FilterIgnored));
    assert_eq!(found(hinted(&stand, "C0299", Form::Computer).await).serial, text("C0299"));
    assert_eq!(hinted(&stand, "C9999", Form::Computer).await, Answer::Unavailable(Unavailable::FilterIgnored));
    stand.fake.fail(Some(Fault::WrongDevice));
    assert_eq!(hinted(&stand, "C0001", Form::Computer).await, Answer::Unavailable(Unavailable::FilterIgnored));
}

#[tokio::test]
async fn a_filter_that_is_ignored_is_not_paged_after_for_ever() {
    let (_, stand) = two().await;
    stand.fake.set((0..3000).map(|number| Device { id: (number + 1).to_string(), ..Device::computer(&format!("C{number:04}")) }).collect());
    stand.fake.fail(Some(Fault::FilterIgnored));
    let device = DeviceId::new(IdentifierKind::Serial, "C9999").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let question = Question { device, need: Fields::NONE, hint: Some(Form::Computer), deadline, way: Way::Webhook };
    assert_eq!(stand.inventory.lookup(&question).await, Answer::Unavailable(Unavailable::FilterIgnored));
    assert!(paths(&stand).len() <= 21 + 1, "{}", paths(&stand).len());
}

#[tokio::test]
async fn a_count_without_its_rows_proves_nothing() {
    let (jamf, stand) = two().await;
    jamf.set(|knobs| knobs.total = Some(3));
    assert_eq!(plainly(&stand, "NONE").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(b"{\"results\":[]}".to_vec())));
    assert_eq!(plainly(&stand, "NONE").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(Some(Fault::Body(b"{\"totalCount\":0,\"results\":null}".to_vec())));
    assert_eq!(plainly(&stand, "NONE").await, Answer::Unavailable(Unavailable::Protocol));
}

#[tokio::test]
async fn g11_a_record_that_comes_twice_on_one_page_is_no_answer() {
    let (_, stand) = two().await;
    let row = r#"{"id":"1","mobileDeviceId":"1","hardware":{"serialNumber":"C02X"}}"#;
    stand.fake.fail(Some(Fault::Body(format!(r#"{{"totalCount":2,"results":[{row},{row}]}}"#).into_bytes())));
    assert_eq!(hinted(&stand, "C02X", Form::Computer).await, Answer::Unavailable(Unavailable::Protocol));
}

/// A lookup is two requests, and the second one waits for the first.
#[tokio::test]
async fn a12_a_request_that_waits_for_another_of_ours_lets_no_old_record_answer() {
    let stand = Stand::open(Fake::start(Jamf::new()).await, &format!("{LINES}\n[provider.it.limits]\nconnections = 1"));
    stand.fake.set(vec![Device::computer("C02X")]);
    let cache = stand.cache();
    assert!(matches!(stand.ask_through(&cache, "C02X").await, Answer::Found(_)));
    stand.fake.remove("C02X");
    cache.apply(&[Change { device: Subject::Everything, revoking: false }]);
    stand.fake.delay(Duration::from_millis(900));
    assert_eq!(stand.ask_through(&cache, "C02X").await, Answer::NotFound, "each request was answered within 0.9 s");
}
