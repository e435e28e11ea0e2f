//! Events that name no device, and records that are pushed out for want of room: neither keeps a request from its answer.

use super::*;

async fn ask(stand: &Stand, serial: &str, came: Moment) -> Looked {
    stand.cache.lookup(&question(serial, Fields::NONE), Terms { not_older: None, came }).await
}

#[tokio::test(start_paused = true)]
async fn a5_an_event_about_everything_leaves_what_was_asked_since_the_request_came() {
    for serial in ["C02A", "NOBODY"] {
        let stand = Stand::new();
        let came = Moment::now();
        let looked = ask(&stand, serial, came).await;
        assert!(stand.stands(serial, &looked));
        stand.cache.apply(&change(Subject::Everything, false));
        assert!(stand.stands(serial, &looked), "it was asked after the request came");
        assert!(!stand.cache.is_current(&question(serial, Fields::NONE).device, &looked), "a later request is another one");
        assert_eq!(ask(&stand, serial, came).await.source, Source::Cached, "nor is it asked again for the same request");
        assert_eq!(stand.calls(), 1);

        let looked = ask(&stand, serial, Moment::now()).await;
        assert_eq!((looked.source, stand.calls()), (Source::Live, 2), "the next request is answered anew");
        let earlier = ask(&stand, serial, Moment::now()).await;
        assert_eq!(earlier.source, Source::Cached);
        stand.cache.apply(&change(Subject::Everything, false));
        assert!(!stand.stands(serial, &earlier), "it was asked before that request came");
        assert!(stand.stands(serial, &looked));
        stand.cache.apply(&change(Subject::Everything, true));
        assert!(!stand.stands(serial, &looked), "what is revoked is not so any more");
    }
}

#[tokio::test(start_paused = true)]
async fn a5_an_event_about_the_device_counts_whenever_it_came() {
    for named in [Subject::Identifier("c02a".to_owned()), Subject::ProviderId("id of C02A".to_owned())] {
        let stand = Stand::new();
        let looked = ask(&stand, "C02A", Moment::now()).await;
        stand.cache.apply(&change(named, false));
        assert!(!stand.stands("C02A", &looked));
    }
}

#[tokio::test(start_paused = true)]
async fn a5_an_event_about_everything_ends_an_answer_that_somebody_else_asked_for_before() {
    let stand = Stand::new();
    let first = tokio::spawn({
        let cache = Arc::clone(&stand.cache);
        async move { cache.lookup(&question("C02A", Fields::NONE), Terms { not_older: None, came: Moment::now() }).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let (joined, ()) = tokio::join!(ask(&stand, "C02A", Moment::now()), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        stand.cache.apply(&change(Subject::Everything, false));
    });
    let first = first.await.unwrap();
    assert_eq!(stand.calls(), 1);
    assert!(stand.stands("C02A", &first) && !stand.stands("C02A", &joined));
}

#[tokio::test(start_paused = true)]
async fn a5_an_answer_that_an_event_overtook_is_no_old_record_for_a_request_from_before_it() {
    for event in [Subject::Identifier("c02a".to_owned()), Subject::ProviderId("id of C02A".to_owned()), Subject::Everything] {
        let stand = Stand::new();
        // The service is slower than somebody waits who has an old record, and does not fail.
        stand.takes(STALE_AFTER + Duration::from_millis(200));
        let first = Moment::now();
        let joined = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let came = Moment::now();
            (came, ask(&stand, "C02A", came).await)
        };
        let comes = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            stand.cache.apply(&change(event.clone(), false));
        };
        let (_, (joined, said), ()) = tokio::join!(ask(&stand, "C02A", first), joined, comes);
        assert_eq!(stand.calls(), 1);
        assert!(!stand.stands("C02A", &said), "{event:?}");
        let again = ask(&stand, "C02A", joined).await;
        assert_eq!((again.source, stand.calls()), (Source::Live, 2), "{event:?}");
        assert!(stand.stands("C02A", &again), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a5_what_an_event_overtook_on_the_way_is_an_old_record_for_nobody() {
    for event in [Subject::Identifier("c02a".to_owned()), Subject::ProviderId("id of C02A".to_owned()), Subject::Everything] {
        let stand = Stand::new();
        stand.takes(Duration::from_secs(1));
        let came = Moment::now();
        let overtaken = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            stand.cache.apply(&change(event.clone(), false));
        };
        tokio::join!(ask(&stand, "C02A", came), overtaken);
        stand.fails(Some(Unavailable::Network));
        let named = event != Subject::Everything;
        // What was asked for since the request came is its answer, where the event names no device.
        let same = ask(&stand, "C02A", came).await;
        assert_eq!(matches!(same.answer, Answer::Unavailable(_)), named, "{event:?}");
        // step-ca sends the same webhook once more.
        let later = ask(&stand, "C02A", Moment::now()).await;
        assert_eq!(matches!(later.answer, Answer::Unavailable(_)), named, "{event:?}");
        stand.fails(None);
        after(10).await;
        assert_eq!(stand.says("C02A").await, "found live");
        // A record from before the event stands in for a request after it, but not once another event comes meanwhile.
        tokio::time::advance(Duration::from_secs(1)).await;
        stand.cache.apply(&change(event.clone(), false));
        stand.fails(Some(Unavailable::Network));
        let later = ask(&stand, "C02A", Moment::now()).await;
        assert_eq!(later.source, Source::Stale, "{event:?}");
        assert!(stand.stands("C02A", &later), "{event:?}");
        stand.cache.apply(&change(event.clone(), false));
        assert_eq!(stand.stands("C02A", &later), !named, "{event:?}");
        stand.fails(None);
    }
}

#[tokio::test(start_paused = true)]
async fn d13_an_event_that_names_a_device_by_a_placeholder_is_about_every_one() {
    for revoking in [false, true] {
        for placeholder in ["-1", " n/a ", "00000000-0000-0000-0000-000000000000", "ffffffffffffffffffffffffffffffff"] {
            let stand = Stand::new();
            let looked = stand.ask("C02A").await;
            stand.cache.apply(&change(Subject::Identifier(placeholder.to_owned()), revoking));
            assert!(!stand.cache.is_current(&question("C02A", Fields::NONE).device, &looked), "{placeholder}");
            stand.fails(Some(Unavailable::Network));
            assert_eq!(stand.says("C02A").await, if revoking { "network" } else { "found stale" }, "{placeholder}");
        }
    }
    // An event with the service's own id is about one device, in spite of the placeholder.
    let stand = Stand::new();
    let looked = stand.ask("C02A").await;
    let named = |id: &str| {
        [Subject::ProviderId(id.to_owned()), Subject::Identifier("-1".to_owned())].map(|device| Change { device, revoking: true })
    };
    stand.cache.apply(&named("7"));
    assert!(stand.stands("C02A", &looked));
    stand.cache.apply(&named("id of C02A"));
    assert!(!stand.stands("C02A", &looked));
    // Each entry of a feed is an event of its own.
    let looked = stand.ask("C02A").await;
    let by_id = Change { device: Subject::ProviderId("7".to_owned()), revoking: true };
    stand.feeds(Ok(vec![Logged { event: "e1".to_owned(), change: by_id.clone() }, logged("e1", "-1", true)]));
    assert_eq!(stand.cache.read_feed().await, Ok(2));
    assert!(stand.stands("C02A", &looked));
    stand.feeds(Ok(vec![Logged { event: "e2".to_owned(), change: by_id }, logged("e3", "-1", true)]));
    assert_eq!(stand.cache.read_feed().await, Ok(2));
    assert!(!stand.stands("C02A", &looked));
}

#[tokio::test(start_paused = true)]
async fn b6_a_device_that_was_just_found_has_room_however_many_are_known() {
    let cache = Lifetimes { max_entries: 8, ..Lifetimes::default() };
    let stand = Stand::with(cache, Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.keeps((0..100).map(|number| format!("D{number}")));
    // These devices are asked for again and again, so that they are worth more than any other.
    for _ in 0..20 {
        for number in 0..8 {
            stand.ask(&format!("D{number}")).await;
        }
    }
    for number in 8..100 {
        let serial = format!("D{number}");
        let looked = stand.ask(&serial).await;
        assert!(stand.cache.len() <= 8);
        assert!(stand.stands(&serial, &looked), "{serial}");
    }
}
