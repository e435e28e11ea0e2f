//! Tests of what is the own of somebody's own inventory.

use fakes::inventory::Inventory as Form;
use fakes::{Device, Fake, Fault};
use inventory::{Answer, Listing, State, Unavailable};
use posture::identity::IdentifierKind;
use posture::record::{Compliance, Fact, Field, Fields};
use serde_json::json;
use settings::Environment;
use sidecar::config::Config;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Stand;

const FIELDS: &str = r#"
identifier = "/serial"
data = "/custom"
fields = { provider_id = "/id", udid = "/udid", name = "/name", form = "/form", os_version = "/os/version", platform = "/os/name", managed = "/mdm/enrolled", lost = "/mdm/lost", compliance = "/compliant", groups = "/groups", user.id = "/owner/login", "user.email" = "/owner/mail", last_seen = "/seen" }
"#;

const LISTED: &str = "path = \"/devices?serial={identifier}\"\nitems = \"/devices\"\ntotal = \"/total\"\ntoken = { env = \"SECRET\" }";
const SINGLE: &str = "path = \"/devices/{identifier}\"\nheaders = { X-Api-Key = { env = \"SECRET\" }, X-Tenant = \"acme\" }";
const POSTED: &str = "method = \"POST\"\npath = \"/query\"\nbody = '{\"filter\": {\"serial\": \"{identifier}\"}}'\nitems = \"/result/items\"\ntoken = { env = \"SECRET\" }";
const LIST: &str = "[provider.it.list]\npath = \"/all?page={page}\"\nitems = \"/devices\"\ntotal = \"/total\"";

pub(crate) async fn stand() -> Stand {
    of(Form::Listed, LISTED, LIST).await
}

async fn of(form: Form, ask: &str, after: &str) -> Stand {
    Stand::open(Fake::start(form).await, &format!("type = \"http\"\nbase_url = \"{{url}}\"\n{ask}\n{FIELDS}\n{after}"))
}

async fn each() -> [Stand; 3] {
    [of(Form::Listed, LISTED, "").await, of(Form::Single, SINGLE, "").await, of(Form::Posted, POSTED, "").await]
}

#[tokio::test]
async fn reads_a_whole_record_in_each_form() {
    for stand in each().await {
        stand.fake.set(vec![Device { id: "7".to_owned(), ..Device::computer("C02A") }, Device::phone("F4GA")]);
        let record = stand.record("c02a").await;
        assert_eq!(record.provider_id, "7");
        assert_eq!(record.serial, Fact::Value("C02A".to_owned()));
        assert_eq!(record.managed, Fact::Value(true));
        assert_eq!(record.compliance, Fact::Value(Compliance::Compliant));
        assert_eq!(record.groups.value().unwrap()[0].name, "All Managed");
        assert_eq!(record.user.email, Fact::Value("ada@example.org".to_owned()));
        assert_eq!(record.data, Fact::Value(r#"{"desk":"4.12"}"#.to_owned()));
        assert!(stand.inventory.fields().without(record.known()).is_empty());
        assert_eq!(stand.serial("NONE").await, Answer::NotFound);
    }
}

#[tokio::test]
async fn an_identifier_is_one_literal_whatever_stands_in_it() {
    for stand in each().await {
        for nasty in [r#"X","admin":"1"#, "a&serial=b", "a/../b", "%00", "../x", "?x=1#y", "{identifier}", "*", "ü 漢"] {
            assert_eq!(stand.serial(nasty).await, Answer::NotFound, "{nasty}");
        }
        let asked = [r#"X","admin":"1"#, "a&serial=b", "a/../b", "%00", "../x", "?x=1#y", "{identifier}", "*", "ü 漢"];
        assert_eq!(stand.fake.asked(), asked);
    }
}

#[tokio::test]
async fn sends_the_headers_that_it_was_given() {
    let stand = of(Form::Single, SINGLE, "").await;
    stand.serial("C02A").await;
    let seen = stand.fake.lookups().remove(0);
    assert_eq!((seen.header("x-tenant"), seen.header("x-api-key")), (Some("acme"), Some("secret")));
    assert!(!format!("{:?}", stand.inventory).contains("secret\""), "{:?}", stand.inventory);
}

#[tokio::test]
async fn another_device_than_was_asked_for_is_not_that_device() {
    for stand in each().await {
        stand.fake.set(vec![Device::computer("C02A")]);
        stand.fake.fail(Some(Fault::WrongDevice));
        assert_eq!(stand.serial("C02A").await, Answer::NotFound);
    }
}

#[tokio::test]
async fn b4_other_devices_in_the_place_of_the_one_are_no_answer_however_few() {
    for stand in [of(Form::Listed, LISTED, "").await, of(Form::Posted, POSTED, "").await] {
        for count in [1, 25, 49] {
            stand.fake.set((0..count).map(|number| Device::computer(&format!("X{number}"))).collect());
            stand.fake.fail(Some(Fault::FilterIgnored));
            assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::FilterIgnored), "{count}");
            stand.fake.add(Device::computer("C02A"));
            assert!(matches!(stand.serial("C02A").await, Answer::Found(_)), "{count}");
        }
        stand.fake.set(vec![Device::computer("C02A7"), Device::computer("XC02A")]);
        assert_eq!(stand.serial("C02A").await, Answer::NotFound, "a search for a part of a text finds longer ones");
    }
}

#[tokio::test]
async fn b4_an_answer_beside_an_error_is_none() {
    let graphql = "path = \"/devices?serial={identifier}\"\nitems = \"/data/devices\"\ntoken = { env = \"SECRET\" }";
    let stand = of(Form::Listed, graphql, LIST).await;
    for (body, expected) in [
        (json!({"data": {"devices": null}}), Answer::NotFound),
        (json!({"data": {"devices": []}, "errors": [], "error": null}), Answer::NotFound),
        (json!({"data": {"devices": null}, "errors": [{"message": "upstream timeout"}]}), Answer::Unavailable(Unavailable::Protocol)),
        (json!({"data": {"devices": [], "error": "upstream timeout"}}), Answer::Unavailable(Unavailable::Protocol)),
        (json!({"data": {"devices": [{"serial": "C02A"}]}, "errors": {"code": 7}}), Answer::Unavailable(Unavailable::Protocol)),
    ] {
        stand.fake.fail(Some(Fault::Body(body.to_string().into_bytes())));
        assert_eq!(stand.serial("C02A").await, expected, "{body}");
    }
    stand.fake.fail(Some(Fault::Body(json!({"devices": [], "total": 0, "errors": ["x"]}).to_string().into_bytes())));
    assert_eq!(crate::listed(&stand).await.1, Err(Unavailable::Protocol));
}

#[tokio::test]
async fn b4_only_the_service_itself_says_that_there_is_no_such_device() {
    let answer = |body: &str| Fault::Answer(404, body.as_bytes().to_vec());
    let none = Answer::Unavailable(Unavailable::Protocol);
    let plain = of(Form::Single, SINGLE, "").await;
    let named = of(Form::Single, &format!("not_found_body = \"/code\"\n{SINGLE}"), "").await;
    let any = of(Form::Single, &format!("not_found_body = \"any\"\n{SINGLE}"), "").await;
    let kong = r#"{"message":"no Route matched with those values"}"#;
    for (body, expected) in [
        ("", [&none, &none, &Answer::NotFound]),
        ("404 page not found", [&none, &none, &Answer::NotFound]),
        ("\u{feff}<html>", [&none, &none, &none]),
        ("\"none\"", [&none, &none, &Answer::NotFound]),
        (kong, [&Answer::NotFound, &none, &Answer::NotFound]),
        (r#"{"code":null}"#, [&Answer::NotFound, &none, &Answer::NotFound]),
        (r#"{"code":"NO_SUCH_DEVICE"}"#, [&Answer::NotFound, &Answer::NotFound, &Answer::NotFound]),
    ] {
        for (stand, expected) in [&plain, &named, &any].into_iter().zip(expected) {
            stand.fake.fail(Some(answer(body)));
            assert_eq!(&stand.serial("C02A").await, expected, "{body}");
        }
    }
    for stand in [&plain, &any] {
        stand.fake.fail_next(1, Fault::Redirect(format!("{}/devices/other", stand.fake.url())));
        assert_eq!(stand.serial("C02A").await, none, "it was not asked for this device");
    }
    plain.fake.fail(Some(answer("404 page not found")));
    let found = plain.inventory.probe(Instant::now() + std::time::Duration::from_secs(3)).await;
    assert_eq!((found[0].check.as_str(), found[0].state), ("not_found_body", State::Bad));
}

#[tokio::test]
async fn a3_a_list_whose_count_changes_on_the_way_is_not_complete() {
    let page = |total: u32, serials: &[&str]| {
        let devices: Vec<_> = serials.iter().map(|serial| json!({"serial": serial})).collect();
        json!({"total": total, "devices": devices})
    };
    for (totals, complete) in [([4, 4], true), ([5, 4], false)] {
        let pages = [page(totals[0], &["C1", "C2"]), page(totals[1], &["C3", "C4"])];
        let fake = Fake::start(crate::Scripted(move |request: &fakes::Seen| {
            let number: usize = request.query("page").unwrap().parse().unwrap();
            fakes::server::Answer::json(pages.get(number - 1).cloned().unwrap_or(json!({"total": 4, "devices": []})))
        }))
        .await;
        let stand = Stand::open(fake, &format!("type = \"http\"\nbase_url = \"{{url}}\"\n{LISTED}\n{FIELDS}\n{LIST}"));
        let (records, end) = crate::listed(&stand).await;
        assert_eq!((records.len(), end), (4, Ok(complete)));
    }
}

#[tokio::test]
async fn a_cut_answer_is_never_that_there_is_no_such_device() {
    let many = || (0..300).map(|number| Device::computer(&format!("X{number}"))).chain([Device::computer("C02A")]).collect();
    for stand in [of(Form::Listed, LISTED, "").await, of(Form::Posted, POSTED, "").await] {
        stand.fake.set(many());
        stand.fake.fail(Some(Fault::FilterIgnored));
        assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::FilterIgnored));
        assert_eq!(stand.serial("X0").await, Answer::Unavailable(Unavailable::FilterIgnored));
    }
}

#[tokio::test]
async fn two_that_fit_are_ambiguous() {
    for stand in [of(Form::Listed, LISTED, "").await, of(Form::Posted, POSTED, "").await] {
        stand.fake.set(vec![Device::computer("C02A"), Device::phone("C02A")]);
        assert_eq!(stand.serial("C02A").await, Answer::Ambiguous);
    }
}

#[tokio::test]
async fn an_item_without_its_identifier_is_no_answer() {
    for stand in each().await {
        for nothing in [json!(null), json!(7), json!(["C02A"])] {
            stand.fake.set(vec![Device::computer("C02A").with("serial", nothing)]);
            assert_eq!(stand.serial("C02A").await, Answer::Unavailable(Unavailable::Protocol));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_unknown_and_never_a_no() {
    let stand = stand().await;
    let odd = Device::computer("C02A")
        .with("mdm", json!({"enrolled": "maybe", "lost": 2}))
        .with("groups", json!([{"title": "x"}]))
        .with("compliant", json!("so-so"))
        .with("seen", json!("yesterday"))
        .with("custom", json!("text"));
    stand.fake.set(vec![odd]);
    let record = stand.record("C02A").await;
    for field in [Field::Managed, Field::Lost, Field::Groups, Field::Compliance, Field::LastSeen, Field::Data] {
        assert!(!record.knows(field), "{}", field.as_str());
    }
}

#[tokio::test]
async fn only_the_kind_of_identifier_that_it_knows_is_asked_for() {
    let stand = of(Form::Listed, &format!("kind = \"yubico\"\n{LISTED}"), "").await;
    stand.fake.set(vec![Device::computer("112233")]);
    assert_eq!(stand.serial("112233").await, Answer::InvalidIdentifier);
    let Answer::Found(record) = stand.ask(IdentifierKind::Yubico, "112233", Fields::NONE).await else { panic!() };
    assert_eq!(
        record.identifiers().collect::<Vec<_>>(),
        [(Some(IdentifierKind::Udid), "00008103-0000000000112233".to_owned()), (Some(IdentifierKind::Yubico), "112233".to_owned()),]
    );
    assert_eq!(record.serial, Fact::Unknown);
}

#[tokio::test]
async fn only_the_statuses_that_were_named_mean_that_there_is_no_such_device() {
    let stand = of(Form::Single, &format!("not_found_status = [404, 410, 204]\n{SINGLE}"), "").await;
    for (fault, expected) in [
        (Fault::Status(404), Answer::NotFound),
        (Fault::Status(410), Answer::NotFound),
        (Fault::Status(204), Answer::NotFound),
        (Fault::Status(400), Answer::Unavailable(Unavailable::Rejected)),
        (Fault::Status(401), Answer::Unavailable(Unavailable::AuthRejected)),
        (Fault::Status(403), Answer::Unavailable(Unavailable::Forbidden)),
    ] {
        stand.fake.fail(Some(fault.clone()));
        assert_eq!(stand.serial("C02A").await, expected, "{fault:?}");
    }
    assert_eq!(stand.fake.lookups().len(), 6, "nothing is asked twice");
}

#[tokio::test]
async fn lists_every_device_where_it_was_told_how() {
    let stand = stand().await;
    assert_eq!(stand.inventory.listing(), Listing::Whole);
    assert_eq!(of(Form::Listed, LISTED, "").await.inventory.listing(), Listing::None);
    for count in [0, 99, 100, 250] {
        stand.fake.set((0..count).map(|number| Device::computer(&format!("C{number}"))).collect());
        let (sender, mut pages) = mpsc::channel(100);
        let end = stand.inventory.list(None, Fields::NONE, sender).await.unwrap();
        let mut records = 0;
        while let Some(page) = pages.recv().await {
            records += page.len();
        }
        assert_eq!((records, end.complete), (count, true));
    }
}

#[tokio::test]
async fn a_list_without_a_total_is_never_complete() {
    let stand = of(Form::Listed, LISTED, "[provider.it.list]\npath = \"/all?page={page}\"\nitems = \"/devices\"").await;
    stand.fake.set((0..150).map(|number| Device::computer(&format!("C{number}"))).collect());
    let (sender, _pages) = mpsc::channel(100);
    assert!(!stand.inventory.list(None, Fields::NONE, sender).await.unwrap().complete);
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong() {
    let stand = stand().await;
    let soon = || Instant::now() + std::time::Duration::from_secs(3);
    assert!(stand.inventory.probe(soon()).await.iter().all(|finding| finding.state == State::Good));
    let other = of(Form::Listed, &LISTED.replace("items = \"/devices\"", "items = \"/hosts\""), "").await;
    let findings = other.inventory.probe(soon()).await;
    assert_eq!((findings[0].check.as_str(), findings[0].state), ("schema", State::Bad));
    stand.fake.fail(Some(Fault::Status(401)));
    assert_eq!(stand.inventory.probe(soon()).await[0].check, "credentials");
}

#[test]
fn refuses_settings_that_could_not_work() {
    for (lines, message) in [
        ("path = \"/devices\"\nidentifier = \"/s\"", "no device would be named"),
        ("path = \"/{serial}\"\nidentifier = \"/s\"", "a place other than {identifier}"),
        ("path = \"/{identifier}\"", "has no `identifier`"),
        ("path = \"/{identifier}\"\nidentifier = \"serial\"", "no JSON pointer"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nbody = '{}'", "needs method = \"POST\""),
        ("path = \"/q\"\nmethod = \"POST\"\nidentifier = \"/s\"\nbody = '{identifier}'", "is not JSON"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nfields = { mangaed = \"/m\" }", "no field `mangaed`"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nfields = { data = \"/m\" }", "no field `data`"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nfields = { managed = true }", "must be a JSON pointer"),
        (
            "path = \"/{identifier}\"\nidentifier = \"/s\"\nheaders = { Authorization = \"Bearer x\" }",
            "a secret does not stand in the configuration",
        ),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nheaders = { Host = \"x\" }", "cannot be set"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nheaders = { X-A = \"1\", x-a = \"2\" }", "stands there twice"),
        (
            "path = \"/{identifier}\"\nidentifier = \"/s\"\ntoken = { env = \"A\" }\nheaders = { Authorization = { env = \"A\" } }",
            "remove either",
        ),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nnot_found_status = [403]", "not_found_status"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nnot_found_status = [500]", "not_found_status"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nnot_found_body = \"text\"", "neither \"json\", \"any\""),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nlist = { path = \"/all/{n}\" }", "a place other than {page}"),
        ("path = \"/{identifier}\"\nidentifier = \"/s\"\nkind = \"mac\"", "no kind of identifier"),
    ] {
        let text = format!(
            "[envoy]\ncertificate = \"c\"\nprivate_key = \"k\"\nclient_ca = \"a\"\n[[webhook]]\nid = \"1\"\nsecrets = [{{ env = \"S\" }}]\n\
             callers = [\"dns:a\"]\nproviders = [\"it\"]\n[provider.it]\ntype = \"http\"\nbase_url = \"https://i.example.org\"\n{lines}\n"
        );
        let mistakes = Config::parse(&text, "stepward.toml".as_ref(), &Environment::new("/")).unwrap_err().to_string();
        assert!(mistakes.contains(message), "{lines}\n{mistakes}");
        assert!(!mistakes.contains("Bearer x"), "{mistakes}");
    }
}

#[tokio::test]
async fn g11_a_list_shows_both_of_two_devices_with_one_identifier() {
    let stand = stand().await;
    let item = |managed: bool| format!(r#"{{"serial":"C02A","mdm":{{"enrolled":{managed}}}}}"#);
    let page = |total: usize, items: &[String]| Fault::Body(format!(r#"{{"total":{total},"devices":[{}]}}"#, items.join(",")).into_bytes());
    for second in [true, false] {
        stand.fake.fail(Some(page(2, &[item(true), item(second)])));
        let (sender, mut pages) = mpsc::channel(10);
        assert!(stand.inventory.list(None, Fields::NONE, sender).await.unwrap().complete);
        assert_eq!(pages.recv().await.unwrap().len(), 2);
    }
    stand.fake.fail(Some(page(1, &[item(true), item(false)])));
    let (sender, _pages) = mpsc::channel(10);
    assert_eq!(stand.inventory.list(None, Fields::NONE, sender).await, Err(Unavailable::Protocol));
}

#[tokio::test]
async fn b5_one_item_without_an_identifier_keeps_no_other_from_being_read() {
    let stand = stand().await;
    let page = |items: &str| Fault::Body(format!(r#"{{"total":4,"devices":[{items}]}}"#).into_bytes());
    stand.fake.fail(Some(page(r#"{"serial":"C02A"},{"name":"-"},{"serial":null},{"serial":"C02B"}"#)));
    let (records, end) = crate::listed(&stand).await;
    assert_eq!(records.iter().filter_map(|record| record.serial.value()).collect::<Vec<_>>(), ["C02A", "C02B"]);
    assert_eq!(end, Ok(false), "each of the others may be any device");
    stand.fake.fail(Some(page(r#"{"name":"-"},{"name":"-"}"#)));
    assert_eq!(crate::listed(&stand).await.1, Err(Unavailable::Protocol), "it is no list of devices");
}

#[tokio::test]
async fn a3_two_spellings_of_one_udid_in_one_answer_are_ambiguous() {
    let stand = of(Form::Listed, "path = \"/devices?udid={identifier}\"\nkind = \"udid\"\nitems = \"/devices\"", "").await;
    // The places in FIELDS are those of a device; here `/serial`, its identifier, holds the UDID.
    let item = |udid: &str, lost: bool| format!(r#"{{"serial":"{udid}","mdm":{{"enrolled":true,"lost":{lost}}}}}"#);
    let (dashed, plain) = ("00008110-001A2B3C4D5E6F70", "00008110001a2b3c4d5e6f70");
    for items in [[item(dashed, false), item(plain, true)], [item(plain, true), item(dashed, false)]] {
        let body = format!(r#"{{"devices":[{}]}}"#, items.join(","));
        for asked in [dashed, plain] {
            stand.fake.fail(Some(Fault::Body(body.clone().into_bytes())));
            assert_eq!(stand.ask(IdentifierKind::Udid, asked, Fields::NONE).await, Answer::Ambiguous, "{asked}");
        }
    }
    stand.fake.fail(Some(Fault::Body(format!(r#"{{"devices":[{}]}}"#, item(plain, false)).into_bytes())));
    assert!(matches!(stand.ask(IdentifierKind::Udid, dashed, Fields::NONE).await, Answer::Found(_)));
}
