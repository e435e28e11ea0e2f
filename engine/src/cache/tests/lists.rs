//! What lists and questions prove, and of which devices.

use posture::record::Alias;

use super::*;

/// An inventory that has no ids of its own: each item is the device of its serial number.
fn items(records: &[Record]) -> Stand {
    let limits = Limits { per_second: 10_000, unknown_per_minute: 600_000 };
    let stand = Stand::of_kind(Some(IdentifierKind::Serial), Lifetimes::default(), limits);
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    stand.has(records);
    stand
}

impl Stand {
    fn has(&self, records: &[Record]) {
        *self.script.records.lock().unwrap() = (0..).map(|number: u32| number.to_string()).zip(records.iter().cloned()).collect();
    }

    async fn by(&self, kind: IdentifierKind, text: &str) -> Looked {
        let device = DeviceId::new(kind, text).unwrap();
        self.cache.lookup(&Question { device, ..question("-", Fields::NONE) }, Terms::default()).await
    }
}

/// A device without an id, which the service saw at this time.
fn item(serial: &str, seen: i64) -> Record {
    Record { provider_id: String::new(), udid: Fact::Absent, last_seen: Fact::Value(UnixTime::from_nanos(seen)), ..record(serial) }
}

#[tokio::test(start_paused = true)]
async fn a5_a_list_that_is_not_whole_forgets_no_device_of_an_inventory_without_ids() {
    for broken in [false, true] {
        let stand = items(&[item("C02A", 1), item("C02B", 1)]);
        assert_eq!((stand.says("C02A").await, stand.says("C02B").await), ("found live", "found live"));
        stand.has(&[item("C02A", 2)]);
        *stand.script.complete.lock().unwrap() = false;
        stand.fails(broken.then_some(Unavailable::Network));
        let why = if broken { NotSwept::Unavailable(Unavailable::Network) } else { NotSwept::Incomplete };
        assert_eq!(stand.cache.sweep(true).await, Err(why));
        let known = stand.cache.peek(&question("C02A", Fields::NONE).device).unwrap();
        assert_eq!(known.last_seen, item("C02A", 2).last_seen, "what it says of a device is taken");
        stand.fails(Some(Unavailable::Network));
        after(400).await;
        assert_eq!((stand.says("C02A").await, stand.says("C02B").await), ("found stale", "found stale"), "{broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn d5_boards_that_share_a_placeholder_are_devices_of_their_own_in_lists_and_in_answers() {
    for listed in [true, false] {
        let Stand { cache, script } = Stand::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (acquaintances, heard) = (Acquaintances::default(), Arc::clone(&told));
        acquaintances.tell(move |record| heard.lock().unwrap().push(record.identifiers().collect::<Vec<_>>()));
        let stand = Stand { cache: Arc::new(Arc::into_inner(cache).unwrap().telling(acquaintances)), script };
        stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
        let board = |id: &str| Record {
            provider_id: id.to_owned(),
            udid: Fact::Value(format!("U{id}")),
            aliases: vec![Alias::of(IdentifierKind::Hostname, "unknown")],
            ..record("Default string")
        };
        stand.has(&[board("1"), board("2")]);
        if listed {
            assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 2, removed: 0 }));
        }
        for udid in ["U1", "U2"] {
            let looked = stand.by(IdentifierKind::Udid, udid).await;
            let Answer::Found(found) = &looked.answer else { panic!("{looked:?}") };
            assert_eq!((&found.serial, &found.aliases), (&Fact::Absent, &Vec::new()));
            assert_eq!(looked.source == Source::Cached, listed);
            assert!(!stand.cache.is_ambiguous(found) && stand.cache.stands(&DeviceId::new(IdentifierKind::Udid, udid).unwrap(), &looked));
        }
        // A listener, as the locks are one, hears of nothing that both devices have.
        let told = told.lock().unwrap();
        assert_eq!(*told, ["U1", "U2"].map(|udid| vec![(Some(IdentifierKind::Udid), udid.to_owned())]));
        assert!(stand.cache.list(10).iter().all(|known| known.device.starts_with("udid ")));
    }
}

#[tokio::test(start_paused = true)]
async fn a5_between_the_pages_and_the_end_of_a_list_no_device_is_forgotten() {
    let stand = items(&[item("C02A", 1)]);
    assert_eq!(stand.says("C02A").await, "found live");
    stand.has(&[item("C02A", 2)]);
    stand.takes(Duration::from_secs(2));
    let meanwhile = async {
        after(1).await;
        stand.says("C02A").await
    };
    let (swept, said) = tokio::join!(stand.cache.sweep(true), meanwhile);
    assert_eq!((swept, said), (Ok(Swept { seen: 1, removed: 0 }), "found cached"));
}

#[tokio::test(start_paused = true)]
async fn a3_two_items_of_one_identifier_are_two_devices_in_a_list_as_in_an_answer() {
    for provider_id in ["", "7"] {
        let twin = Record { provider_id: provider_id.to_owned(), ..item("C02A", 1) };
        let stand = items(&[twin.clone(), twin.clone(), item("C02B", 1)]);
        stand.cache.sweep(true).await.unwrap();
        assert_eq!((stand.ask("C02A").await.answer, stand.says("C02B").await), (Answer::Ambiguous, "found cached"));
        // A list that shows the same takes nothing back that a question found out.
        let stand = items(&[twin.clone(), twin.clone()]);
        assert_eq!(stand.ask("C02A").await.answer, Answer::Ambiguous);
        stand.cache.sweep(true).await.unwrap();
        assert!(stand.cache.is_ambiguous(&twin));
        // A list that is not whole shows enough to ask again.
        let stand = items(std::slice::from_ref(&twin));
        assert_eq!(stand.says("C02A").await, "found live");
        stand.has(&[twin.clone(), twin.clone()]);
        *stand.script.complete.lock().unwrap() = false;
        stand.cache.sweep(true).await.unwrap_err();
        assert_eq!(stand.ask("C02A").await.answer, Answer::Ambiguous);
        // A whole list with one of them ends the doubt.
        stand.has(std::slice::from_ref(&twin));
        *stand.script.complete.lock().unwrap() = true;
        stand.cache.sweep(true).await.unwrap();
        assert_eq!((stand.says("C02A").await, stand.cache.is_ambiguous(&twin)), ("found cached", false));
    }
}

#[tokio::test(start_paused = true)]
async fn a3_the_newest_of_several_records_is_the_same_in_whatever_order_a_list_has_them() {
    let (old, new, undated) = (Some(1), Some(2), None);
    for (dates, newest) in [
        ([old, old, new], true),
        ([old, new, new], false),
        ([old, Some(0), new], true),
        ([old, old, old], false),
        ([undated, old, new], false),
        ([undated, new, undated], false),
    ] {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let stand = Stand::new();
            *stand.script.newest.lock().unwrap() = true;
            let records = order.map(|place| Record {
                provider_id: format!("id {place}"),
                last_seen: dates[place].map_or(Fact::Absent, |seen| Fact::Value(UnixTime::from_nanos(seen))),
                udid: Fact::Unknown,
                ..record("SN")
            });
            *stand.script.records.lock().unwrap() = (0..).map(|place: usize| place.to_string()).zip(records).collect();
            stand.cache.sweep(true).await.unwrap();
            let answer = stand.ask("SN").await.answer;
            let found = matches!(&answer, Answer::Found(record) if record.provider_id == "id 2");
            assert!(found == newest && (newest || answer == Answer::Ambiguous), "{dates:?} {order:?}: {answer:?}");
            assert_eq!(stand.calls(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_proves_whose_the_names_are_that_an_inventory_tells_its_devices_apart_by() {
    let host = |name: &str, seen| {
        let known = item("-", seen);
        Record { serial: Fact::Absent, aliases: vec![Alias::of(IdentifierKind::Hostname, name)], ..known }
    };
    let limits = Limits { per_second: 10_000, unknown_per_minute: 600_000 };
    let stand = Stand::of_kind(Some(IdentifierKind::Hostname), Lifetimes::default(), limits);
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Hostname] });
    stand.has(&[host("ada", 1), host("bob", 1), host("bob", 2)]);
    assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 3, removed: 0 }));
    assert_eq!(stand.by(IdentifierKind::Hostname, "ada").await.source, Source::Cached);
    assert_eq!(stand.by(IdentifierKind::Hostname, "bob").await.answer, Answer::Ambiguous);
    assert_eq!(stand.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a5_a_list_forgets_no_device_that_is_known_by_a_name_which_it_cannot_prove() {
    let host = |name: &str| Record { aliases: vec![Alias::of(IdentifierKind::Hostname, name)], ..record(name) };
    let stand = stand_of(&[host("ada"), host("bob"), host("eve")]);
    for name in ["ada", "bob", "eve"] {
        assert!(matches!(stand.by(IdentifierKind::Hostname, name).await.answer, Answer::Found(_)));
    }
    after(60).await;
    let again = Record { aliases: vec![Alias::of(IdentifierKind::Hostname, "eve")], ..record("OTHER") };
    stand.has(&[host("ada"), host("eve"), again]);
    *stand.script.complete.lock().unwrap() = true;
    assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 3, removed: 1 }));
    stand.fails(Some(Unavailable::Network));
    after(400).await;
    assert_eq!(stand.by(IdentifierKind::Hostname, "ada").await.source, Source::Stale);
    for gone in ["bob", "eve"] {
        let looked = stand.by(IdentifierKind::Hostname, gone).await;
        assert!(matches!(looked.answer, Answer::Unavailable(_)), "{gone}: it is not in the list, or another device is called so too");
    }
}

#[tokio::test(start_paused = true)]
async fn a5_another_device_with_a_name_ends_what_was_known_by_it() {
    let host = |serial: &str| Record { aliases: vec![Alias::of(IdentifierKind::Hostname, "ada")], ..record(serial) };
    let stand = stand_of(&[host("C02A")]);
    assert!(matches!(stand.by(IdentifierKind::Hostname, "ada").await.answer, Answer::Found(_)));
    stand.has(&[host("C02A"), host("C02B")]);
    assert_eq!(stand.says("C02B").await, "found live");
    assert_eq!(stand.by(IdentifierKind::Hostname, "ada").await.answer, Answer::Ambiguous);
}

#[tokio::test(start_paused = true)]
async fn g3_lists_go_on_after_other_limits_and_lifetimes() {
    let stand = Stand::new();
    let listing = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
    after(1).await;
    assert_eq!(stand.says("C02A").await, "found cached");
    listing.abort();
    let fewer = Settings { cache: Lifetimes { max_entries: 10, ..Lifetimes::default() }, ..short(Duration::from_secs(5)) };
    for settings in [short(Duration::from_secs(30)), fewer] {
        stand.keeps(["C02A".to_owned(), "NEW".to_owned()].into_iter());
        let stand =
            Stand { cache: Arc::new(stand.cache.with_settings(settings, stand.cache.inventory())), script: Arc::clone(&stand.script) };
        stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
        let listing = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
        after(1).await;
        assert_eq!((stand.says("NEW").await, stand.calls()), ("found cached", 0));
        stand.keeps(["C02A".to_owned(), "LATER".to_owned()].into_iter());
        *stand.script.changed.lock().unwrap() = vec![record("LATER")];
        after(Schedule::default().partial.as_secs() + 1).await;
        assert!(stand.cache.peek(&question("C02A", Fields::NONE).device).is_some());
        after(Schedule::default().full.as_secs()).await;
        assert_eq!((stand.says("LATER").await, stand.calls()), ("found cached", 0));
        listing.abort();
        stand.cache.purge(None);
    }
}

/// Devices that are asked for by serial number alone, two of which have one UDID.
fn shared() -> (Stand, Record) {
    let stand = Stand::new();
    let host = |serial: &str| Record { udid: Fact::Value("U".to_owned()), ..record(serial) };
    stand.has(&[host("GOOD"), host("OLD")]);
    (stand, host("GOOD"))
}

#[tokio::test(start_paused = true)]
async fn a3_an_identifier_in_doubt_that_nobody_asks_by_is_asked_by_beside_the_answer() {
    let (stand, good) = shared();
    assert_eq!(stand.by(IdentifierKind::Udid, "u").await.answer, Answer::Ambiguous);
    let calls = stand.calls();
    for _ in 0..100 {
        assert!(stand.cache.is_ambiguous(&good));
    }
    after(31).await;
    assert_eq!(stand.calls(), calls, "it was asked for just then");
    for _ in 0..100 {
        assert!(stand.cache.is_ambiguous(&good), "it is so still");
        after(1).await;
    }
    let asked = stand.calls() - calls;
    assert!((3..=4).contains(&asked), "{asked} in 100 s");
    // While the service cannot say, it is not asked more often.
    stand.fails(Some(Unavailable::Rejected));
    for _ in 0..100 {
        assert!(stand.cache.is_ambiguous(&good));
        after(1).await;
    }
    assert!(stand.calls() - calls - asked <= 4);
    stand.fails(None);
    stand.has(std::slice::from_ref(&good));
    after(31).await;
    assert!(stand.cache.is_ambiguous(&good), "nobody waits for it");
    after(1).await;
    assert!(!stand.cache.is_ambiguous(&good));
}

#[tokio::test(start_paused = true)]
async fn a3_a_whole_list_says_whether_an_identifier_in_doubt_is_one_devices_whoever_asks_by_it() {
    let (stand, good) = shared();
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(stand.says("GOOD").await, "found cached");
    assert!(!stand.cache.is_ambiguous(&good), "by what nobody asks, nothing is in doubt");
    assert_eq!(stand.by(IdentifierKind::Udid, "U").await.answer, Answer::Ambiguous);
    stand.cache.sweep(true).await.unwrap();
    assert!(stand.cache.is_ambiguous(&good), "the list has two with it");
    stand.has(std::slice::from_ref(&good));
    *stand.script.complete.lock().unwrap() = false;
    stand.cache.sweep(true).await.unwrap_err();
    assert!(stand.cache.is_ambiguous(&good), "a list that is not whole proves nothing");
    *stand.script.complete.lock().unwrap() = true;
    stand.cache.accept_shrink();
    stand.cache.sweep(true).await.unwrap();
    assert!(!stand.cache.is_ambiguous(&good));
}

#[tokio::test(start_paused = true)]
async fn a3_what_is_purged_is_in_doubt_no_more() {
    for device in [None, Some(DeviceId::new(IdentifierKind::Udid, "U").unwrap()), Some(question("GOOD", Fields::NONE).device)] {
        let (stand, good) = shared();
        assert_eq!(stand.by(IdentifierKind::Udid, "U").await.answer, Answer::Ambiguous);
        assert_eq!(stand.says("GOOD").await, "found live");
        stand.has(std::slice::from_ref(&good));
        stand.cache.purge(device.as_ref());
        assert!(!stand.cache.is_ambiguous(&good), "{device:?}");
        assert!(stand.says("GOOD").await.starts_with("found"), "{device:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a5_not_found_by_another_kind_or_with_other_dashes_ends_no_record() {
    let known = Record { udid: Fact::Value("00008103-001A2B3C4D5E6F70".to_owned()), ..record("SER2") };
    let odd = Record { udid: Fact::Value("AB-1".to_owned()), ..record("SER3") };
    let stand = stand_of(&[record("SER0"), record("SER1"), known, odd]);
    for serial in ["SER0", "SER1", "SER2", "SER3"] {
        assert_eq!(stand.says(serial).await, "found live");
    }
    assert!(matches!(stand.by(IdentifierKind::Udid, "ab-1").await.answer, Answer::Found(_)));
    for (kind, text) in [
        (IdentifierKind::Udid, "SER0"),
        (IdentifierKind::Hostname, "SER0-"),
        (IdentifierKind::Udid, "SE-R1"),
        (IdentifierKind::Serial, "SER-1"),
        (IdentifierKind::Serial, "udid-SER1"),
        (IdentifierKind::Serial, "00008103-001A2B3C4D5E6F70"),
        (IdentifierKind::Udid, "0000-8103001A2B3C4D5E6F70"),
        (IdentifierKind::Udid, "AB1"),
    ] {
        assert_eq!(stand.by(kind, text).await.answer, Answer::NotFound, "{text}");
    }
    stand.fails(Some(Unavailable::Network));
    after(400).await;
    for serial in ["SER0", "SER1", "SER2", "SER3"] {
        assert_eq!(stand.says(serial).await, "found stale");
    }
    assert_eq!(stand.by(IdentifierKind::Udid, "AB-1").await.source, Source::Stale);
}

#[tokio::test(start_paused = true)]
async fn a5_a_known_device_is_asked_for_as_the_service_spells_it() {
    let stand = stand_of(&[Record { udid: Fact::Value("00008103001a2b3c4d5e6f70".to_owned()), ..record("Ser0") }]);
    stand.by(IdentifierKind::Serial, "SER0").await;
    stand.by(IdentifierKind::Udid, "00008103-001A2B3C4D5E6F70").await;
    after(400).await;
    stand.by(IdentifierKind::Serial, " ser0").await;
    stand.by(IdentifierKind::Udid, "00008103-001A2B3C4D5E6F70").await;
    let spelled = ["SER0", "00008103-001A2B3C4D5E6F70", "Ser0", "00008103001a2b3c4d5e6f70"];
    assert_eq!(*stand.script.spelled.lock().unwrap(), spelled);
}

#[tokio::test(start_paused = true)]
async fn a4_an_identifier_that_cannot_be_asked_is_in_doubt_until_a_list_says_otherwise() {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    let twin = Record { udid: Fact::Value("U-1".to_owned()), ..record("C02B") };
    let one = Record { udid: Fact::Value("U-1".to_owned()), ..record("C02A") };
    *stand.script.records.lock().unwrap() = [("C02A".to_owned(), one), ("C02B".to_owned(), twin)].into();
    stand.cache.sweep(true).await.unwrap();
    for _ in 0..3 {
        assert_eq!(stand.cache.lookup(&udid("U-1"), Terms::default()).await.answer, Answer::Ambiguous);
        after(600).await;
    }
    assert_eq!(stand.cache.lookup(&udid("U-2"), Terms::default()).await.answer, Answer::InvalidIdentifier);
}

#[tokio::test(start_paused = true)]
async fn a5_what_was_forgotten_or_heard_of_since_the_list_is_not_unknown() {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    stand.cache.sweep(true).await.unwrap();
    let says = async |text| stand.cache.lookup(&udid(text), Terms::default()).await;
    assert!(matches!(says("udid-C02A").await.answer, Answer::Found(_)));
    stand.cache.purge(None);
    for text in ["udid-C02A", "udid-NOBODY"] {
        let looked = says(text).await;
        assert_eq!(looked.answer, Answer::Unavailable(Unavailable::NotLoaded), "{text}");
        assert!(matches!(looked.evidence, Evidence::Alone(_)), "{text}: nor does it come to the next provider");
    }
    stand.cache.sweep(true).await.unwrap();
    assert!(matches!(says("udid-C02A").await.answer, Answer::Found(_)));
    assert_eq!(says("udid-NOBODY").await.answer, Answer::InvalidIdentifier);
    // A device that is forgotten says nothing of others.
    stand.cache.purge(Some(&udid("udid-C02A").device));
    assert_eq!(says("udid-C02A").await.answer, Answer::Unavailable(Unavailable::NotLoaded));
    assert_eq!(says("udid-NOBODY").await.answer, Answer::InvalidIdentifier);
    stand.cache.sweep(true).await.unwrap();
    // A device comes after the list, and is asked for by its serial number.
    stand.script.records.lock().unwrap().insert("C02N".to_owned(), record("C02N"));
    assert_eq!(says("udid-C02N").await.answer, Answer::InvalidIdentifier);
    assert_eq!(stand.says("C02N").await, "found live");
    assert!(matches!(says("udid-C02N").await.evidence, Evidence::Alone(_)));
    stand.cache.sweep(true).await.unwrap();
    assert!(matches!(says("udid-C02N").await.answer, Answer::Found(_)));
    // No service has devices by a host name, whatever is listed.
    let host = Question { device: DeviceId::new(IdentifierKind::Hostname, "host").unwrap(), ..question("-", Fields::NONE) };
    assert_eq!(stand.cache.lookup(&host, Terms::default()).await.answer, Answer::InvalidIdentifier);
    // A list says nothing of a kind for which it is not read, even where the next one is to be read for it.
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(says("udid-NOBODY").await.answer, Answer::Unavailable(Unavailable::NotLoaded));
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    assert!(matches!(says("udid-NOBODY").await.evidence, Evidence::Alone(_)));
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(says("udid-NOBODY").await.answer, Answer::InvalidIdentifier);
}

#[tokio::test(start_paused = true)]
async fn a5_that_a_list_has_not_an_identifier_counts_until_something_else_is_heard_of_it() {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    stand.cache.sweep(true).await.unwrap();
    let says = async |text| stand.cache.lookup(&udid(text), Terms::default()).await;
    let stands = |text, looked: &Looked| stand.cache.stands(&udid(text).device, looked);
    let [named, listed, later] = [says("udid-C02E").await, says("udid-C02P").await, says("udid-C02Q").await];
    assert!([&named, &listed, &later].iter().all(|looked| looked.answer == Answer::InvalidIdentifier));
    assert!(stands("udid-C02E", &named) && stands("udid-C02P", &listed) && stands("udid-C02Q", &later));
    // An event about everything may come at any time.
    stand.cache.apply(&change(Subject::Everything, false));
    assert!(stands("udid-C02E", &named));
    stand.cache.apply(&change(Subject::Identifier("udid-C02E".to_owned()), false));
    assert!(!stands("udid-C02E", &named) && stands("udid-C02P", &listed));
    assert!(matches!(says("udid-C02E").await.evidence, Evidence::Alone(_)));
    // A list that is not whole shows a device.
    stand.script.records.lock().unwrap().insert("C02P".to_owned(), record("C02P"));
    *stand.script.complete.lock().unwrap() = false;
    assert_eq!(stand.cache.sweep(true).await, Err(NotSwept::Incomplete));
    assert!(!stands("udid-C02P", &listed) && stands("udid-C02Q", &later));
    assert!(matches!(says("udid-C02P").await.evidence, Evidence::Alone(_)));
    // A whole list shows another device, while a decision is under way.
    stand.script.records.lock().unwrap().insert("C02Q".to_owned(), record("C02Q"));
    *stand.script.complete.lock().unwrap() = true;
    stand.cache.sweep(true).await.unwrap();
    assert!(!stands("udid-C02Q", &later) && matches!(says("udid-C02Q").await.answer, Answer::Found(_)));
}

#[tokio::test(start_paused = true)]
async fn a5_a_known_device_whose_serial_number_is_another_one_by_now_is_not_unknown() {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    stand.cache.sweep(true).await.unwrap();
    let other = Record { serial: Fact::Value("C02NEW".to_owned()), ..record("C02A") };
    *stand.script.records.lock().unwrap() = [("C02NEW".to_owned(), other)].into();
    after(86_000).await;
    let looked = stand.cache.lookup(&udid("udid-C02A"), Terms::default()).await;
    assert!(matches!((&looked.answer, &looked.evidence), (Answer::Unavailable(_), Evidence::Moved(_))), "{looked:?}");
}

#[tokio::test(start_paused = true)]
async fn b5_a_text_that_no_identifier_can_be_takes_no_witness_away() {
    let stand = stand_of(&[record("C02A"), record("C02B")]);
    for serial in ["C02A", "C02B"] {
        assert_eq!(stand.says(serial).await, "found live");
    }
    after(400).await;
    assert!(!matches!(stand.ask(".").await.answer, Answer::Found(_)));
    stand.script.odd.lock().unwrap().push(("C02A", Some(Answer::Unavailable(Unavailable::Protocol))));
    // The other device shows that the service is well, so this one's own record is what cannot be read.
    assert!(matches!(stand.ask("C02A").await.evidence, Evidence::Alone(_)));
}

#[tokio::test(start_paused = true)]
async fn d13c_a_field_that_a_list_does_not_say_is_asked_for_and_one_that_it_says_is_not() {
    const GROUPS: Fields = Fields::of(&[Field::Groups]);
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: GROUPS, kinds: vec![IdentifierKind::Serial] });
    let ask = async |serial: &str, need| {
        let looked = stand.cache.lookup(&question(serial, need), Terms::default()).await;
        let Answer::Found(record) = looked.answer else { panic!("{serial}") };
        (looked.source, record.groups.is_known())
    };
    let silent = |serial: &str| Record { groups: Fact::Unknown, ..record(serial) };
    // A list that has a field says all that there is of it, be it nothing.
    stand.has(&[silent("C02A"), record("C02B")]);
    stand.cache.sweep(true).await.unwrap();
    assert_eq!((ask("C02A", GROUPS).await, ask("C02B", GROUPS).await), ((Source::Cached, false), (Source::Cached, true)));
    // A list that never has a field was not asked for it, and says more of some device than it has to.
    *stand.script.unlisted.lock().unwrap() = GROUPS;
    stand.cache.sweep(true).await.unwrap();
    assert_eq!((ask("C02A", Fields::NONE).await, ask("C02B", GROUPS).await), ((Source::Cached, false), (Source::Cached, true)));
    stand.has(&[record("C02A"), record("C02B")]);
    assert_eq!(ask("C02A", GROUPS).await, (Source::Live, true));
    assert_eq!(ask("C02A", GROUPS).await, (Source::Cached, true));
}

#[tokio::test(start_paused = true)]
async fn d13_another_spelling_is_asked_for_as_it_is_and_in_upper_case() {
    let stand = stand_of(&[record("D20"), record("e30")]);
    *stand.script.minds_case.lock().unwrap() = true;
    assert_eq!(stand.says("d20").await, "found live");
    assert_eq!(stand.says("D20").await, "found cached");
    assert_eq!(stand.says("E30").await, "missing live");
    assert_eq!(stand.says("E30").await, "missing cached");
    assert_eq!(stand.says("e30").await, "found live", "what was said of another spelling is not said of this one");
    assert_eq!(stand.says("f40").await, "missing live");
    assert_eq!(stand.says("F40").await, "missing cached");
    assert_eq!(*stand.script.spelled.lock().unwrap(), ["d20", "D20", "E30", "e30", "f40", "F40"]);
    // A missing device is remembered by the spelling of the request, though the service is asked by another one.
    for _ in 0..3 {
        assert_eq!(stand.by(IdentifierKind::Udid, "00008103001a2b3c4d5e6f70").await.answer, Answer::NotFound);
    }
    assert_eq!(stand.script.spelled.lock().unwrap().len(), 6 + 3);
    // A service that does not mind the spelling is asked once.
    let stand = stand_of(&[record("D20")]);
    assert_eq!(stand.says("f40").await, "missing live");
    assert_eq!(stand.says("f4O").await, "missing live");
    assert_eq!(stand.says("F40").await, "missing cached");
    assert_eq!(*stand.script.spelled.lock().unwrap(), ["f40", "f4O"]);
}

#[tokio::test(start_paused = true)]
async fn a5_an_event_by_the_services_own_kind_of_identifier_counts_for_every_other_key() {
    let of_kind = Some(IdentifierKind::Hostname);
    let stand = Stand::of_kind(of_kind, Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Hostname] });
    let alias = Alias { kind: of_kind, text: "HOST25".to_owned() };
    let known = Record { provider_id: String::new(), aliases: vec![alias], ..record("C25") };
    *stand.script.records.lock().unwrap() = [("C25".to_owned(), known)].into();
    stand.cache.sweep(true).await.unwrap();
    let looked = stand.ask("C25").await;
    assert!(matches!(looked.answer, Answer::Found(_)) && stand.stands("C25", &looked));
    stand.cache.apply(&change(Subject::Identifier("host25".to_owned()), true));
    assert!(!stand.stands("C25", &looked));
}

#[tokio::test(start_paused = true)]
async fn an_old_record_is_used_before_the_end_of_its_time_and_not_at_it() {
    for (early, said) in [(1, "found stale"), (0, "network")] {
        let stand = Stand::new();
        stand.takes(Duration::ZERO);
        assert_eq!(stand.says("C02A").await, "found live");
        stand.fails(Some(Unavailable::Network));
        tokio::time::sleep(Lifetimes::default().stale_if_error - Duration::from_millis(early)).await;
        assert_eq!(stand.says("C02A").await, said);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_calls_and_what_is_pushed_out_are_counted() {
    let cache = Lifetimes { max_entries: 10, ..Lifetimes::default() };
    let stand = Stand::with(cache, Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    for _ in 0..3 {
        stand.says("C02A").await;
    }
    let lookups = |result| stand.cache.metrics.cache_lookups.get_or_create(&CacheLabels { provider: Word::from("mdm"), result }).get();
    assert_eq!((lookups("miss"), lookups("hit"), lookups("stale")), (1, 2, 0));
    stand.fails(Some(Unavailable::Network));
    after(400).await;
    assert_eq!(stand.says("C02A").await, "found stale");
    assert_eq!((lookups("miss"), lookups("hit"), lookups("stale")), (1, 2, 1));
    let calls = |outcome| stand.cache.metrics.provider_calls.get_or_create(&CallLabels { provider: Word::from("mdm"), outcome }).get();
    assert_eq!(calls("found"), 1);
    assert!(calls("unavailable") >= 1);
    stand.fails(None);
    stand.keeps((0..30).map(|number| format!("FLEET{number}")));
    stand.takes(Duration::ZERO);
    after(10).await;
    for number in 0..30 {
        assert_eq!(stand.says(&format!("FLEET{number}")).await, "found live");
    }
    assert_eq!(stand.cache.len(), 10);
    let pushed_out = stand.cache.metrics.cache_evictions.get_or_create(&ProviderLabel { provider: Word::from("mdm") }).get();
    assert_eq!(pushed_out, 21);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_read_again_where_a_field_more_is_wanted_and_not_where_the_same_is() {
    let stand = Stand::unasked(Lifetimes::default(), Limits::default());
    let wants = |fields: &[Field]| {
        stand.cache.want(Wanted { fields: Fields::of(fields), kinds: vec![IdentifierKind::Serial] });
        *stand.cache.sweeps.list_due.borrow()
    };
    assert_eq!([wants(&[]), wants(&[]), wants(&[Field::Groups]), wants(&[Field::Groups]), wants(&[])], [1, 1, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn before_the_first_list_nobody_can_say_whose_an_identifier_is_that_cannot_be_asked_by() {
    let stand = Stand::new();
    *stand.script.by_serial_alone.lock().unwrap() = true;
    for kind in [IdentifierKind::Udid, IdentifierKind::Hostname] {
        let looked = stand.by(kind, "anybody").await;
        assert_eq!(looked.answer, Answer::Unavailable(Unavailable::NotLoaded), "{kind}");
        assert!(matches!(looked.evidence, Evidence::Silence(_)), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_does_not_say_whose_an_identifier_is_lengthens_no_records_life_by_it() {
    let stand = Stand::new();
    stand.cache.sweep(true).await.unwrap();
    assert!(matches!(stand.by(IdentifierKind::Udid, "udid-C02A").await.answer, Answer::Found(_)));
    let key = Key::of(&DeviceId::new(IdentifierKind::Udid, "udid-C02A").unwrap());
    let sweep = || stand.cache.knowledge.found.get(&key).unwrap().sweep;
    assert_eq!(sweep(), 1);
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(sweep(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_first_list_is_whole_and_so_is_one_before_which_the_clock_was_set_back() {
    let stand = Stand::new();
    let began = UnixTime::from_nanos(1_800_000_000_000_000_000);
    clock::scripted::set(began);
    assert_eq!(stand.cache.sweep(false).await, Ok(Swept { seen: 1, removed: 0 }));
    after(60).await;
    assert_eq!(stand.cache.sweep(false).await, Ok(Swept { seen: 0, removed: 0 }), "nothing changed");
    clock::scripted::set(began);
    assert_eq!(stand.cache.sweep(false).await, Ok(Swept { seen: 1, removed: 0 }));
}

#[tokio::test(start_paused = true)]
async fn a_whole_list_is_read_when_it_is_time_to_and_none_before_it_is_known_what_is_asked_for() {
    let stand = Stand::unasked(Lifetimes::default(), Limits::default());
    let sync = Schedule::default();
    assert_eq!(stand.cache.sync(), Some(sync));
    let listing = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
    after(3600).await;
    assert_eq!(stand.cache.sweeps.current(), 0);
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    after(1).await;
    assert_eq!(stand.cache.sweeps.current(), 1);
    tokio::time::sleep(sync.partial * 2).await;
    assert_eq!(stand.cache.sweeps.current(), 1, "what changed is read, and not all of it");
    tokio::time::sleep(sync.full).await;
    assert_eq!(stand.cache.sweeps.current(), 2);
    listing.abort();
    let settings = Settings { sync: None, ..settings_of(Lifetimes::default()) };
    assert_eq!(stand.cache.with_settings(settings, stand.cache.inventory()).sync(), None);
}
