//! Promises of every provider of a service, whichever service it is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fakes::{Device, Fault, RetryAfter, Seen};
use inventory::{Answer, Listing, Question, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fact, Fields};
use tokio::sync::mpsc;

use crate::Stand;

/// Makes a test of every promise, for the provider whose module has `stand()`; `token` logs in for a token, `key` has a fixed one.
macro_rules! contract {
    ($module:ident, $credentials:ident) => {
        mod $module {
            crate::contract::contract!(@each $module,
                finds_a_device_by_its_serial_number_and_no_other,
                compares_without_case_and_blanks_and_otherwise_exactly,
                says_not_found_only_of_a_device_that_is_not_there,
                two_records_are_ambiguous,
                no_text_becomes_a_part_of_the_question,
                a_fault_is_never_taken_for_an_answer,
                g11_an_answer_that_says_one_thing_twice_is_none,
                b5_a_question_that_is_refused_opens_no_circuit,
                a_service_that_is_not_there_says_nothing,
                what_is_odd_and_harmless_is_read,
                a_silent_service_takes_no_longer_than_there_is_time,
                the_wrong_device_is_never_found,
                a_filter_that_is_not_applied_is_noticed,
                a_redirect_to_another_host_carries_nothing_there,
                a_record_that_outlived_its_management_says_so,
                names_of_people_stay_as_they_are,
                what_is_missing_is_not_made_up,
                a_list_has_every_device_and_says_when_it_has_not,
                a_secret_does_not_print,
            );

            #[tokio::test]
            async fn refused_credentials_are_renewed_once_for_all() {
                crate::contract::$credentials(crate::$module::stand().await).await;
            }
        }
    };
    (@each $module:ident, $($promise:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $promise() {
                crate::contract::$promise(crate::$module::stand().await).await;
            }
        )*
    };
}
pub(crate) use contract;

/// Makes a test of what a count has to agree with, for the provider whose module has `stand()`.
macro_rules! counts {
    ($module:ident) => {
        mod $module {
            #[tokio::test]
            async fn g11_a_count_of_none_beside_a_record_is_no_answer() {
                crate::contract::g11_a_count_of_none_beside_a_record_is_no_answer(crate::$module::stand().await).await;
            }
        }
    };
}
pub(crate) use counts;

/// Edge case 6.
pub(crate) async fn finds_a_device_by_its_serial_number_and_no_other(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02AAAA1"), Device::computer("C02AAAA12"), Device::phone("XC02AAAA1")]);
    let record = stand.record("C02AAAA1").await;
    assert_eq!(record.serial.value().map(String::as_str), Some("C02AAAA1"));
    assert_eq!(record.managed, Fact::Value(true));
    assert_eq!(stand.record("XC02AAAA1").await.serial.value().map(String::as_str), Some("XC02AAAA1"));
    for part in ["C02AAAA", "02AAAA1", "C02*", "*", "C02AAAA?"] {
        assert!(matches!(stand.serial(part).await, Answer::NotFound | Answer::InvalidIdentifier), "{part}");
    }
}

/// Edge case 7.
pub(crate) async fn compares_without_case_and_blanks_and_otherwise_exactly(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02BBBB1")]);
    stand.record(" c02bbbb1 ").await;
    // Cyrillic Es, and a full-width letter.
    for alike in ["С02BBBB1", "Ｃ02BBBB1"] {
        assert!(matches!(stand.serial(alike).await, Answer::NotFound | Answer::InvalidIdentifier), "{alike}");
    }
    stand.fake.set(vec![Device::computer("c02bbbb2"), Device::computer(" C02BBBB3 ")]);
    assert_eq!(stand.record("C02BBBB2").await.serial.value().map(String::as_str), Some("c02bbbb2"));
    // Not every service finds a serial number with blanks; where one does, the record is this one.
    match stand.serial("C02BBBB3").await {
        Answer::Found(record) => assert_eq!(record.serial.value().map(|serial| serial.trim()), Some("C02BBBB3")),
        other => assert_eq!(other, Answer::NotFound),
    }
}

/// Edge case 6.
pub(crate) async fn says_not_found_only_of_a_device_that_is_not_there(stand: Stand) {
    assert_eq!(stand.serial("C02CCCC1").await, Answer::NotFound, "there is no device at all");
    stand.fake.set(vec![Device::computer("C02CCCC2"), Device::phone("C02CCCC3")]);
    assert_eq!(stand.serial("C02CCCC1").await, Answer::NotFound);
    stand.fake.add(Device::computer("C02CCCC1"));
    stand.record("C02CCCC1").await;
    stand.fake.remove("C02CCCC1");
    assert_eq!(stand.serial("C02CCCC1").await, Answer::NotFound);
}

/// Edge case 6: one after a new enrolment, say. A service whose search gives one record at most cannot know.
pub(crate) async fn two_records_are_ambiguous(stand: Stand) {
    let twin = |id: &str| Device { id: id.to_owned(), udid: format!("00008103-00000000000000{id}"), ..Device::computer("C02DDDD1") };
    stand.fake.set(vec![twin("71"), twin("72")]);
    let answer = stand.serial("C02DDDD1").await;
    assert!(!matches!(answer, Answer::Found(_) | Answer::NotFound | Answer::InvalidIdentifier), "{answer:?}");
}

/// Edge case 8: what the service understands is one literal, the text itself, or it is not asked.
pub(crate) async fn no_text_becomes_a_part_of_the_question(stand: Stand) {
    let others = [Device::computer("C02EEEE1"), Device::phone("C02EEEE2"), Device::computer("X"), Device::computer("Y")];
    stand.fake.set(others.to_vec());
    let shapes = || stand.fake.lookups().iter().map(shape).collect::<BTreeSet<_>>();
    assert_eq!(stand.serial("C02EEEE3").await, Answer::NotFound);
    stand.record("C02EEEE1").await;
    let usual = shapes();
    for text in INJECTIONS {
        stand.fake.forget();
        match stand.serial(text).await {
            Answer::InvalidIdentifier => assert_eq!(stand.fake.lookups().len(), 0, "{text}"),
            Answer::NotFound => {
                let asked = stand.fake.asked();
                // Where the service may tell upper and lower case apart, it is asked for both.
                let is_it = |asked: &String| asked == text || *asked == text.to_ascii_uppercase();
                assert!(!asked.is_empty() && asked.iter().all(is_it), "{text}: {asked:?}");
                assert_eq!(stand.fake.lookups().len(), asked.len(), "{text}: each request asks for it");
                assert!(shapes().is_subset(&usual), "{text}: {:?}", shapes());
            }
            other => panic!("{text}: {other:?}"),
        }
        stand.fake.add(Device::computer(text));
        if let Answer::Found(record) = stand.serial(text).await {
            assert_eq!(record.serial.value().map(String::as_str), Some(*text));
        }
        stand.fake.set(others.to_vec());
    }
    for text in [&"X".repeat(10_000), "", "  ", "a\nb", "a\r\nb", "a\0b", "\u{7f}"] {
        assert!(DeviceId::new(IdentifierKind::Serial, text).is_err(), "{text:?} cannot even be asked for");
    }
    stand.record("C02EEEE1").await;
}

/// Returns what stays the same of a request, whatever it asks for.
fn shape(seen: &Seen) -> (String, usize, Vec<String>) {
    let names = seen.query.iter().map(|(name, _)| name.clone()).collect();
    (seen.method.to_string(), seen.path.split('/').count(), names)
}

/// Edge cases 3, 4, 13: whatever the fault was, nothing is known of the device.
pub(crate) async fn a_fault_is_never_taken_for_an_answer(stand: Stand) {
    use Unavailable as U;
    let rate = |after| Fault::RateLimited(after);
    let after = |seconds| Some(Duration::from_secs(seconds));
    type Expected = fn(U) -> bool;
    let faults: Vec<(Fault, Expected)> = vec![
        (Fault::Status(400), |why| matches!(why, U::Rejected)),
        (Fault::Status(403), |why| matches!(why, U::Forbidden)),
        (Fault::Status(500), |why| matches!(why, U::ServerError(_))),
        (Fault::Status(502), |why| matches!(why, U::ServerError(_))),
        (Fault::Status(503), |why| matches!(why, U::ServerError(_))),
        (Fault::Status(504), |why| matches!(why, U::ServerError(_))),
        (Fault::Status(204), |why| matches!(why, U::Protocol)),
        (rate(RetryAfter::Absent), |why| matches!(why, U::RateLimited(None))),
        (rate(RetryAfter::Malformed("soon".to_owned())), |why| matches!(why, U::RateLimited(None))),
        (rate(RetryAfter::Date(Duration::from_secs(60))), |why| matches!(why, U::RateLimited(Some(_)))),
        (Fault::Reset, |why| matches!(why, U::Network)),
        (Fault::Cut, |why| matches!(why, U::Network | U::Protocol)),
        (Fault::CutChunked, |why| matches!(why, U::Network | U::Protocol)),
        (Fault::Html, |why| matches!(why, U::Protocol)),
        (Fault::Body(Vec::new()), |why| matches!(why, U::Protocol)),
        (Fault::Body(b"\xff\xfe\x00".to_vec()), |why| matches!(why, U::Protocol)),
        (Fault::Body(b"{\"unexpected\":true".to_vec()), |why| matches!(why, U::Protocol)),
        (Fault::Body(b"[1,2,3]".to_vec()), |why| matches!(why, U::Protocol)),
        (Fault::Body(vec![b'['; 1 << 20]), |why| matches!(why, U::Protocol)),
        (Fault::Huge(50 << 20), |why| matches!(why, U::TooLarge)),
        (Fault::Body(format!("{{\"name\":\"{}\"}}", "x".repeat(20 << 20)).into_bytes()), |why| matches!(why, U::TooLarge)),
        (Fault::Gzip, |why| matches!(why, U::Protocol)),
    ];
    stand.fake.set(vec![Device::computer("C02FFFF1")]);
    for (fault, expected) in faults {
        stand.fake.fail(Some(fault.clone()));
        for serial in ["C02FFFF1", "C02FFFF2"] {
            match stand.serial(serial).await {
                Answer::Unavailable(why) if expected(why) => {}
                other => panic!("{fault:?}: {other:?}"),
            }
        }
    }
    for seconds in [0, 7, 99_999] {
        stand.fake.fail(Some(rate(RetryAfter::Seconds(seconds))));
        assert_eq!(stand.serial("C02FFFF1").await, Answer::Unavailable(U::RateLimited(after(seconds))));
    }
    stand.fake.fail(None);
    stand.record("C02FFFF1").await;
}

/// Whichever member of an answer comes twice, and wherever: neither value counts.
pub(crate) async fn g11_an_answer_that_says_one_thing_twice_is_none(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02FFFF3")]);
    stand.record("C02FFFF3").await;
    // The first members are those that every answer has; then on to where there is no such member.
    for member in 0.. {
        stand.fake.fail(Some(Fault::Twice(member)));
        match stand.ask(IdentifierKind::Serial, "C02FFFF3", Fields::NONE).await {
            Answer::Unavailable(Unavailable::Protocol) => {}
            Answer::Found(_) => {
                assert!(member >= 10, "the fake's answer has {member} members; give it ten");
                break;
            }
            other => panic!("{member}: {other:?}"),
        }
    }
}

/// A count of none beside a record: one of the two is not so.
pub(crate) async fn g11_a_count_of_none_beside_a_record_is_no_answer(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02FFFF4")]);
    stand.record("C02FFFF4").await;
    stand.fake.fail(Some(Fault::Counted(0)));
    assert_eq!(stand.serial("C02FFFF4").await, Answer::Unavailable(Unavailable::Protocol));
    stand.fake.fail(None);
    stand.record("C02FFFF4").await;
}

/// A refusal of one identifier says nothing of the next one, nor that the device is not there.
pub(crate) async fn b5_a_question_that_is_refused_opens_no_circuit(stand: Stand) {
    let cache = stand.cache();
    // Fleet says 422 of its own database.
    let fleets = stand.remote.service.name() == "fleet";
    for (number, status) in [400, 413, 414, 422, 431].into_iter().enumerate().filter(|(_, status)| !fleets || *status != 422) {
        stand.fake.set(vec![Device::computer(&format!("C02GOOD{number}"))]);
        stand.fake.fail(Some(Fault::Status(status)));
        for odd in 0..4 {
            let answer = stand.ask_through(&cache, &format!("ODD-{number}-{odd}")).await;
            assert_eq!(answer, Answer::Unavailable(Unavailable::Rejected), "{status}");
        }
        stand.fake.fail(None);
        let good = stand.ask_through(&cache, &format!("C02GOOD{number}")).await;
        assert!(matches!(good, Answer::Found(_)), "{status}: {good:?}");
    }
}

/// Edge case 4.
pub(crate) async fn a_service_that_is_not_there_says_nothing(stand: Stand) {
    let Stand { inventory, fake, .. } = stand;
    fake.stop().await;
    let device = DeviceId::new(IdentifierKind::Serial, "C02FFFF1").unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
    let question = Question { device, need: Fields::NONE, hint: None, deadline, way: Way::Webhook };
    assert_eq!(inventory.lookup(&question).await, Answer::Unavailable(Unavailable::Network));
}

/// Edge case 4.
pub(crate) async fn what_is_odd_and_harmless_is_read(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02GGGG1")]);
    for fault in [Fault::ByteOrderMark, Fault::PlainText, Fault::Slow(Duration::from_millis(300))] {
        stand.fake.fail(Some(fault));
        stand.record("C02GGGG1").await;
    }
}

/// Edge case 5.
pub(crate) async fn a_silent_service_takes_no_longer_than_there_is_time(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02HHHH1")]);
    for fault in [Fault::Hang, Fault::Drip, Fault::Slow(Duration::from_secs(5))] {
        stand.fake.fail(Some(fault.clone()));
        let began = Instant::now();
        assert_eq!(stand.serial("C02HHHH1").await, Answer::Unavailable(Unavailable::Timeout), "{fault:?}");
        assert!(began.elapsed() < Duration::from_millis(3500), "{fault:?}");
    }
    stand.fake.fail(None);
    stand.record("C02HHHH1").await;
}

/// Edge case 6.
pub(crate) async fn the_wrong_device_is_never_found(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02JJJJ1"), Device::phone("C02JJJJ2")]);
    stand.fake.fail(Some(Fault::WrongDevice));
    for serial in ["C02JJJJ1", "C02JJJJ2"] {
        let answer = stand.serial(serial).await;
        assert!(matches!(answer, Answer::NotFound | Answer::Unavailable(_)), "{answer:?}");
    }
}

/// Edge case 6.
pub(crate) async fn a_filter_that_is_not_applied_is_noticed(stand: Stand) {
    let mut fleet: Vec<_> = (0..300).map(|number| Device::computer(&format!("FLEET{number:04}"))).collect();
    fleet.push(Device::computer("C02KKKK1"));
    stand.fake.set(fleet);
    stand.fake.fail(Some(Fault::FilterIgnored));
    match stand.serial("C02KKKK1").await {
        Answer::Found(record) => assert_eq!(record.serial.value().map(String::as_str), Some("C02KKKK1")),
        Answer::Unavailable(_) => {}
        other => panic!("{other:?}"),
    }
    let answer = stand.serial("C02KKKK2").await;
    assert!(matches!(answer, Answer::NotFound | Answer::Unavailable(_)), "{answer:?}");
}

/// Edge case 4.
pub(crate) async fn a_redirect_to_another_host_carries_nothing_there(stand: Stand) {
    let other = crate::stranger().await;
    stand.fake.set(vec![Device::computer("C02LLLL1")]);
    stand.fake.fail(Some(Fault::Redirect(format!("{}/anywhere", other.url()))));
    assert!(matches!(stand.serial("C02LLLL1").await, Answer::Unavailable(_)));
    assert_eq!(other.lookups().len(), 0);
}

/// Edge case 9.
pub(crate) async fn a_record_that_outlived_its_management_says_so(stand: Stand) {
    stand.fake.set(vec![Device { managed: false, ..Device::computer("C02MMMM1") }]);
    assert_eq!(stand.record("C02MMMM1").await.managed, Fact::Value(false));
}

/// Edge case 10.
pub(crate) async fn names_of_people_stay_as_they_are(stand: Stand) {
    let name = "Zoë \"{{ .Subject }}\" O'Neil \\ 🦀";
    let mut device = Device::computer("C02NNNN1");
    device.name = name.to_owned();
    if let Some(user) = &mut device.user {
        user.name = name.to_owned();
    }
    stand.fake.set(vec![device]);
    let record = stand.record("C02NNNN1").await;
    if let Fact::Value(read) = &record.name {
        assert_eq!(read, name);
    }
    if let Fact::Value(read) = &record.user.name {
        assert_eq!(read, name);
    }
}

/// Edge cases 9, 10.
pub(crate) async fn what_is_missing_is_not_made_up(stand: Stand) {
    stand.fake.set(vec![Device { user: None, last_seen: None, groups: Vec::new(), ..Device::computer("C02PPPP1") }]);
    let record = stand.record("C02PPPP1").await;
    assert_eq!(record.user.email.value(), None);
    assert_eq!(record.last_seen.value(), None);
}

/// Edge case 12.
pub(crate) async fn a_list_has_every_device_and_says_when_it_has_not(stand: Stand) {
    if stand.inventory.listing() == Listing::None {
        return;
    }
    let fleet = (0..700).map(|number| {
        let serial = format!("FLEET{number:04}");
        if number % 7 == 0 { Device::phone(&serial) } else { Device::computer(&serial) }
    });
    stand.fake.set(fleet.collect());
    let list = || async {
        let (pages, mut incoming) = mpsc::channel(2);
        let listing = stand.inventory.list(None, Fields::NONE, pages);
        let reading = async {
            let mut serials = BTreeSet::new();
            while let Some(page) = incoming.recv().await {
                serials.extend(page.iter().filter_map(|record| record.serial.value().cloned()));
            }
            serials
        };
        tokio::join!(listing, reading)
    };
    let (listed, serials) = list().await;
    assert!(listed.unwrap().complete);
    assert_eq!(serials.len(), 700);
    // The last request of the list fails, be it the only one.
    stand.fake.pass_next(stand.fake.lookups().len() - 1);
    stand.fake.fail(Some(Fault::Status(500)));
    let (listed, _) = list().await;
    assert!(!listed.is_ok_and(|listed| listed.complete), "it was cut short");
}

/// Nothing that can be printed holds a secret.
pub(crate) async fn a_secret_does_not_print(stand: Stand) {
    assert!(!format!("{:?}", stand.inventory).contains("\"secret\""));
}

/// Edge case 1 for those that log in: refused once, a lookup logs in anew and succeeds; refused for good, it says so.
pub(crate) async fn token(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02QQQQ1")]);
    stand.record("C02QQQQ1").await;
    stand.record("C02QQQQ1").await;
    assert_eq!(stand.fake.logins(), 1);
    stand.fake.fail_next(1, Fault::Status(401));
    stand.record("C02QQQQ1").await;
    assert_eq!(stand.fake.logins(), 2);
    stand.fake.forget();
    stand.fake.fail(Some(Fault::Status(401)));
    assert_eq!(stand.serial("C02QQQQ1").await, Answer::Unavailable(Unavailable::AuthRejected));
    assert!(stand.fake.lookups().len() <= 4 && stand.fake.logins() <= 2, "no request is sent a third time");
    for fault in [
        Fault::Html,
        Fault::Status(500),
        Fault::Body(b"{}".to_vec()),
        Fault::Reset,
        Fault::RateLimited(RetryAfter::Seconds(7)),
        Fault::Hang,
    ] {
        stand.fake.fail_logins(Some(fault.clone()));
        let answer = stand.serial("C02QQQQ1").await;
        assert!(matches!(answer, Answer::Unavailable(_)), "{fault:?}: {answer:?}");
    }
    stand.fake.fail_logins(Some(Fault::Slow(Duration::from_millis(300))));
    stand.fake.fail(None);
    stand.record("C02QQQQ1").await;
}

/// Edge case 1 for those with a fixed key: nothing can be renewed, so nothing is sent again.
pub(crate) async fn key(stand: Stand) {
    stand.fake.set(vec![Device::computer("C02QQQQ1")]);
    stand.record("C02QQQQ1").await;
    stand.fake.forget();
    stand.fake.fail(Some(Fault::Status(401)));
    assert_eq!(stand.ask(IdentifierKind::Serial, "C02QQQQ1", Fields::NONE).await, Answer::Unavailable(Unavailable::AuthRejected));
    assert!(stand.fake.lookups().len() <= 2, "{:?}", stand.fake.lookups().len());
}

const INJECTIONS: &[&str] = &[
    "X\" or general.name==\"*",
    "X',Y",
    "X' or 1 eq 1",
    "X\",hardware.serialNumber==\"*",
    "X\"],\"os\":\"*",
    "X\"}],\"policy_id\":\"1",
    "a&b=c",
    "a#b",
    "#",
    "%00",
    "a%00b",
    "%2e%2e%2f",
    "../",
    "../../secret",
    "*",
    "C02*",
    "(a,b)",
    "a;b",
    "a\\",
    "a\\\"b",
    "{}",
    "${x}",
    "a/b",
    "a?b",
    "a+b",
    "a b",
];
