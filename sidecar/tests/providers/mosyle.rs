//! Tests of what is Mosyle's own.

use std::time::Duration;

use fakes::mosyle::{Header, Mosyle, Product};
use fakes::{Device, Fake, Fault};
use inventory::{Answer, Listing, State, Unavailable};
use posture::identity::IdentifierKind;
use posture::record::{Fact, Field, Fields, Form, Record};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Stand;

pub(crate) async fn stand() -> Stand {
    of(Mosyle::new(Product::Business), "").await
}

async fn of(mosyle: Mosyle, more: &str) -> Stand {
    let product = if mosyle.product == Product::Business { "business" } else { "manager" };
    let fake = Fake::start(mosyle).await;
    let lines = format!(
        "type = \"mosyle\"\nbase_url = \"{{url}}/v1\"\nproduct = \"{product}\"\naccess_token = {{ env = \"SECRET\" }}\n\
         email = \"api@example.org\"\npassword = {{ env = \"SECRET\" }}\n{more}"
    );
    Stand::open(fake, &lines)
}

/// Makes both products with pages from 0 and from 1, and numbers as texts and as numbers.
async fn all() -> Vec<Stand> {
    let mut stands = Vec::new();
    for product in [Product::Business, Product::Manager] {
        for (first_page, numbers_as_text) in [(0, true), (1, true), (0, false), (1, false)] {
            stands.push(of(Mosyle { first_page, numbers_as_text, ..Mosyle::new(product) }, "").await);
        }
    }
    stands
}

async fn listed(stand: &Stand) -> (Vec<Record>, Result<bool, Unavailable>) {
    let (sender, mut pages) = mpsc::channel(1000);
    let end = stand.inventory.list(None, Fields::NONE, sender).await.map(|listed| listed.complete);
    let mut records = Vec::new();
    while let Some(page) = pages.recv().await {
        records.extend(page);
    }
    (records, end)
}

#[tokio::test]
async fn reads_a_whole_record_of_either_product() {
    for product in [Product::Business, Product::Manager] {
        let stand = of(Mosyle::new(product), "attributes = [\"Desk\"]").await;
        stand.fake.set(vec![Device::computer("C02A").in_groups(&["Staff", "Blue"]), Device::phone("F4GA")]);
        let record = stand.record("c02a").await;
        assert_eq!(record.serial, Fact::Value("C02A".to_owned()));
        assert_eq!(record.form, Fact::Value(Form::Computer));
        assert_eq!((&record.managed, &record.supervised), (&Fact::Value(true), &Fact::Value(true)));
        assert_eq!(record.compromised, Fact::Value(false));
        let groups: Vec<&str> = record.groups.value().unwrap().iter().map(|group| group.name.as_str()).collect();
        assert_eq!(groups, ["Staff", "Blue"]);
        assert_eq!(record.user.email, Fact::Value("ada@example.org".to_owned()));
        assert_eq!(record.last_seen.value().unwrap().as_nanos(), 1_795_507_200_000_000_000);
        assert_eq!(record.data, Fact::Value(r#"{"Desk":"4.12"}"#.to_owned()));
        let never = if product == Product::Manager { Fields::of(&[Field::EnrolledAt]) } else { Fields::NONE };
        assert_eq!(stand.inventory.fields().without(record.known()), never, "the article of Manager has no date of enrolment");
        let phone = stand.record("F4GA").await;
        assert_eq!((&phone.form, &phone.lost), (&Fact::Value(Form::MobileDevice), &Fact::Value(false)));
        assert_eq!(stand.serial("NONE").await, Answer::NotFound);
    }
}

#[tokio::test]
async fn d2_a_device_was_seen_when_it_last_gave_any_sign() {
    let stand = stand().await;
    let seen = async |beat: Value, checkin: Value| {
        stand.fake.set(vec![Device::computer("C02A").with("date_last_beat", beat).with("date_checkin", checkin)]);
        stand.record("C02A").await.last_seen.clone()
    };
    let at = |seconds: i64| Fact::Value(posture::time::UnixTime::from_nanos(seconds * 1_000_000_000));
    assert_eq!(seen(json!("1710266724"), json!("1795507200")).await, at(1_795_507_200));
    assert_eq!(seen(json!("1795507200"), json!(null)).await, at(1_795_507_200));
    assert_eq!(seen(json!(null), json!("1710266724")).await, at(1_710_266_724));
    assert_eq!((seen(json!(null), json!("0")).await, seen(json!("soon"), json!(null)).await), (Fact::Absent, Fact::Unknown));
}

#[tokio::test]
async fn data_is_nothing_where_no_attribute_was_asked_for() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A")]);
    assert!(!stand.record("C02A").await.knows(Field::Data) && !stand.inventory.fields().contains(Field::Data));
}

#[tokio::test]
async fn every_family_is_asked_once_for_every_device() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A")]);
    stand.record("C02A").await;
    stand.serial("C02B").await;
    let mut families: Vec<Value> = stand.fake.lookups().iter().map(|seen| seen.json()["options"]["os"].clone()).collect();
    families.sort_by_key(Value::to_string);
    assert_eq!(families, ["ios", "ios", "mac", "mac"]);
    assert_eq!(stand.fake.logins(), 1);
}

#[tokio::test]
async fn a_family_that_does_not_answer_leaves_the_device_open() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A")]);
    stand.fake.fail_next(1, Fault::Status(500));
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::ServerError(None)));
    stand.fake.fail_next(1, Fault::Status(403));
    assert_eq!(stand.serial("C02B").await, Answer::Unavailable(Unavailable::Forbidden));
}

#[tokio::test]
async fn a_serial_number_in_two_families_is_ambiguous() {
    let stand = stand().await;
    stand.fake.set(vec![Device::computer("C02A"), Device::phone("C02A")]);
    assert_eq!(stand.serial("C02A").await, Answer::Ambiguous);
    stand.fake.set(vec![Device::computer("C02A"), Device::computer("C02A")]);
    assert_eq!(stand.serial("C02A").await, Answer::Ambiguous);
}

#[tokio::test]
async fn a_deleted_record_gives_way_to_the_one_that_took_its_place() {
    let stand = stand().await;
    let deleted = Device::computer("C02A").with("is_deleted", json!("1"));
    stand.fake.set(vec![deleted.clone(), Device::computer("C02A")]);
    assert_eq!(stand.record("C02A").await.managed, Fact::Value(true));
    stand.fake.set(vec![deleted]);
    assert_eq!(stand.record("C02A").await.managed, Fact::Value(false));
}

#[tokio::test]
async fn a3_a_deleted_record_gives_way_in_a_list_as_in_an_answer() {
    let stand = stand().await;
    let deleted = || Device::computer("C02A").with("is_deleted", json!("1"));
    for (devices, managed) in [
        (vec![deleted(), Device::computer("C02A")], vec![true]),
        (vec![Device::computer("C02A"), deleted()], vec![true]),
        (vec![deleted()], vec![false]),
    ] {
        stand.fake.set(devices);
        let (sender, mut pages) = mpsc::channel(100);
        let listed = stand.inventory.list(None, Fields::NONE, sender).await.unwrap();
        let mut said = Vec::new();
        while let Some(page) = pages.recv().await {
            said.extend(page.into_iter().map(|record| record.managed == Fact::Value(true)));
        }
        assert_eq!((listed.complete, said), (true, managed));
    }
}

#[tokio::test]
async fn states_that_are_new_or_odd_are_no_management() {
    let stand = stand().await;
    for (field, value, expected) in [
        ("is_deleted", json!("1"), Fact::Value(false)),
        ("is_deleted", json!("maybe"), Fact::Unknown),
        ("is_deleted", json!(null), Fact::Value(true)),
        ("status", json!("IN"), Fact::Value(true)),
        ("status", json!("LIMBO"), Fact::Value(false)),
        ("status", json!(null), Fact::Unknown),
        ("status", json!("installed"), Fact::Value(false)),
    ] {
        stand.fake.set(vec![Device::computer("C02A").with(field, value.clone())]);
        assert_eq!(stand.record("C02A").await.managed, expected, "{field} {value}");
    }
    let other = of(Mosyle::new(Product::Business), "managed_statuses = [\"LIMBO\"]").await;
    other.fake.set(vec![Device::computer("C02A").with("status", json!("LIMBO")), Device::computer("C02B")]);
    assert_eq!(other.record("C02A").await.managed, Fact::Value(true));
    assert_eq!(other.record("C02B").await.managed, Fact::Value(false));
}

#[tokio::test]
async fn tags_come_in_three_forms() {
    let stand = stand().await;
    for (tags, expected) in [
        (json!("Staff, Blue"), Some(vec!["Staff", "Blue"])),
        (json!(["Staff", "Blue"]), Some(vec!["Staff", "Blue"])),
        (json!(""), Some(vec![])),
        (json!(null), None),
    ] {
        stand.fake.set(vec![Device::computer("C02A").with("tags", tags.clone())]);
        let record = stand.record("C02A").await;
        let names = record.groups.value().map(|groups| groups.iter().map(|group| group.name.as_str()).collect());
        assert_eq!((names, record.groups.is_known()), (expected, true), "{tags}");
    }
    stand.fake.set(vec![Device::computer("C02A").with("tags", json!({"a": 1}))]);
    assert_eq!(stand.record("C02A").await.groups, Fact::Unknown);
}

#[tokio::test]
async fn looks_through_all_pages_where_the_filter_is_not_applied() {
    let others: Vec<Device> = (0..300).map(|number| Device::computer(&format!("X{number}"))).collect();
    for stand in all().await {
        stand.fake.fail(Some(Fault::FilterIgnored));
        stand.fake.set([others.clone(), vec![Device::computer("C02A")]].concat());
        assert!(matches!(stand.serial("C02A").await, Answer::Found(_)));
        stand.fake.set(others.clone());
        assert_eq!(stand.serial("C02A").await, Answer::NotFound);
    }
    let stand = stand().await;
    stand.fake.fail(Some(Fault::FilterIgnored));
    stand.fake.set((0..1500).map(|number| Device::computer(&format!("X{number}"))).collect());
    assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::FilterIgnored));
}

#[tokio::test]
async fn lists_every_device_of_every_family_whatever_the_number_of_the_first_page() {
    for stand in all().await {
        assert_eq!(stand.inventory.listing(), Listing::Whole);
        for count in [0, 1, 100, 250] {
            let macs = (0..count).map(|number| Device::computer(&format!("C{number}")));
            let phones = (0..7).map(|number| Device::phone(&format!("F{number}")));
            stand.fake.set(macs.chain(phones).collect());
            let (records, end) = listed(&stand).await;
            assert_eq!((records.len(), end), (count + 7, Ok(true)));
        }
    }
}

#[tokio::test]
async fn a_list_that_changes_on_the_way_is_not_complete() {
    let stand = stand().await;
    stand.fake.set((0..250).map(|number| Device::computer(&format!("C{number}"))).collect());
    stand.fake.delay(Duration::from_millis(20));
    let (sender, mut pages) = mpsc::channel(1);
    let inventory = stand.inventory.clone();
    let listing = tokio::spawn(async move { inventory.list(None, Fields::NONE, sender).await });
    assert_eq!(pages.recv().await.unwrap().len(), 100);
    stand.fake.remove("C1");
    while pages.recv().await.is_some() {}
    assert!(!listing.await.unwrap().is_ok_and(|listed| listed.complete));
}

/// Makes a provider of one family, whose pages are these.
async fn pages(pages: Vec<Value>) -> Stand {
    let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
        if request.path.ends_with("/login") {
            return fakes::server::Answer::json(json!({})).with("authorization", "Bearer t");
        }
        let number = request.json()["options"]["page"].as_u64().unwrap_or(0);
        let page = usize::try_from(number).ok().and_then(|number| pages.get(number).cloned());
        let page = page.unwrap_or(json!({"status": "DEVICES_NOTFOUND"}));
        fakes::server::Answer::json(json!({"status": "OK", "response": [page]}))
    }))
    .await;
    let lines = "type = \"mosyle\"\nbase_url = \"{url}/v1\"\naccess_token = { env = \"SECRET\" }\nemail = \"api@example.org\"\n\
                 password = { env = \"SECRET\" }\nfamilies = [\"mac\"]";
    Stand::open(fake, lines)
}

fn device(serial: &str, lost: &str) -> Value {
    json!({"serial_number": serial, "deviceudid": format!("U-{serial}"), "lostmode_status": lost})
}

#[tokio::test]
async fn a3_a_device_that_comes_again_as_another_is_sent_twice_and_the_list_is_not_complete() {
    let (one, other) = (device("C1", "DISABLED"), device("C2", "DISABLED"));
    let page = |devices: &[&Value]| json!({"devices": devices, "rows": 3, "page_size": 2});
    for (again, records, complete) in [(device("C1", "DISABLED"), 3, true), (device("C1", "ENABLED"), 4, false)] {
        let third = device("C3", "DISABLED");
        let stand = pages(vec![page(&[&one, &other]), page(&[&again, &third])]).await;
        let (devices, end) = listed(&stand).await;
        assert_eq!((devices.len(), end), (records, Ok(complete)), "{again}");
    }
    let stand = pages(vec![page(&[&one, &other]), page(&[&device("C1", "ENABLED"), &device("C3", "DISABLED")])]).await;
    assert_eq!(stand.serial("C1").await, Answer::Ambiguous, "as a single call has it");
}

#[tokio::test]
async fn d13_a_miss_by_one_spelling_says_nothing_of_another() {
    let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
        if request.path.ends_with("/login") {
            return fakes::server::Answer::json(json!({})).with("authorization", "Bearer t");
        }
        // The answer is that of a Mosyle that minds the case.
        let wanted = request.json()["options"]["serial_numbers"].as_array().unwrap().contains(&json!("VMware-56 4d"));
        let devices: Vec<_> = wanted.then(|| device("VMware-56 4d", "DISABLED")).into_iter().collect();
        fakes::server::Answer::json(json!({"status": "OK", "response": [{"rows": devices.len(), "devices": devices}]}))
    }))
    .await;
    let lines = "type = \"mosyle\"\nbase_url = \"{url}/v1\"\naccess_token = { env = \"SECRET\" }\nemail = \"api@example.org\"\n\
                 password = { env = \"SECRET\" }\nfamilies = [\"mac\"]";
    let stand = Stand::open(fake, lines);
    for guess in ["VMWARE-56 4D", "vmware-56 4d"] {
        let cache = stand.cache();
        assert_eq!(stand.ask_through(&cache, guess).await, Answer::NotFound);
        let found = stand.ask_through(&cache, "VMware-56 4d").await;
        assert!(matches!(found, Answer::Found(_)), "{guess}: {found:?}");
    }
}

#[tokio::test]
async fn a3_doubles_are_told_by_the_whole_answer() {
    let row = |udid: &str, deleted: bool, lost: &str| json!({"serial_number": "C1", "deviceudid": udid, "is_deleted": if deleted { "1" } else { "0" }, "lostmode_status": lost});
    let page = |devices: &[Value]| json!({"devices": devices, "rows": 3, "page_size": 2});
    let (left, gone) = (row("A", true, "DISABLED"), row("B", true, "DISABLED"));
    for (first, second, expected) in [
        (vec![left.clone(), row("B", false, "DISABLED")], row("C", false, "ENABLED"), None),
        (vec![left.clone(), gone.clone()], row("C", false, "DISABLED"), Some("C")),
        (vec![row("A", false, "DISABLED"), gone.clone()], row("C", true, "DISABLED"), Some("A")),
        (vec![left, gone], row("C", true, "DISABLED"), None),
    ] {
        let stand = pages(vec![page(&first), page(&[second])]).await;
        match (stand.serial("C1").await, expected) {
            (Answer::Found(record), Some(udid)) => assert_eq!(record.udid, Fact::Value(udid.to_owned())),
            (answer, _) => assert_eq!((answer, expected), (Answer::Ambiguous, None)),
        }
    }
}

#[tokio::test]
async fn a_device_that_changes_while_the_first_page_is_read_again_costs_the_list_nothing() {
    let (one, other) = (device("C1", "DISABLED"), device("C2", "DISABLED"));
    let page = |devices: &[&Value]| json!({"devices": devices, "rows": 3, "page_size": 2});
    // The first page has the number 1.
    let pages = pages(vec![page(&[&one, &other]), page(&[&one, &device("C2", "ENABLED")]), page(&[&device("C3", "DISABLED")])]);
    let stand = pages.await;
    let (devices, end) = listed(&stand).await;
    assert_eq!((devices.len(), end), (4, Ok(true)), "of that one nothing is believed until it is asked for");
}

#[tokio::test]
async fn g10_a_page_of_nothing_but_one_serial_number_takes_no_time_to_speak_of() {
    let rows = |family: &str| {
        (0..20_000).map(|number| json!({"serial_number": "C1", "deviceudid": format!("{family}{number}")})).collect::<Vec<_>>()
    };
    let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
        if request.path.ends_with("/login") {
            return fakes::server::Answer::json(json!({})).with("authorization", "Bearer t");
        }
        let devices = rows(request.json()["options"]["os"].as_str().unwrap_or_default());
        fakes::server::Answer::json(json!({"status": "OK", "response": [{"devices": devices, "rows": 20_000, "page_size": 50_000}]}))
    }))
    .await;
    let lines = "type = \"mosyle\"\nbase_url = \"{url}/v1\"\naccess_token = { env = \"SECRET\" }\nemail = \"api@example.org\"\n\
                 password = { env = \"SECRET\" }";
    let stand = Stand::open(fake, lines);
    let device = posture::identity::DeviceId::new(IdentifierKind::Serial, "C1").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let question = inventory::Question { device, need: Fields::NONE, hint: None, deadline, way: inventory::Way::Webhook };
    assert_eq!(stand.inventory.lookup(&question).await, Answer::Ambiguous);
    assert!(Instant::now() < deadline, "each with each would be 400 million comparisons");
}

#[tokio::test]
async fn pages_that_end_before_their_count_are_no_answer() {
    let stand = stand().await;
    for payload in [
        json!({"devices": [], "rows": "3"}),
        json!({"devices": [{"serial_number": "X"}], "rows": "3", "page_size": "1"}),
        json!({"devices": [{"deviceudid": "X"}], "rows": 1}),
    ] {
        let answer = json!({"status": "OK", "response": [payload]});
        stand.fake.fail(Some(Fault::Body(answer.to_string().into_bytes())));
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Protocol), "{answer}");
    }
}

#[tokio::test]
async fn a_bad_status_below_a_good_one_is_no_answer() {
    let stand = stand().await;
    for status in ["MISSING_DATA", "UNKNOWN_COLUMNS", "DATA_WRONGFORMAT", ""] {
        let answer = json!({"status": "OK", "response": [{"status": status, "info": "x"}]});
        stand.fake.fail(Some(Fault::Body(answer.to_string().into_bytes())));
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Protocol), "{status}");
    }
}

#[tokio::test]
async fn the_token_may_come_in_any_case_and_not_be_missing() {
    for (header, works) in [(Header::Bearer, true), (Header::LowerCase, true), (Header::Bare, true), (Header::Missing, false)] {
        let stand = of(Mosyle { header, ..Mosyle::new(Product::Business) }, "").await;
        stand.fake.set(vec![Device::computer("C02A")]);
        let answer = stand.serial("C02A").await;
        assert_eq!(matches!(answer, Answer::Found(_)), works, "{header:?} {answer:?}");
        if !works {
            assert_eq!(answer, Answer::Unavailable(Unavailable::Protocol));
            assert!(stand.fake.lookups().is_empty());
        }
    }
}

#[tokio::test]
async fn fifty_lookups_with_a_token_that_was_taken_back_log_in_once() {
    let mosyle = Mosyle::new(Product::Manager);
    let stand = of(mosyle.clone(), "[provider.it.limits]\nconnections = 50").await;
    stand.fake.set(vec![Device::computer("C02A")]);
    stand.record("C02A").await;
    mosyle.revoke();
    let answers = futures::future::join_all((0..50).map(|_| stand.serial("C02A"))).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Found(_))), "{answers:?}");
    assert_eq!(stand.fake.logins(), 2);
}

#[tokio::test]
async fn a_refused_login_is_not_hammered() {
    let stand = stand().await;
    stand.fake.fail_logins(Some(Fault::Status(401)));
    for _ in 0..20 {
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::AuthRejected));
    }
    assert_eq!(stand.fake.logins(), 1, "accounts get locked");
}

#[tokio::test]
async fn a_unique_identifier_finds_only_what_has_it() {
    let stand = stand().await;
    stand.fake.set(vec![Device { udid: "00008103-AB".to_owned(), ..Device::computer("C02A") }]);
    let found = stand.ask(IdentifierKind::Udid, "00008103-ab", Fields::NONE).await;
    assert!(matches!(found, Answer::Found(_)), "{found:?}");
    assert_eq!(stand.ask(IdentifierKind::Udid, "C02A", Fields::NONE).await, Answer::NotFound);
    assert_eq!(stand.serial("00008103-AB").await, Answer::NotFound);
    assert_eq!(stand.ask(IdentifierKind::Hostname, "c02a", Fields::NONE).await, Answer::InvalidIdentifier);
}

#[tokio::test]
async fn an_identifier_is_asked_for_as_it_was_stated_or_not_at_all() {
    let stand = stand().await;
    for plain in ["c02a", "Parallels-A1 B2", "Z_1.2"] {
        stand.fake.forget();
        assert_eq!(stand.serial(plain).await, Answer::NotFound);
        assert_eq!(stand.fake.asked(), [plain, plain]);
    }
    stand.fake.forget();
    for nasty in ["X','Y", r#"X"],"os":"*"#, "*", "ü", "a/b", "%00"] {
        assert_eq!(stand.serial(nasty).await, Answer::InvalidIdentifier, "{nasty}");
    }
    assert!(stand.fake.lookups().is_empty());
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong() {
    let stand = stand().await;
    let soon = || Instant::now() + Duration::from_secs(3);
    assert!(stand.inventory.probe(soon()).await.iter().all(|finding| finding.state == State::Good));
    stand.fake.fail(Some(Fault::Status(403)));
    let findings = stand.inventory.probe(soon()).await;
    assert!(findings.iter().any(|finding| finding.check == "privilege to list mac" && finding.state == State::Bad));
    let other = self::stand().await;
    other.fake.fail_logins(Some(Fault::Status(401)));
    assert_eq!(other.inventory.probe(soon()).await[0].check, "credentials");
}

#[tokio::test]
async fn secrets_and_tokens_are_in_no_text() {
    let stand = stand().await;
    stand.serial("C02A").await;
    // `secret:` is the name of a field.
    let text = format!("{:?}", stand.inventory).replace("secret:", "");
    assert!(!text.contains("secret") && !text.contains("jwt-"), "{text}");
}

#[test]
fn refuses_settings_that_could_not_work() {
    let given = "type = \"mosyle\"\naccess_token = { env = \"A\" }\npassword = { env = \"B\" }\n";
    for (lines, message) in [
        ("", "has no `email`"),
        ("email = \"ada\"", "is not a mail address"),
        ("email = \"a@b\"\nproduct = \"school\"", "is no product"),
        ("email = \"a@b\"\nfamilies = [\"windows\"]", "is no family"),
        ("email = \"a@b\"\nfamilies = []", "`families` is empty"),
        ("email = \"a@b\"\nmanaged_statuses = []", "`managed_statuses` is empty"),
    ] {
        let panic = std::panic::catch_unwind(|| crate::remote(&format!("{given}{lines}"))).unwrap_err();
        let mistakes = panic.downcast_ref::<String>().unwrap();
        assert!(mistakes.contains(message), "{lines}\n{mistakes}");
    }
}
