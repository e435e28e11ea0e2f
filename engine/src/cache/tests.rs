mod alone;
mod silence;
mod stirred;
mod turns;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use inventory::{Finding, Listed as End, Listing, Logged};
use posture::record::{Fact, Field, Group, Record};
use posture::time::UnixTime;
use tokio::sync::mpsc;

use super::*;

/// A service that a test scripts.
#[derive(Clone, Debug)]
struct Scripted(Arc<Script>);

#[derive(Debug)]
struct Script {
    records: Mutex<BTreeMap<String, Record>>,
    calls: AtomicUsize,
    fails: Mutex<Option<Unavailable>>,
    /// Answers for devices whose names begin so; `None`: no answer for an hour.
    odd: Mutex<Vec<(&'static str, Option<Answer>)>>,
    /// Duration of calls for devices whose names begin so.
    slow: Mutex<Vec<(&'static str, Duration)>>,
    /// Devices that were asked for.
    asked: Mutex<Vec<String>>,
    takes: Mutex<Duration>,
    /// Requests that a lookup takes.
    requests: Mutex<u32>,
    /// Time for which a request waits until others are answered, one each 100 ms.
    held: Mutex<Duration>,
    panics: Mutex<bool>,
    complete: Mutex<bool>,
    /// Whether the service can be asked by serial number alone.
    by_serial_alone: Mutex<bool>,
    /// Whether the service finds a device by its very spelling alone.
    minds_case: Mutex<bool>,
    /// Whether an answer counts for questions of its own hint alone.
    minds_hint: Mutex<bool>,
    changed: Mutex<Vec<Record>>,
    /// Pages that were listed and not yet taken.
    ahead: AtomicUsize,
    feed: Mutex<Result<Vec<Logged>, Unavailable>>,
    feed_reads: AtomicUsize,
    /// The kind of [`Inventory::item_kind`].
    item_kind: Option<IdentifierKind>,
    /// Spelling of the identifier in each question.
    spelled: Mutex<Vec<String>>,
    /// Whether each call was said to be for a device that was found before.
    known: Mutex<Vec<bool>>,
    /// Fields that the service's list says nothing of.
    unlisted: Mutex<Fields>,
    /// Whether the newest of several records counts.
    newest: Mutex<bool>,
}

impl Script {
    /// Every record of a device, and the one that a test put in the place of it; each may be there twice.
    fn fitting(&self, device: &DeviceId) -> Vec<Record> {
        let records = self.records.lock().unwrap();
        let has = records.values().filter(|record| entry::is_of(record, device));
        records.get(device.normal()).into_iter().chain(has).take(3).cloned().collect()
    }
}

#[async_trait]
impl Inventory for Scripted {
    fn fields(&self) -> Fields {
        Fields::of(&[Field::Serial, Field::Groups])
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial || !*self.0.by_serial_alone.lock().unwrap()
    }

    fn minds_spelling(&self) -> bool {
        *self.0.minds_case.lock().unwrap()
    }

    fn minds_hint(&self) -> bool {
        *self.0.minds_hint.lock().unwrap()
    }

    async fn answer(&self, question: &Question) -> (Answer, Option<Form>) {
        (self.lookup(question).await, question.hint.filter(|_| self.minds_hint()))
    }

    async fn lookup(&self, question: &Question) -> Answer {
        if !self.asks(question.device.kind()) || question.device.stated() == "." {
            return Answer::InvalidIdentifier;
        }
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        self.0.spelled.lock().unwrap().push(question.device.stated().to_owned());
        assert!(!*self.0.panics.lock().unwrap(), "as the test wants it");
        self.0.asked.lock().unwrap().push(question.device.normal().to_owned());
        // An answer is as of the time of its question.
        let mut fits = self.0.fitting(&question.device);
        if *self.0.minds_case.lock().unwrap() {
            fits.retain(|record| record.serial.value().is_some_and(|serial| serial == question.device.stated()));
        }
        let held = *self.0.held.lock().unwrap();
        let errand = Errand::current().unwrap();
        self.0.known.lock().unwrap().push(errand.whom() != inventory::errand::Whom::New);
        (0..*self.0.requests.lock().unwrap()).for_each(|_| errand.sends());
        if !held.is_zero() {
            let _waiting = errand.waits();
            tokio::time::sleep(held).await;
        }
        let slow = self.0.slow.lock().unwrap().iter().find(|(name, _)| question.device.normal().starts_with(name)).map(|(_, takes)| *takes);
        let takes = slow.unwrap_or(*self.0.takes.lock().unwrap());
        tokio::time::sleep(takes).await;
        if let Some(why) = *self.0.fails.lock().unwrap() {
            return Answer::Unavailable(why);
        }
        let odd = self.0.odd.lock().unwrap().iter().find(|(name, _)| question.device.normal().starts_with(name)).cloned();
        match odd {
            Some((_, Some(answer))) => return answer,
            Some((_, None)) => tokio::time::sleep(Duration::from_secs(3600)).await,
            None => {}
        }
        // The first record may be there twice, by its name and by its identifier.
        let Some(mut record) = fits.first().cloned() else { return Answer::NotFound };
        let several =
            if self.0.item_kind.is_some() { fits.len() > 1 } else { fits.iter().any(|other| other.provider_id != record.provider_id) };
        if several {
            return Answer::Ambiguous;
        }
        if !question.need.contains(Field::Groups) {
            record.groups = Fact::Unknown;
        }
        Answer::Found(Arc::new(record))
    }

    fn listing(&self) -> Listing {
        Listing::Incremental
    }

    fn item_kind(&self) -> Option<IdentifierKind> {
        self.0.item_kind
    }

    fn newer(&self, one: &Record, other: &Record) -> Option<std::cmp::Ordering> {
        let dates = (one.last_seen.value().filter(|_| *self.0.newest.lock().unwrap())?, other.last_seen.value()?);
        Some(dates.0.cmp(dates.1))
    }

    fn lists(&self, need: Fields) -> Fields {
        need.without(*self.0.unlisted.lock().unwrap())
    }

    async fn list(&self, since: Option<UnixTime>, _: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<End, Unavailable> {
        let records: Vec<_> = match since {
            None => self.0.records.lock().unwrap().values().cloned().collect(),
            Some(_) => self.0.changed.lock().unwrap().clone(),
        };
        for page in records.chunks(500) {
            pages.send(page.to_vec()).await.unwrap();
            self.0.ahead.fetch_max(pages.max_capacity() - pages.capacity(), Ordering::SeqCst);
        }
        let takes = *self.0.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        if let Some(why) = *self.0.fails.lock().unwrap() {
            return Err(why);
        }
        Ok(End { complete: *self.0.complete.lock().unwrap() })
    }

    async fn changes(&self, _: UnixTime) -> Result<Vec<Logged>, Unavailable> {
        self.0.feed_reads.fetch_add(1, Ordering::SeqCst);
        let takes = *self.0.takes.lock().unwrap();
        tokio::time::sleep(takes).await;
        self.0.feed.lock().unwrap().clone()
    }

    async fn probe(&self, _: Instant) -> Vec<Finding> {
        Vec::new()
    }
}

mod lists;

struct Stand {
    cache: Arc<Cache>,
    script: Arc<Script>,
}

fn record(serial: &str) -> Record {
    Record {
        provider_id: format!("id of {serial}"),
        serial: Fact::Value(serial.to_owned()),
        udid: Fact::Value(format!("udid-{serial}")),
        groups: Fact::Value(vec![Group { id: "1".to_owned(), name: "Good".to_owned() }]),
        ..Record::default()
    }
}

impl Stand {
    fn new() -> Self {
        Self::with(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 600_000 })
    }

    fn with(cache: Lifetimes, limits: Limits) -> Self {
        let stand = Self::unasked(cache, limits);
        stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
        stand
    }

    /// A stand from which nobody wants anything yet.
    fn unasked(cache: Lifetimes, limits: Limits) -> Self {
        Self::of_kind(None, cache, limits)
    }

    fn of_kind(item_kind: Option<IdentifierKind>, cache: Lifetimes, limits: Limits) -> Self {
        let script = Arc::new(Script {
            records: Mutex::new([("C02A".to_owned(), record("C02A"))].into()),
            calls: AtomicUsize::new(0),
            fails: Mutex::new(None),
            odd: Mutex::default(),
            slow: Mutex::default(),
            asked: Mutex::default(),
            takes: Mutex::new(Duration::from_millis(50)),
            requests: Mutex::default(),
            held: Mutex::default(),
            panics: Mutex::new(false),
            complete: Mutex::new(true),
            by_serial_alone: Mutex::new(false),
            minds_case: Mutex::new(false),
            minds_hint: Mutex::new(false),
            changed: Mutex::new(Vec::new()),
            ahead: AtomicUsize::new(0),
            feed: Mutex::new(Ok(Vec::new())),
            feed_reads: AtomicUsize::new(0),
            item_kind,
            spelled: Mutex::default(),
            known: Mutex::default(),
            unlisted: Mutex::default(),
            newest: Mutex::new(false),
        });
        let inventory: Arc<dyn Inventory> = Arc::new(Scripted(Arc::clone(&script)));
        let settings = Settings { cache, limits, connections: 5, sync: Some(Schedule::default()) };
        let cache = Arc::new(Cache::new("mdm", settings, inventory, Arc::default(), Handle::current()));
        Self { cache, script }
    }

    fn stands(&self, serial: &str, looked: &Looked) -> bool {
        self.cache.stands(&question(serial, Fields::NONE).device, looked)
    }

    fn calls(&self) -> usize {
        self.script.calls.load(Ordering::SeqCst)
    }

    fn fails(&self, why: Option<Unavailable>) {
        *self.script.fails.lock().unwrap() = why;
    }

    fn odd(&self, name: &'static str, says: Option<Answer>) {
        self.script.odd.lock().unwrap().push((name, says));
    }

    fn takes(&self, takes: Duration) {
        *self.script.takes.lock().unwrap() = takes;
    }

    fn feeds(&self, feed: Result<Vec<Logged>, Unavailable>) {
        *self.script.feed.lock().unwrap() = feed;
    }

    fn feed_reads(&self) -> usize {
        self.script.feed_reads.load(Ordering::SeqCst)
    }

    fn keeps(&self, serials: impl Iterator<Item = String>) {
        *self.script.records.lock().unwrap() = serials.map(|serial| (serial.clone(), record(&serial))).collect();
    }

    async fn ask(&self, serial: &str) -> Looked {
        self.cache.lookup(&question(serial, Fields::NONE), Terms::default()).await
    }

    async fn says(&self, serial: &str) -> &'static str {
        let Looked { answer, source, .. } = self.ask(serial).await;
        match (answer, source) {
            (Answer::Found(_), Source::Live) => "found live",
            (Answer::Found(_), Source::Cached) => "found cached",
            (Answer::Found(_), Source::Stale) => "found stale",
            (Answer::NotFound, Source::Live) => "missing live",
            (Answer::NotFound, Source::Cached) => "missing cached",
            (Answer::Unavailable(why), _) => why.as_str(),
            other => panic!("{other:?}"),
        }
    }
}

fn question(serial: &str, need: Fields) -> Question {
    let device = DeviceId::new(IdentifierKind::Serial, serial).unwrap();
    Question { device, need, hint: None, deadline: Instant::now() + Duration::from_millis(3400), way: Way::Webhook }
}

/// Terms by which no remembered answer will do.
const ANEW: Terms = Terms { not_older: Some(Duration::ZERO), came: Moment::NEVER };

fn change(device: Subject, revoking: bool) -> [Change; 1] {
    [Change { device, revoking }]
}

fn logged(event: &str, serial: &str, revoking: bool) -> Logged {
    Logged { event: event.to_owned(), change: Change { device: Subject::Identifier(serial.to_owned()), revoking } }
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_who_ask_for_one_cold_device_make_one_call() {
    for round in 0..100 {
        let stand = Stand::new();
        let serial = if round % 2 == 0 { "C02A" } else { "c02a" };
        let asks = (0..1000).map(|_| stand.ask(serial));
        assert!(futures::future::join_all(asks).await.iter().all(|looked| matches!(looked.answer, Answer::Found(_))));
        assert_eq!(stand.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_found_is_remembered_and_what_was_not_for_a_shorter_time() {
    let stand = Stand::new();
    assert_eq!((stand.says("C02A").await, stand.says("NEW").await), ("found live", "missing live"));
    after(29).await;
    assert_eq!((stand.says("C02A").await, stand.says("NEW").await), ("found cached", "missing cached"));
    tokio::time::advance(Duration::from_millis(900)).await;
    loop {
        let looked = stand.ask("NEW").await;
        if looked.source == Source::Live {
            break;
        }
        assert!(looked.age.unwrap() < Duration::from_secs(30), "{looked:?}");
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    after(31).await;
    stand.script.records.lock().unwrap().insert("NEW".to_owned(), record("NEW"));
    assert_eq!((stand.says("C02A").await, stand.says("NEW").await), ("found cached", "found live"));
    after(301).await;
    assert_eq!(stand.says("C02A").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn g1_a_record_grows_old_while_the_machine_sleeps() {
    clock::scripted::sleep(Duration::from_secs(7));
    let stand = Stand::new();
    assert_eq!(stand.says("C02A").await, "found live");
    assert_eq!(stand.says("C02A").await, "found cached", "it slept before the record came");
    clock::scripted::sleep(Duration::from_secs(7 + 301));
    assert_eq!(stand.says("C02A").await, "found live");
    stand.fails(Some(Unavailable::Network));
    clock::scripted::sleep(Duration::from_secs(86_400 * 2));
    assert_eq!(stand.says("C02A").await, "network", "a day is too long for an old record");
}

#[tokio::test(start_paused = true)]
async fn b4_each_call_says_whether_its_device_was_found_before() {
    let stand = Stand::new();
    for _ in 0..2 {
        stand.says("C02A").await;
        stand.says("INVENTED").await;
        after(3600).await;
    }
    assert_eq!(*stand.script.known.lock().unwrap(), [false, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn every_record_and_every_kind_that_is_asked_by_can_be_gone_over() {
    let stand = Stand::unasked(Lifetimes::default(), Limits::default());
    let asked = || IdentifierKind::ALL.iter().copied().filter(|kind| stand.cache.is_asked_by(*kind)).collect::<Vec<_>>();
    assert_eq!(asked(), [IdentifierKind::Serial, IdentifierKind::Udid], "a record has fields for these");
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Hostname] });
    assert_eq!(asked(), [IdentifierKind::Serial, IdentifierKind::Udid, IdentifierKind::Hostname]);
    stand.says("C02A").await;
    let mut seen = Vec::new();
    stand.cache.each_record(|record| seen.push(record.serial.clone()));
    assert_eq!(seen, [Fact::Value("C02A".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_record_near_its_end_is_refreshed_beside_the_answer() {
    let stand = Stand::new();
    stand.says("C02A").await;
    after(250).await;
    assert_eq!(stand.says("C02A").await, "found cached");
    after(100).await;
    assert_eq!(stand.says("C02A").await, "found cached", "it was refreshed 100 s ago");
    assert_eq!(stand.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_outlived_by_what_is_known_and_by_nothing_else() {
    let stand = Stand::new();
    stand.says("C02A").await;
    for why in
        [Unavailable::Network, Unavailable::RateLimited(None), Unavailable::Protocol, Unavailable::AuthRejected, Unavailable::Forbidden]
    {
        stand.fails(Some(why));
        after(400).await;
        assert_eq!(stand.says("C02A").await, "found stale", "{why:?}");
        after(400).await;
        // Once the service asked to be left alone, a known device is asked for in the place of the new one.
        assert!([why.as_str(), "paused"].contains(&stand.says("OTHER").await), "{why:?}");
    }
    after(86_400).await;
    assert_eq!(stand.says("C02A").await, "forbidden", "a day is too long");
    stand.fails(None);
    after(10).await;
    assert_eq!(stand.says("C02A").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_they_can_and_whoever_asks_again_finds_the_answer() {
    let stand = Stand::new();
    stand.takes(Duration::from_secs(5));
    let began = Instant::now();
    assert_eq!(stand.says("C02A").await, "timeout");
    assert_eq!(began.elapsed(), Duration::from_millis(3400));
    after(1).await;
    assert_eq!(stand.says("C02A").await, "found live");
    assert_eq!(stand.calls(), 1, "the second attempt joined the first one's call");
    after(400).await;
    let began = Instant::now();
    assert_eq!(stand.says("C02A").await, "found stale");
    assert!(began.elapsed() < Duration::from_secs(2), "who could have an old answer does not wait for the deadline");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_effective_on_the_next_question() {
    let stand = Stand::new();
    for device in [
        Subject::Identifier("c02a".to_owned()),
        Subject::Identifier("UDID-C02A".to_owned()),
        Subject::ProviderId("id of C02A".to_owned()),
        Subject::Everything,
    ] {
        stand.says("C02A").await;
        let calls = stand.calls();
        assert_eq!(stand.says("C02A").await, "found cached");
        tokio::time::advance(Duration::from_millis(1)).await;
        let before = Instant::now();
        assert!(stand.cache.quiet_since(before));
        stand.cache.apply(&change(device.clone(), true));
        assert!(!stand.cache.quiet_since(before), "{device:?}");
        assert_eq!(stand.says("C02A").await, "found live", "{device:?}");
        assert!(
            !stand.cache.quiet_since(before),
            "{device:?}: what was decided before stays in doubt though the device was asked for since"
        );
        assert_eq!(stand.calls(), calls + 1);
    }
    stand.says("NEW").await;
    stand.cache.apply(&change(Subject::Identifier("new".to_owned()), false));
    assert_eq!(stand.says("NEW").await, "missing live", "that it was missing may not be so any more");
    stand.cache.apply(&change(Subject::Identifier("other".to_owned()), true));
    assert_eq!(stand.says("C02A").await, "found cached", "it was about another device");
}

#[tokio::test(start_paused = true)]
async fn what_an_event_revoked_does_not_outlive_an_outage() {
    let stand = Stand::new();
    stand.says("C02A").await;
    stand.fails(Some(Unavailable::Network));
    stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), false));
    assert_eq!(stand.says("C02A").await, "found stale", "it may have changed, and may not");
    stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), true));
    assert_eq!(stand.says("C02A").await, "network");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_an_event_overtook_is_not_used_again() {
    let stand = Stand::new();
    stand.takes(Duration::from_secs(2));
    let asking = stand.ask("C02A");
    let event = async {
        after(1).await;
        stand.script.records.lock().unwrap().clear();
        stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), true));
    };
    let (_, ()) = tokio::join!(asking, event);
    assert_eq!(stand.says("C02A").await, "missing live");
}

#[tokio::test(start_paused = true)]
async fn a_record_without_a_field_that_is_needed_is_fetched_anew() {
    let stand = Stand::new();
    stand.says("C02A").await;
    let need = Fields::of(&[Field::Groups]);
    let looked = stand.cache.lookup(&question("C02A", need), Terms::default()).await;
    assert!(matches!(looked.answer, Answer::Found(record) if record.knows(Field::Groups)));
    assert_eq!(stand.calls(), 2);
    assert_eq!(stand.says("C02A").await, "found cached");
    stand.cache.want(Wanted { fields: need, kinds: vec![IdentifierKind::Serial] });
    stand.cache.purge(None);
    stand.says("C02A").await;
    let looked = stand.cache.lookup(&question("C02A", need), Terms::default()).await;
    assert_eq!((looked.source, stand.calls()), (Source::Cached, 3), "what somebody needs is fetched for all");
}

#[tokio::test(start_paused = true)]
async fn who_would_deny_by_an_old_record_can_have_a_new_one() {
    let stand = Stand::new();
    stand.says("C02A").await;
    after(60).await;
    let not_older = Terms { not_older: Some(Duration::from_secs(30)), ..Terms::default() };
    assert_eq!(stand.cache.lookup(&question("C02A", Fields::NONE), not_older).await.source, Source::Live);
    assert_eq!(stand.cache.lookup(&question("C02A", Fields::NONE), not_older).await.source, Source::Cached);
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_device_is_never_an_answer() {
    let stand = Stand::new();
    let other = record("OTHER");
    stand.script.records.lock().unwrap().insert("C02B".to_owned(), other);
    assert_eq!(stand.says("C02B").await, "protocol");
    assert_eq!(stand.cache.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn guessing_leaves_the_calls_of_known_devices_alone() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 20, unknown_per_minute: 60 });
    stand.says("C02A").await;
    after(400).await;
    let mut asked = 0;
    for number in 0..2000 {
        asked += usize::from(stand.says(&format!("GUESS{number}")).await == "missing live");
    }
    assert!(asked <= 64, "{asked}");
    assert_eq!(stand.says("C02A").await, "found live");
    assert_eq!(stand.says("GUESS9999").await, "out_of_budget");
}

#[tokio::test(start_paused = true)]
async fn a_new_fleet_does_not_count_as_guessing() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 10 });
    stand.keeps((0..500).map(|number| format!("NEW{number}")));
    for number in 0..500 {
        assert_eq!(stand.says(&format!("NEW{number}")).await, "found live", "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_is_left_alone_and_found_again() {
    let stand = Stand::new();
    stand.keeps((0..600).map(|number| format!("DEVICE{number}")).chain(["C02A", "C02B"].map(str::to_owned)));
    for two in ["C02A", "C02B"] {
        assert_eq!(stand.says(two).await, "found live", "as many as it takes to speak against the service");
    }
    stand.fails(Some(Unavailable::ServerError(None)));
    stand.takes(Duration::from_millis(1));
    let calls = stand.calls();
    for number in 0..60_000 {
        let said = stand.says(&format!("DEVICE{}", number % 600)).await;
        assert!(matches!(said, "server_error" | "paused"), "{said}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let calls = stand.calls() - calls;
    assert!(calls <= 600, "{calls} of 60,000");
    stand.fails(None);
    after(6).await;
    assert_eq!(stand.says("DEVICE1").await, "found live");
    assert_eq!(stand.says("DEVICE2").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_from_the_start_gets_no_more_calls_than_there_are_guesses() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 20, unknown_per_minute: 120 });
    stand.keeps((0..600).map(|number| format!("DEVICE{number}")));
    stand.fails(Some(Unavailable::ServerError(None)));
    let began = Instant::now();
    for number in 0..60_000 {
        let said = stand.says(&format!("DEVICE{}", number % 600)).await;
        assert!(matches!(said, "server_error" | "out_of_budget"), "{said}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let guesses = 120 + began.elapsed().as_secs() * 2;
    assert!(stand.calls() as u64 <= guesses, "{} of 60,000, where there are {guesses} guesses", stand.calls());
    stand.fails(None);
    after(6).await;
    assert_eq!(stand.says("DEVICE1").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_gets_few_calls_however_many_ask() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 20, unknown_per_minute: 120 });
    stand.keeps(["C02A", "C02B"].map(str::to_owned).into_iter());
    for two in ["C02A", "C02B"] {
        assert_eq!(stand.says(two).await, "found live");
    }
    after(400).await;
    stand.takes(Duration::from_secs(3600));
    let (began, calls) = (Instant::now(), stand.calls());
    let mut asks = Vec::new();
    for number in 0..2000 {
        let (cache, device) = (Arc::clone(&stand.cache), if number % 2 == 0 { "C02A".to_owned() } else { format!("GUESS{number}") });
        asks.push(tokio::spawn(async move {
            let began = Instant::now();
            let looked = cache.lookup(&question(&device, Fields::NONE), Terms::default()).await;
            assert!(began.elapsed() <= Duration::from_millis(3400), "{device}");
            assert_eq!(matches!(looked.answer, Answer::Found(_)), device == "C02A", "{device}: {:?}", looked.answer);
        }));
        tokio::time::sleep_until(began + Duration::from_millis(10) * (number + 1)).await;
    }
    for ask in asks {
        ask.await.unwrap();
    }
    let calls = stand.calls() - calls;
    assert!(calls <= 10, "{calls} of 2,000");
    stand.takes(Duration::from_millis(50));
    stand.keeps(["NEW".to_owned()].into_iter());
    let began = Instant::now();
    while stand.says("NEW").await != "found live" {
        assert!(began.elapsed() <= Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn more_calls_than_the_service_takes_at_once_wait_for_each_other() {
    let stand = Stand::new();
    stand.keeps((0..100).map(|number| format!("NEW{number}")));
    stand.takes(Duration::from_millis(100));
    let began = Instant::now();
    let serials: Vec<_> = (0..100).map(|number| format!("NEW{number}")).collect();
    let said = futures::future::join_all(serials.iter().map(|serial| stand.says(serial))).await;
    assert!(said.iter().all(|said| *said == "found live"), "{said:?}");
    assert_eq!(began.elapsed(), Duration::from_millis(2500), "four at once: one of five is kept for known devices");
}

#[tokio::test(start_paused = true)]
async fn who_asks_while_the_service_is_left_alone_spends_nobodys_budget() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 20, unknown_per_minute: 120 });
    stand.says("C02A").await;
    stand.fails(Some(Unavailable::RateLimited(Some(Duration::from_secs(30)))));
    assert_eq!(stand.says("GUESS").await, "rate_limited");
    for number in 0..10_000 {
        assert_eq!(stand.says(&format!("GUESS{number}")).await, "paused");
    }
    stand.fails(None);
    after(30).await;
    for number in 0..100 {
        assert_eq!(stand.says(&format!("GUESS{number}")).await, "missing live", "{number}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_died_is_not_waited_for() {
    let stand = Stand::new();
    *stand.script.panics.lock().unwrap() = true;
    assert_eq!(stand.says("C02A").await, "network");
    *stand.script.panics.lock().unwrap() = false;
    assert_eq!(stand.says("C02A").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_devices_of_a_list_need_no_call() {
    let stand = Stand::new();
    stand.keeps((0..10_000).map(|number| format!("FLEET{number}")));
    assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 10_000, removed: 0 }));
    for number in 0..10_000 {
        assert_eq!(stand.says(&format!("FLEET{number}")).await, "found cached");
    }
    for _ in 0..2 {
        after(900).await;
        assert_eq!(stand.cache.sweep(false).await, Ok(Swept { seen: 0, removed: 0 }));
        assert_eq!(stand.says("FLEET1").await, "found cached", "the list of changes does not have it");
    }
    assert_eq!(stand.calls(), 0);
    stand.fails(Some(Unavailable::Network));
    after(3600).await;
    assert_eq!(stand.says("FLEET1").await, "found stale");
}

#[tokio::test(start_paused = true)]
async fn a3_a_list_of_what_changed_confirms_nothing_that_it_does_not_list_whatever_it_says_of_itself() {
    let stand = Stand::new();
    stand.keeps(std::iter::once("SILENT".to_owned()));
    stand.cache.sweep(true).await.unwrap();
    for _ in 0..4 {
        after(900).await;
        stand.cache.sweep(false).await.unwrap();
    }
    assert_eq!(stand.says("SILENT").await, "found live", "the last list that had it is an hour old");
}

#[tokio::test(start_paused = true)]
async fn a_change_in_a_list_takes_the_place_of_what_was_known() {
    let stand = Stand::new();
    stand.cache.sweep(true).await.unwrap();
    let renamed = Record { name: Fact::Value("new name".to_owned()), ..record("C02A") };
    *stand.script.changed.lock().unwrap() = vec![renamed.clone()];
    after(900).await;
    stand.cache.sweep(false).await.unwrap();
    assert_eq!(stand.cache.peek(&question("C02A", Fields::NONE).device), Some(renamed));
}

#[tokio::test(start_paused = true)]
async fn only_a_whole_list_removes_a_device() {
    let stand = Stand::new();
    stand.keeps((0..100).map(|number| format!("FLEET{number}")));
    stand.cache.sweep(true).await.unwrap();
    stand.keeps((0..95).map(|number| format!("FLEET{number}")));
    *stand.script.complete.lock().unwrap() = false;
    assert_eq!(stand.cache.sweep(true).await, Err(NotSwept::Incomplete));
    *stand.script.complete.lock().unwrap() = true;
    stand.fails(Some(Unavailable::Network));
    assert_eq!(stand.cache.sweep(true).await, Err(NotSwept::Unavailable(Unavailable::Network)));
    assert_eq!(stand.says("FLEET99").await, "found cached");
    stand.fails(None);
    assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 95, removed: 5 }));
    assert_eq!(stand.says("FLEET99").await, "missing live");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lost_too_many_removes_nobody_until_it_is_accepted() {
    let stand = Stand::new();
    stand.keeps((0..100).map(|number| format!("FLEET{number}")));
    stand.cache.sweep(true).await.unwrap();
    stand.keeps((0..50).map(|number| format!("FLEET{number}")));
    assert_eq!(stand.cache.sweep(true).await, Err(NotSwept::Shrunk { had: 100, has: 50 }));
    assert_eq!(stand.says("FLEET99").await, "found cached");
    assert_eq!(stand.cache.pending_shrink(), Some(NotSwept::Shrunk { had: 100, has: 50 }));
    stand.cache.accept_shrink();
    assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 50, removed: 50 }));
    assert_eq!(stand.cache.pending_shrink(), None);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_accepted_is_read_at_once_where_one_is_read_at_all() {
    let stand = Stand::unasked(Lifetimes::default(), Limits::default());
    let mut due = stand.cache.sweeps.list_due.subscribe();
    due.mark_unchanged();
    stand.cache.accept_shrink();
    assert!(!due.has_changed().unwrap(), "nobody has asked for anything");
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    due.mark_unchanged();
    stand.cache.accept_shrink();
    assert!(due.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_event_during_a_list_is_not_overtaken_by_it() {
    let stand = Stand::new();
    stand.takes(Duration::from_secs(2));
    let event = async {
        after(1).await;
        stand.script.records.lock().unwrap().clear();
        stand.cache.apply(&change(Subject::ProviderId("id of C02A".to_owned()), true));
    };
    let (swept, ()) = tokio::join!(stand.cache.sweep(true), event);
    swept.unwrap();
    assert_eq!(stand.says("C02A").await, "missing live");
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_on_when_whoever_asked_has_gone() {
    let stand = Stand::new();
    stand.takes(Duration::from_secs(2));
    {
        let gone = tokio::time::timeout(Duration::from_secs(1), stand.ask("C02A"));
        assert!(gone.await.is_err());
    }
    assert_eq!(stand.says("C02A").await, "found live", "it joined the call that was under way");
    assert_eq!(stand.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_start_the_list_is_read_before_anybody_asks() {
    let stand = Stand::new();
    stand.keeps((0..1000).map(|number| format!("FLEET{number}")));
    let sweeping = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
    after(1).await;
    for number in 0..1000 {
        assert_eq!(stand.says(&format!("FLEET{number}")).await, "found cached");
    }
    assert_eq!(stand.calls(), 0);
    sweeping.abort();
}

#[tokio::test(start_paused = true)]
async fn two_hundred_thousand_devices_are_listed_page_by_page() {
    // The time of this thread alone counts: what else the machine does is no matter.
    let spent = || Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let stand = Stand::new();
    stand.keeps((0..200_000).map(|number| format!("FLEET{number}")));
    let began = spent();
    assert_eq!(stand.cache.sweep(true).await, Ok(Swept { seen: 200_000, removed: 0 }));
    // The bound is for a build without optimisation.
    let took = spent() - began;
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(stand.cache.len(), 200_000);
    let ahead = stand.script.ahead.load(Ordering::SeqCst);
    assert!(ahead <= 4, "{ahead} pages were held at once");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_names_pushes_no_device_out() {
    let stand =
        Stand::with(Lifetimes { max_entries: 1000, ..Lifetimes::default() }, Limits { per_second: 20_000, unknown_per_minute: 20_000 });
    stand.keeps((0..900).map(|number| format!("FLEET{number}")));
    stand.takes(Duration::ZERO);
    stand.cache.sweep(true).await.unwrap();
    for number in 0..1_000_000 {
        stand.ask(&format!("GUESS{number}")).await;
    }
    let calls = stand.calls();
    assert!(calls >= 10_000, "{calls}: some got as far as the service");
    for number in 0..900 {
        stand.ask(&format!("FLEET{number}")).await;
    }
    assert_eq!(stand.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn a_unique_identifier_without_its_dashes_is_the_same_device() {
    let stand = Stand::new();
    let udid = "00008103-001A2B3C4D5E6F70";
    let known = Record { udid: Fact::Value(udid.to_owned()), ..record("C02A") };
    *stand.script.records.lock().unwrap() = [(udid.to_owned(), known)].into();
    for (stated, source) in
        [("00008103001a2b3c4d5e6f70", Source::Live), (udid, Source::Cached), ("00008103-001a2b3c4d5e6f70", Source::Cached)]
    {
        let device = DeviceId::new(IdentifierKind::Udid, stated).unwrap();
        let looked = stand.cache.lookup(&Question { device, ..question("C02A", Fields::NONE) }, Terms::default()).await;
        assert!(matches!(looked.answer, Answer::Found(_)), "{stated}");
        assert_eq!(looked.source, source, "{stated}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_is_found_by_each_kind_of_identifier_that_is_asked_by() {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    stand.says("C02A").await;
    let device = DeviceId::new(IdentifierKind::Udid, "udid-c02a").unwrap();
    let by_udid = Question { device, ..question("C02A", Fields::NONE) };
    let looked = stand.cache.lookup(&by_udid, Terms::default()).await;
    assert_eq!((looked.source, stand.calls()), (Source::Live, 2), "that another device has it too is known once it was asked by");
    assert_eq!(stand.cache.lookup(&by_udid, Terms::default()).await.source, Source::Cached);
    assert_eq!(stand.says("C02A").await, "found cached");
}

#[tokio::test(start_paused = true)]
async fn a_list_is_read_once_it_is_known_what_is_asked_for_and_again_when_that_grows() {
    let stand = Stand::unasked(Lifetimes::default(), Limits::default());
    let listing = tokio::spawn(Arc::clone(&stand.cache).keep_swept());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut wanted = Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] };
    stand.cache.want(wanted.clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stand.ask("C02A").await.source, Source::Cached);
    wanted.kinds.push(IdentifierKind::Udid);
    stand.cache.want(wanted);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let device = DeviceId::new(IdentifierKind::Udid, "udid-c02a").unwrap();
    let looked = stand.cache.lookup(&Question { device, ..question("C02A", Fields::NONE) }, Terms::default()).await;
    assert_eq!((looked.source, stand.calls()), (Source::Cached, 0));
    listing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_removal_in_the_feed_is_noticed_between_two_lists_and_once() {
    let stand = Stand::new();
    tokio::spawn(Arc::clone(&stand.cache).keep_swept());
    after(1).await;
    assert_eq!(stand.says("C02A").await, "found cached", "it was listed");
    stand.feeds(Ok(vec![logged("e1", "C02A", true)]));
    after(60).await;
    stand.fails(Some(Unavailable::Network));
    assert_eq!(stand.says("C02A").await, "network", "what is revoked does not outlive an outage");
    stand.fails(None);
    assert_eq!(stand.says("C02A").await, "found live");
    for _ in 0..5 {
        after(60).await;
        assert_eq!(stand.says("C02A").await, "found cached", "the same event");
    }
    stand.feeds(Ok(vec![logged("e1", "C02A", true), logged("e2", "C02A", false)]));
    after(60).await;
    assert_eq!(stand.says("C02A").await, "found live", "another one of the same device");
    assert_eq!(stand.feed_reads(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_event_of_a_feed_that_has_no_name_counts_each_time_that_it_is_read() {
    let stand = Stand::new();
    stand.feeds(Ok(vec![logged("", "C02A", false)]));
    for _ in 0..3 {
        assert_eq!(stand.says("C02A").await, "found live");
        assert_eq!(stand.cache.read_feed().await, Ok(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_or_a_list_that_the_feed_overtook_is_not_used() {
    let stand = Stand::new();
    stand.feeds(Ok(vec![logged("e1", "C02A", true)]));
    let feed = async {
        after(1).await;
        stand.takes(Duration::ZERO);
        stand.script.records.lock().unwrap().clear();
        stand.cache.read_feed().await
    };
    stand.takes(Duration::from_secs(2));
    let (swept, looked, read) = tokio::join!(stand.cache.sweep(true), stand.ask("C02A"), feed);
    assert_eq!((swept.is_ok(), read), (true, Ok(1)));
    assert!(matches!(looked.answer, Answer::Found(_)), "it was so when it was asked for");
    assert_eq!(stand.says("C02A").await, "missing live");
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_cannot_be_read_is_asked_for_less_often_and_keeps_nobody_from_a_lookup() {
    for why in [Unavailable::Forbidden, Unavailable::RateLimited(Some(Duration::from_secs(300))), Unavailable::Protocol] {
        let stand = Stand::new();
        stand.feeds(Err(why));
        tokio::spawn(Arc::clone(&stand.cache).keep_swept());
        after(3600).await;
        assert_eq!(stand.feed_reads(), 13, "after 1 min, 2 min, 4 min, and then each 5 min");
        assert_eq!(stand.cache.circuit(), Circuit::Closed);
        assert_eq!(stand.says("NEW").await, "missing live");
        let labels = CallLabels { provider: Word::from("mdm"), outcome: why.as_str() };
        assert_eq!(stand.cache.metrics.feed_reads.get_or_create(&labels).get(), 13);
        stand.cache.sweep(true).await.unwrap();
        assert_eq!(stand.says("C02A").await, "found cached");
        stand.feeds(Ok(vec![logged("e1", "C02A", true)]));
        after(300).await;
        assert_eq!(stand.says("C02A").await, "found live", "nothing was passed over meanwhile");
    }
}

#[tokio::test(start_paused = true)]
async fn the_feed_is_not_read_of_a_service_that_is_left_alone_and_counts_as_a_lookup() {
    let stand = Stand::new();
    stand.feeds(Err(Unavailable::ServerError(None)));
    let mut whys = Vec::new();
    for _ in 0..4 {
        whys.push(stand.cache.read_feed().await.unwrap_err());
    }
    assert_eq!((whys.pop(), stand.feed_reads()), (Some(Unavailable::Paused), 3));
    assert_eq!(stand.says("C02A").await, "paused", "three failures in a row are those of the service");
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 1, unknown_per_minute: 60 });
    let began = Instant::now();
    assert_eq!(stand.cache.read_feed().await, Ok(0));
    assert_eq!(stand.says("C02A").await, "found live");
    assert!(began.elapsed() >= Duration::from_secs(1), "one call in a second: {:?}", began.elapsed());
    assert_eq!(stand.cache.read_feed().await, Ok(0));
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_does_not_end_is_given_up_and_holds_no_lookup_up() {
    let stand = Stand::new();
    stand.says("C02A").await;
    stand.takes(Duration::from_secs(3600));
    let began = Instant::now();
    let lookup = async {
        after(5).await;
        stand.takes(Duration::ZERO);
        stand.says("NEW").await
    };
    let (read, said) = tokio::join!(stand.cache.read_feed(), lookup);
    assert_eq!((read, said), (Err(Unavailable::Timeout), "missing live"));
    assert_eq!(began.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_guesses_leaves_calls_of_the_same_second_to_known_devices() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 4, unknown_per_minute: 600 });
    assert_eq!(stand.says("C02A").await, "found live");
    after(3600).await;
    let guesses: Vec<_> = (0..100).map(|number| format!("GUESS{number}")).collect();
    let (looked, device) = tokio::join!(futures::future::join_all(guesses.iter().map(|guess| stand.ask(guess))), stand.says("C02A"));
    let said = |why: Unavailable| looked.iter().filter(|looked| looked.answer == Answer::Unavailable(why)).count();
    let asked = looked.iter().filter(|looked| looked.answer == Answer::NotFound).count();
    assert_eq!((asked + said(Unavailable::Busy), device), (100, "found live"));
    // One or two calls at once, and then four in each of the 3.4 s in which somebody waits.
    assert!((13..=15).contains(&asked), "{asked}");
}

fn udid(text: &str) -> Question {
    Question { device: DeviceId::new(IdentifierKind::Udid, text).unwrap(), ..question("-", Fields::NONE) }
}

/// A stand that asks by both kinds of identifiers, with these records only.
fn stand_of(records: &[Record]) -> Stand {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.records.lock().unwrap() = records.iter().map(|record| (record.provider_id.clone(), record.clone())).collect();
    stand
}

#[tokio::test(start_paused = true)]
async fn a3_two_records_of_one_identifier_in_a_list_are_ambiguous_until_the_service_says_otherwise() {
    let twin = Record { provider_id: "another".to_owned(), ..record("C02A") };
    let stand = stand_of(&[record("C02A"), twin.clone(), record("C02B")]);
    stand.cache.sweep(true).await.unwrap();
    assert_eq!((stand.ask("C02A").await.answer, stand.says("C02B").await), (Answer::Ambiguous, "found cached"));
    // Each device was listed by its own identifiers as well, and shares the serial number.
    let shared = Record { serial: record("C02A").serial, udid: Fact::Value("udid-other".to_owned()), ..twin };
    let stand = stand_of(&[record("C02A"), shared.clone()]);
    stand.cache.sweep(true).await.unwrap();
    let looked = stand.cache.lookup(&udid("udid-other"), Terms::default()).await;
    let Answer::Found(found) = &looked.answer else { panic!("{looked:?}") };
    assert!(stand.cache.is_ambiguous(found), "it has the serial of another device");
    stand.script.records.lock().unwrap().remove("another");
    after(31).await;
    assert_eq!(stand.says("C02A").await, "found live", "the service was asked, and has one");
    assert!(!stand.cache.is_ambiguous(found));
}

#[tokio::test(start_paused = true)]
async fn a3_ambiguity_of_a_list_does_not_fade_into_the_record_that_was_listed_last() {
    let stand = stand_of(&[record("C02A"), Record { provider_id: "another".to_owned(), ..record("C02A") }]);
    stand.cache.sweep(true).await.unwrap();
    stand.fails(Some(Unavailable::Network));
    for _ in 0..20 {
        after(60).await;
        assert!(!matches!(stand.ask("C02A").await.answer, Answer::Found(_)));
    }
    stand.fails(None);
    after(10).await;
    stand.cache.sweep(false).await.unwrap();
    assert_eq!(stand.ask("C02A").await.answer, Answer::Ambiguous);
}

#[tokio::test(start_paused = true)]
async fn a3_a_changed_record_with_the_identifier_of_another_is_no_answer_by_it() {
    let stand = stand_of(&[record("C02A")]);
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(stand.says("C02A").await, "found cached");
    let twin = Record { provider_id: "another".to_owned(), ..record("C02A") };
    stand.script.records.lock().unwrap().insert("another".to_owned(), twin.clone());
    *stand.script.changed.lock().unwrap() = vec![twin];
    after(900).await;
    stand.cache.sweep(false).await.unwrap();
    assert_eq!(stand.ask("C02A").await.answer, Answer::Ambiguous, "the list of changes cannot say whose it is; the service can");
}

#[tokio::test(start_paused = true)]
async fn a3_a_device_that_one_list_has_twice_and_not_alike_is_asked_for() {
    let other = Record { managed: Fact::Value(false), ..record("C02A") };
    let stand = stand_of(&[record("C02A")]);
    stand.script.records.lock().unwrap().insert("again".to_owned(), other);
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(stand.ask("C02A").await.source, Source::Live);
}

#[tokio::test(start_paused = true)]
async fn a4_an_answer_by_one_identifier_is_none_by_another() {
    let host = |serial: &str| Record { udid: Fact::Value("U".to_owned()), ..record(serial) };
    let stand = stand_of(&[host("C02A"), host("C02B")]);
    assert_eq!(stand.cache.lookup(&udid("U"), Terms::default()).await.answer, Answer::Ambiguous);
    assert_eq!(stand.says("C02A").await, "found live");
    let looked = stand.cache.lookup(&udid("U"), Terms::default()).await;
    assert_eq!(looked.answer, Answer::Ambiguous);
    after(31).await;
    assert_eq!(stand.says("C02B").await, "found live");
    assert_eq!(stand.cache.lookup(&udid("U"), Terms::default()).await.answer, Answer::Ambiguous);
    // The device that answered by its identifier is in doubt once another one turns up with it.
    let stand = stand_of(&[host("C02A")]);
    assert!(matches!(stand.cache.lookup(&udid("U"), Terms::default()).await.answer, Answer::Found(_)));
    stand.script.records.lock().unwrap().insert("id of C02B".to_owned(), host("C02B"));
    assert_eq!(stand.says("C02B").await, "found live");
    assert_eq!(stand.cache.lookup(&udid("U"), Terms::default()).await.answer, Answer::Ambiguous);
}

#[tokio::test(start_paused = true)]
async fn a5_a_list_that_began_earlier_brings_no_device_back() {
    for negative in [Duration::from_secs(1), Duration::from_secs(30)] {
        let stand = stand_of(&[record("RACE1"), record("C02B")]);
        let stand = Stand { cache: Arc::new(stand.cache.with_settings(short(negative), stand.cache.inventory())), ..stand };
        assert_eq!(stand.says("RACE1").await, "found live");
        stand.takes(Duration::from_secs(9));
        let deleted = async {
            after(1).await;
            stand.takes(Duration::from_millis(50));
            stand.script.records.lock().unwrap().remove("id of RACE1");
            stand.cache.purge(Some(&question("RACE1", Fields::NONE).device));
            assert_eq!(stand.says("RACE1").await, "missing live");
        };
        let (swept, ()) = tokio::join!(stand.cache.sweep(true), deleted);
        swept.unwrap();
        stand.fails(Some(Unavailable::Network));
        after(2).await;
        assert!(!matches!(stand.ask("RACE1").await.answer, Answer::Found(_)), "{negative:?}");
        assert!(!matches!(stand.cache.lookup(&udid("udid-RACE1"), Terms::default()).await.answer, Answer::Found(_)), "{negative:?}");
        assert_eq!(stand.says("C02B").await, "found cached");
    }
}

fn short(negative: Duration) -> Settings {
    Settings {
        cache: Lifetimes { negative, ..Lifetimes::default() },
        limits: Limits { per_second: 10_000, unknown_per_minute: 600_000 },
        connections: 5,
        sync: Some(Schedule::default()),
    }
}

#[tokio::test(start_paused = true)]
async fn a5_a_device_that_was_not_found_by_one_identifier_is_asked_for_by_the_other() {
    let stand = stand_of(&[record("C02A")]);
    let by_udid = udid("udid-C02A");
    assert!(matches!(stand.cache.lookup(&by_udid, Terms::default()).await.answer, Answer::Found(_)));
    stand.script.records.lock().unwrap().clear();
    assert_eq!(stand.says("C02A").await, "missing live");
    after(60).await;
    let looked = stand.cache.lookup(&udid("udid-C02A"), Terms::default()).await;
    assert_eq!((looked.answer, looked.source), (Answer::NotFound, Source::Live));
}

#[tokio::test(start_paused = true)]
async fn a5_a_newer_record_counts_for_every_identifier_of_its_device() {
    let stand = stand_of(&[record("C02A")]);
    let by_udid = udid("udid-C02A");
    stand.cache.lookup(&by_udid, Terms::default()).await;
    after(10).await;
    stand.script.records.lock().unwrap().insert("id of C02A".to_owned(), Record { lost: Fact::Value(true), ..record("C02A") });
    assert_eq!(stand.says("C02A").await, "found live");
    let Answer::Found(known) = stand.cache.lookup(&by_udid, Terms::default()).await.answer else { panic!() };
    assert_eq!(known.lost, Fact::Value(true));
}

#[tokio::test(start_paused = true)]
async fn a5_a_slow_answer_takes_the_place_of_none_that_was_asked_later() {
    let stand = stand_of(&[record("C02A")]);
    stand.takes(Duration::from_secs(3));
    let by_udid = udid("udid-C02A");
    let early = stand.cache.lookup(&by_udid, Terms::default());
    let late = async {
        after(1).await;
        stand.takes(Duration::from_millis(50));
        stand.script.records.lock().unwrap().clear();
        stand.says("C02A").await
    };
    let (early, late) = tokio::join!(early, late);
    assert_eq!(late, "missing live");
    assert!(!stand.cache.stands(&by_udid.device, &early), "what it says was overtaken: {early:?}");
    assert_eq!(stand.cache.lookup(&by_udid, Terms::default()).await.answer, Answer::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a2_that_there_is_none_or_that_nobody_can_say_is_looked_at_again() {
    let twice = |stand: &Stand| {
        let other = Record { provider_id: "another".to_owned(), ..record("NEW1") };
        let records = [("id of NEW1".to_owned(), record("NEW1")), ("another".to_owned(), other)];
        stand.script.records.lock().unwrap().extend(records);
    };
    let missing = async || {
        let stand = stand_of(&[record("C02A")]);
        let looked = stand.ask("NEW1").await;
        assert!(stand.stands("NEW1", &looked) && looked.answer == Answer::NotFound);
        (stand, looked)
    };
    // Two devices turn up under the identifier, found by a call.
    let (stand, looked) = missing().await;
    twice(&stand);
    assert_eq!(stand.cache.lookup(&question("NEW1", Fields::NONE), ANEW).await.answer, Answer::Ambiguous);
    assert!(!stand.stands("NEW1", &looked));
    // A list shows them, whole or not.
    for complete in [true, false] {
        let (stand, looked) = missing().await;
        twice(&stand);
        *stand.script.complete.lock().unwrap() = complete;
        assert_eq!(stand.cache.sweep(true).await.is_ok(), complete);
        assert!(!stand.stands("NEW1", &looked), "{complete}");
    }
    // An event comes.
    for device in [Subject::Identifier("NEW1".to_owned()), Subject::Everything] {
        let (stand, looked) = missing().await;
        stand.cache.apply(&[Change { device, revoking: true }]);
        assert!(!stand.stands("NEW1", &looked));
    }
    // A service that could not say may know by now.
    let (stand, _) = missing().await;
    stand.fails(Some(Unavailable::Network));
    let silent = stand.ask("NEW2").await;
    assert!(stand.stands("NEW2", &silent));
    stand.fails(None);
    after(10).await;
    assert_eq!(stand.ask("NEW2").await.answer, Answer::NotFound);
    assert!(!stand.stands("NEW2", &silent));
}

#[tokio::test(start_paused = true)]
async fn a4_what_a_service_cannot_be_asked_by_is_asked_by_the_serial_number_and_is_not_missing() {
    let stand = Stand::unasked(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    let ask = async |terms| stand.cache.lookup(&udid("udid-C02A"), terms).await;
    assert_eq!(ask(Terms::default()).await.answer, Answer::Unavailable(Unavailable::NotLoaded), "before there was a list nobody can say");
    stand.cache.sweep(true).await.unwrap();
    assert!(matches!(ask(Terms::default()).await, Looked { answer: Answer::Found(_), source: Source::Cached, .. }));
    assert_eq!(stand.cache.lookup(&udid("udid-NOBODY"), Terms::default()).await.answer, Answer::InvalidIdentifier);
    // The list is old by now, and whoever would deny by it asks anew.
    after(86_000).await;
    for terms in [Terms::default(), ANEW] {
        let looked = ask(terms).await;
        assert!(matches!(looked, Looked { answer: Answer::Found(_), source: Source::Live, .. }), "{looked:?}");
        assert!(stand.cache.stands(&udid("udid-C02A").device, &looked));
        after(400).await;
    }
    after(3000).await;
    stand.fails(Some(Unavailable::Network));
    assert!(matches!(ask(Terms::default()).await, Looked { answer: Answer::Found(_), source: Source::Stale, .. }));
    stand.fails(None);
    after(10).await;
    let there = stand.script.records.lock().unwrap().clone();
    stand.script.records.lock().unwrap().clear();
    let gone = ask(Terms::default()).await;
    assert!(
        matches!((&gone.answer, &gone.evidence), (Answer::Unavailable(_), Evidence::Moved(_))),
        "it may have another serial number: {gone:?}"
    );
    assert!(stand.cache.stands(&udid("udid-C02A").device, &gone));
    stand.script.records.lock().unwrap().extend(there);
    assert!(matches!(stand.cache.lookup(&question("C02A", Fields::NONE), ANEW).await.answer, Answer::Found(_)));
    assert!(!stand.cache.stands(&udid("udid-C02A").device, &gone), "and may be back while another provider is asked");
}

#[tokio::test(start_paused = true)]
async fn a12_bounds_of_our_own_let_no_old_record_answer() {
    let limits = Limits { per_second: 4, unknown_per_minute: 600 };
    let stand = Stand::with(Lifetimes::default(), limits);
    stand.keeps((0..12).map(|number| format!("D{number}")));
    for number in 0..12 {
        assert_eq!(stand.says(&format!("D{number}")).await, "found live");
    }
    after(3600).await;
    stand.script.records.lock().unwrap().clear();
    for _ in 0..3 {
        let names: Vec<_> = (0..12).map(|number| format!("D{number}")).collect();
        let said = futures::future::join_all(names.iter().map(|name| stand.says(name))).await;
        assert!(said.iter().all(|said| !said.starts_with("found")), "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a12_who_waits_until_others_are_answered_has_no_old_record_for_it() {
    let known: Vec<_> = (0..6).map(|number| format!("D{number}")).collect();
    for (held, expected) in [(2500, "missing"), (3_600_000, "busy")] {
        let stand = Stand::new();
        stand.keeps(known.iter().cloned());
        for name in &known {
            assert_eq!(stand.says(name).await, "found live");
        }
        after(3600).await;
        stand.script.records.lock().unwrap().clear();
        *stand.script.held.lock().unwrap() = Duration::from_millis(held);
        for name in &known {
            let said = stand.says(name).await;
            assert!(said.starts_with(expected), "{name} {held}: {said}");
            assert_eq!(stand.cache.circuit(), Circuit::Closed);
        }
        // The failure speaks against nobody either once the calls have ended.
        after(8).await;
        *stand.script.held.lock().unwrap() = Duration::ZERO;
        for name in &known {
            assert!(stand.says(name).await.starts_with("missing"), "{name} {held}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_failure_that_belongs_to_one_identifier_is_not_the_services() {
    for why in [Unavailable::Rejected, Unavailable::Protocol, Unavailable::FilterIgnored, Unavailable::TooLarge, Unavailable::Forbidden] {
        let stand = Stand::new();
        assert_eq!(stand.says("C02A").await, "found live");
        stand.keeps((0..10).map(|number| format!("NEW{number}")));
        for number in 0..10 {
            stand.fails(Some(why));
            for odd in 0..5 {
                assert_eq!(stand.says(&format!("ODD{number}-{odd}")).await, why.as_str());
            }
            // One known device whose record cannot be read does no harm to others either.
            after(301).await;
            assert_eq!(stand.says("C02A").await, "found stale", "{why:?}");
            stand.fails(None);
            assert_eq!(stand.says(&format!("NEW{number}")).await, "found live", "{why:?} {number}");
        }
        assert_eq!(stand.cache.circuit(), Circuit::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn b5_new_devices_that_get_no_answer_leave_known_ones_their_circuit() {
    for why in [Unavailable::Timeout, Unavailable::ServerError(None), Unavailable::Network] {
        let stand = Stand::new();
        assert_eq!(stand.says("C02A").await, "found live");
        after(301).await;
        stand.odd("ODD", Some(Answer::Unavailable(why)));
        for odd in 0..50 {
            stand.says(&format!("ODD{odd}")).await;
        }
        assert_eq!((stand.cache.circuit(), stand.says("NEW").await), (Circuit::Closed, "missing live"), "{why:?}");
        assert!(stand.says("C02A").await.starts_with("found"), "{why:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn b6_whoever_can_be_served_in_time_waits_for_a_turn() {
    for (devices, attempts) in [(50, 2), (1000, usize::MAX)] {
        let stand = Stand::with(Lifetimes::default(), Limits::default());
        stand.keeps((0..devices).map(|number| format!("NEW{number}")));
        let began = Instant::now();
        let device = async |number: usize| {
            for _ in 0..attempts {
                if began.elapsed() > Duration::from_secs(60) {
                    return false;
                }
                if stand.says(&format!("NEW{number}")).await.starts_with("found") {
                    return true;
                }
                after(1).await;
            }
            false
        };
        let served = futures::future::join_all((0..devices).map(device)).await;
        assert_eq!(served.iter().filter(|served| !**served).count(), 0, "of {devices}");
    }
}

#[tokio::test(start_paused = true)]
async fn b6_a_flood_of_guesses_takes_no_known_device_its_turn() {
    let stand = Stand::with(Lifetimes::default(), Limits { per_second: 20, unknown_per_minute: 600_000 });
    stand.keeps((0..200).map(|number| format!("D{number}")));
    for number in 0..200 {
        assert_eq!(stand.says(&format!("D{number}")).await, "found live");
    }
    after(301).await;
    let flood = async {
        for round in 0..100 {
            let guesses: Vec<_> = (0..100).map(|number| format!("G{round}-{number}")).collect();
            drop(
                futures::future::join_all(guesses.iter().map(|guess| tokio::time::timeout(Duration::from_millis(100), stand.ask(guess))))
                    .await,
            );
        }
    };
    let known = async {
        for number in 0..100 {
            let began = Instant::now();
            assert_eq!(stand.says(&format!("D{number}")).await, "found live");
            assert!(began.elapsed() <= Duration::from_millis(150), "{number}: {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(flood, known);
}

#[tokio::test(start_paused = true)]
async fn g7_each_way_in_has_a_share_of_the_guesses_and_webhooks_come_first() {
    let stand = Stand::with(Lifetimes::default(), Limits::default());
    stand.keeps((0..50).map(|number| format!("NEW{number}")));
    let flood = async {
        for round in 0..60 {
            let asks = (0..1000).map(|number| {
                let (cache, name) = (Arc::clone(&stand.cache), format!("X{round}-{number}"));
                let question = Question { way: Way::Query, ..question(&name, Fields::NONE) };
                async move { tokio::time::timeout(Duration::from_millis(500), cache.lookup(&question, Terms::default())).await.is_ok() }
            });
            drop(futures::future::join_all(asks).await);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let webhooks = async {
        after(10).await;
        for number in 0..50 {
            assert_eq!(stand.says(&format!("NEW{number}")).await, "found live", "{number}");
        }
    };
    tokio::join!(flood, webhooks);
}

#[tokio::test(start_paused = true)]
async fn g3_other_limits_and_lifetimes_forget_no_device() {
    let stand = Stand::new();
    assert_eq!(stand.says("C02A").await, "found live");
    stand.fails(Some(Unavailable::Network));
    let settings = Settings { limits: Limits { per_second: 5, unknown_per_minute: 5 }, ..short(Duration::from_secs(5)) };
    let fewer = Settings { cache: Lifetimes { max_entries: 10, ..settings.cache }, ..settings };
    for settings in [settings, fewer] {
        let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
        assert_eq!((cache.len(), cache.lookup(&question("C02A", Fields::NONE), Terms::default()).await.source), (1, Source::Cached));
        cache.apply(&change(Subject::Identifier("C02A".to_owned()), true));
        assert!(matches!(cache.lookup(&question("C02A", Fields::NONE), Terms::default()).await.answer, Answer::Unavailable(_)));
        stand.fails(None);
        assert_eq!(stand.says("C02A").await, "found live");
        stand.fails(Some(Unavailable::Network));
    }
}

#[tokio::test(start_paused = true)]
async fn g10_a_list_that_does_not_end_is_given_up() {
    let stand =
        Stand::with(Lifetimes { max_entries: 1000, ..Lifetimes::default() }, Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.keeps((0..5000).map(|number| format!("FLEET{number}")));
    assert_eq!(stand.cache.sweep(true).await, Err(NotSwept::TooLong(1000)));
    assert_eq!(stand.says("FLEET1").await, "found live");
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_one_known_device_tries_and_no_invented_one_takes_the_try() {
    for why in [Unavailable::ServerError(None), Unavailable::TooLarge] {
        let stand = Stand::new();
        stand.keeps((0..10).map(|number| format!("D{number}")));
        for number in 0..10 {
            assert_eq!(stand.says(&format!("D{number}")).await, "found live");
        }
        after(301).await;
        stand.fails(Some(why));
        stand.takes(Duration::from_millis(1));
        let calls = stand.calls();
        for round in 0..2000 {
            assert_eq!(stand.says(&format!("D{}", round % 10)).await, "found stale");
            assert!(!stand.says(&format!("ODD{round}")).await.starts_with("found"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let calls = stand.calls() - calls;
        assert!(calls <= 15, "{why:?}: {calls} in 20 s");
        stand.fails(None);
        after(6).await;
        assert_eq!(stand.says("D1").await, "found live");
        assert_eq!(stand.says("ODD").await, "missing live");
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn an_answer_is_current_before_the_end_of_its_lifetime_and_not_at_it() {
    let stand = Stand::new();
    let lifetimes = Lifetimes::default();
    stand.takes(Duration::ZERO);
    let began = Instant::now();
    let (found, missing) = (stand.ask("C02A").await, stand.ask("NEW").await);
    let current = |serial, looked| stand.cache.is_current(&question(serial, Fields::NONE).device, looked);
    for (serial, looked, lifetime) in [("NEW", &missing, lifetimes.negative), ("C02A", &found, lifetimes.positive)] {
        tokio::time::sleep_until(began + lifetime - MILLISECOND).await;
        assert!(current(serial, looked), "{serial}");
        tokio::time::sleep_until(began + lifetime).await;
        assert!(!current(serial, looked) && stand.stands(serial, looked), "{serial}");
    }
    stand.fails(Some(Unavailable::Network));
    let stale = stand.ask("C02A").await;
    assert_eq!(stale.source, Source::Stale);
    tokio::time::sleep_until(began + lifetimes.stale_if_error - MILLISECOND).await;
    assert!(current("C02A", &stale) && !current("C02A", &found));
    assert_eq!(stand.says("C02A").await, "found stale");
    tokio::time::sleep_until(began + lifetimes.stale_if_error).await;
    assert!(!current("C02A", &stale));
    assert_ne!(stand.says("C02A").await, "found stale");
}

#[tokio::test(start_paused = true)]
async fn a_record_is_refreshed_from_four_fifths_of_its_lifetime_on() {
    let stand = Stand::new();
    stand.takes(Duration::ZERO);
    let began = Instant::now();
    stand.says("C02A").await;
    let aging = began + Lifetimes::default().positive / 5 * 4;
    for (at, calls) in [(aging - MILLISECOND, 1), (aging, 2)] {
        tokio::time::sleep_until(at).await;
        assert_eq!(stand.says("C02A").await, "found cached");
        tokio::task::yield_now().await;
        assert_eq!(stand.calls(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_of_the_very_age_that_is_old_enough_is_used() {
    let stand = Stand::new();
    stand.takes(Duration::ZERO);
    let began = Instant::now();
    stand.says("C02A").await;
    let not_older = Terms { not_older: Some(Duration::from_secs(30)), ..Terms::default() };
    for (at, source) in [(Duration::from_secs(30), Source::Cached), (Duration::from_secs(30) + MILLISECOND, Source::Live)] {
        tokio::time::sleep_until(began + at).await;
        assert_eq!(stand.cache.lookup(&question("C02A", Fields::NONE), not_older).await.source, source);
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_is_listed_what_is_remembered_and_when_the_service_last_answered() {
    let stand = Stand::new();
    assert!(stand.cache.is_empty() && stand.cache.answered_ago().is_none());
    stand.says("C02A").await;
    after(7).await;
    assert_eq!((stand.cache.is_empty(), stand.cache.answered_ago()), (false, Some(Duration::from_secs(7))));
    for dropped in [false, true] {
        let listed = stand.cache.list(9);
        let [one] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((&*one.device, one.dropped), ("serial C02A", dropped));
        assert!(one.age >= Duration::from_secs(7));
        stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), false));
    }
    assert!(stand.cache.list(0).is_empty());
}

#[tokio::test(start_paused = true)]
async fn that_nobody_could_say_stands_until_somebody_can() {
    let stand = Stand::new();
    let lifetimes = Lifetimes::default();
    stand.takes(Duration::ZERO);
    stand.fails(Some(Unavailable::Network));
    let silent = (stand.ask("C02A").await, stand.ask("NEW").await);
    let stands = || (stand.stands("C02A", &silent.0), stand.stands("NEW", &silent.1));
    assert!(matches!(silent.0.evidence, Evidence::Silence(_)) && stands() == (true, true));
    stand.fails(None);
    after(10).await;
    let began = Instant::now();
    assert_eq!((stand.says("C02A").await, stand.says("NEW").await), ("found live", "missing live"));
    assert_eq!(stands(), (false, false));
    for (lifetime, expected) in [(lifetimes.negative, (false, true)), (lifetimes.positive, (true, true))] {
        tokio::time::sleep_until(began + lifetime - MILLISECOND).await;
        assert_ne!(stands(), expected, "{lifetime:?}");
        tokio::time::sleep_until(began + lifetime).await;
        assert_eq!(stands(), expected, "{lifetime:?}");
    }
    assert_eq!(stand.says("C02A").await, "found live");
    assert!(!stands().0);
    stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), false));
    assert!(stands().0, "what an event dropped answers nobody");
}

#[tokio::test(start_paused = true)]
async fn an_old_record_stands_after_an_event_that_revokes_nothing_and_a_new_one_does_not() {
    let stand = Stand::new();
    let events = |revoking| stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), revoking));
    stand.says("C02A").await;
    after(400).await;
    stand.fails(Some(Unavailable::Network));
    let stale = stand.ask("C02A").await;
    assert_eq!(stale.source, Source::Stale);
    events(false);
    assert!(stand.stands("C02A", &stale));
    events(true);
    assert!(!stand.stands("C02A", &stale));
    stand.fails(None);
    after(10).await;
    let live = stand.ask("C02A").await;
    assert!(live.source == Source::Live && stand.stands("C02A", &live));
    events(false);
    assert!(!stand.stands("C02A", &live));
}

#[tokio::test(start_paused = true)]
async fn a_record_stands_while_the_newest_says_the_same() {
    let stand = Stand::new();
    let first = stand.ask("C02A").await;
    stand.cache.lookup(&question("C02A", Fields::NONE), ANEW).await;
    assert!(stand.stands("C02A", &first), "it was asked for again and is the same");
    let renamed = Record { name: Fact::Value("new name".to_owned()), ..record("C02A") };
    stand.script.records.lock().unwrap().insert("C02A".to_owned(), renamed);
    let second = stand.cache.lookup(&question("C02A", Fields::NONE), ANEW).await;
    assert!(!stand.stands("C02A", &first) && stand.stands("C02A", &second));
}

fn settings_of(cache: Lifetimes) -> Settings {
    let limits = Limits { per_second: 10_000, unknown_per_minute: 600_000 };
    Settings { cache, limits, connections: 5, sync: Some(Schedule::default()) }
}

#[tokio::test(start_paused = true)]
async fn whoever_wants_to_know_is_told_of_every_record_however_it_is_learned() {
    let stand = Stand::new();
    let met = Arc::new(Mutex::new(Vec::new()));
    let (acquaintances, told) = (Acquaintances::default(), Arc::clone(&met));
    acquaintances.tell(move |record| told.lock().unwrap().push(record.serial.value().unwrap().clone()));
    let settings = settings_of(Lifetimes::default());
    let cache = stand.cache.with_settings(settings, stand.cache.inventory()).telling(acquaintances);
    // A reload changes nothing of that.
    let cache = Arc::new(cache.with_settings(settings, stand.cache.inventory()));
    cache.lookup(&question("C02A", Fields::NONE), Terms::default()).await;
    stand.keeps(["C02B".to_owned()].into_iter());
    cache.accept_shrink();
    cache.sweep(true).await.unwrap();
    *stand.script.changed.lock().unwrap() = vec![record("C02C")];
    cache.sweep(false).await.unwrap();
    assert_eq!(*met.lock().unwrap(), ["C02A", "C02B", "C02C"]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_one_knowledge_where_its_bounds_are_the_same() {
    let stand = Stand::new();
    let with = |cache| stand.cache.with_settings(settings_of(cache), stand.cache.inventory());
    let same = Lifetimes::default();
    let positive = Lifetimes { positive: same.positive * 2, ..same };
    let negative = Lifetimes { negative: same.negative * 2, ..same };
    let larger = Lifetimes { max_entries: same.max_entries + 1, ..same };
    for (cache, expected) in [(same, true), (positive, true), (negative, false), (larger, false)] {
        assert_eq!(Arc::ptr_eq(&with(cache).knowledge, &stand.cache.knowledge), expected, "{cache:?}");
    }
    assert_eq!((with(same).name(), stand.cache.name()), ("mdm", "mdm"));
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_for_by_a_serial_number_that_is_not_told_of_or_leads_elsewhere_gets_no_answer() {
    let stand = Stand::unasked(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    stand.cache.sweep(true).await.unwrap();
    let ask = async || stand.cache.lookup(&udid("udid-C02A"), ANEW).await;
    assert!(matches!(ask().await.answer, Answer::Found(_)));
    let elsewhere = Record { udid: Fact::Value("udid-other".to_owned()), ..record("C02A") };
    let before = stand.script.records.lock().unwrap().insert("C02A".to_owned(), elsewhere);
    let other = ask().await;
    assert!(matches!((other.answer, other.evidence), (Answer::Unavailable(Unavailable::Unsupported), Evidence::Moved(_))));
    stand.script.records.lock().unwrap().extend(before.map(|before| ("C02A".to_owned(), before)));
    stand.cache.sweep(true).await.unwrap();
    stand.fails(Some(Unavailable::Network));
    stand.cache.apply(&change(Subject::Identifier("C02A".to_owned()), true));
    let silent = ask().await;
    assert!(matches!((silent.answer, silent.evidence), (Answer::Unavailable(Unavailable::Network), Evidence::Silence(_))));
}

#[tokio::test(start_paused = true)]
async fn a4_a_device_that_cannot_be_asked_for_by_its_serial_number_either_is_alone() {
    let stand = Stand::unasked(Lifetimes::default(), Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    stand.keeps(std::iter::once(".".to_owned()));
    stand.cache.sweep(true).await.unwrap();
    after(1).await;
    let settings = Settings { sync: None, ..settings_of(Lifetimes::default()) };
    let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
    let looked = cache.lookup(&udid("udid-."), ANEW).await;
    assert!(
        matches!((&looked.answer, &looked.evidence), (Answer::Unavailable(Unavailable::Unsupported), Evidence::Alone(_))),
        "{looked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a4_an_answer_to_questions_of_one_hint_answers_none_of_another() {
    let (computer, phone) = (Some(Form::Computer), Some(Form::MobileDevice));
    for minds in [false, true] {
        let stand = Stand::new();
        *stand.script.minds_hint.lock().unwrap() = minds;
        let ask = async |serial, hint| {
            let asked = Question { hint, ..question(serial, Fields::NONE) };
            stand.cache.lookup(&asked, Terms::default()).await.source
        };
        let other = if minds { Source::Live } else { Source::Cached };
        for serial in ["C02A", "NEW"] {
            let calls = stand.calls();
            assert_eq!([ask(serial, computer).await, ask(serial, computer).await], [Source::Live, Source::Cached], "{serial}");
            assert_eq!(ask(serial, phone).await, other, "{serial}");
            assert_eq!(stand.calls(), calls + 1 + usize::from(minds));
        }
        after(400).await;
        let calls = stand.calls();
        tokio::join!(ask("C02A", computer), ask("C02A", phone));
        assert_eq!(stand.calls(), calls + 1 + usize::from(minds), "nor does a call that is under way");
    }
}

#[tokio::test(start_paused = true)]
async fn g3_calls_go_by_the_client_that_took_the_place_of_another() {
    let (stand, other) = (Stand::new(), Stand::new());
    stand.cache.replace_inventory(other.cache.inventory());
    assert_eq!((stand.says("C02A").await, stand.calls(), other.calls()), ("found live", 0, 1));
}

#[tokio::test(start_paused = true)]
async fn without_lists_an_identifier_that_cannot_be_asked_is_invalid_at_once() {
    let stand = Stand::new();
    *stand.script.by_serial_alone.lock().unwrap() = true;
    let settings = Settings { sync: None, ..settings_of(Lifetimes::default()) };
    let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
    assert_eq!(cache.lookup(&udid("udid-C02A"), Terms::default()).await.answer, Answer::InvalidIdentifier);
}

#[tokio::test(start_paused = true)]
async fn a5_what_was_pushed_out_since_the_list_is_not_unknown() {
    let bounds = Lifetimes { max_entries: 8, ..Lifetimes::default() };
    let stand = Stand::unasked(bounds, Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    *stand.script.by_serial_alone.lock().unwrap() = true;
    stand.keeps((0..4).map(|number| format!("FLEET{number}")));
    stand.cache.sweep(true).await.unwrap();
    assert_eq!(stand.cache.len(), 8);
    let says = async |text| stand.cache.lookup(&udid(text), Terms::default()).await;
    assert_eq!(says("udid-NOBODY").await.answer, Answer::InvalidIdentifier);
    stand.keeps((0..12).map(|number| format!("FLEET{number}")));
    for number in 4..12 {
        assert_eq!(stand.says(&format!("FLEET{number}")).await, "found live");
        stand.cache.len();
    }
    let pushed_out = says("udid-FLEET0").await;
    assert!(matches!((pushed_out.answer, pushed_out.evidence), (Answer::Unavailable(Unavailable::NotLoaded), Evidence::Alone(_))));
}

#[tokio::test(start_paused = true)]
async fn a_list_may_have_as_many_devices_as_are_remembered_and_lose_as_many_as_it_may() {
    let bounds = Lifetimes { max_entries: 100, ..Lifetimes::default() };
    let stand = Stand::with(bounds, Limits { per_second: 10_000, unknown_per_minute: 600_000 });
    let shrinks = Schedule::default().max_shrink;
    stand.keeps((0..101).map(|number| format!("FLEET{number}")));
    assert_eq!(stand.cache.sweep(true).await, Err(NotSwept::TooLong(100)));
    stand.keeps((0..100).map(|number| format!("FLEET{number}")));
    assert_eq!(stand.cache.sweep(true).await.unwrap().seen, 100);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a share of a hundred")]
    let may_go = (100.0 * shrinks) as usize;
    stand.keeps((0..100 - may_go - 1).map(|number| format!("FLEET{number}")));
    assert!(matches!(stand.cache.sweep(true).await, Err(NotSwept::Shrunk { had: 100, .. })));
    stand.keeps((0..100 - may_go).map(|number| format!("FLEET{number}")));
    assert_eq!(stand.cache.sweep(true).await.unwrap().seen, 100 - u64::try_from(may_go).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_list_says_nothing_of_an_identifier_that_another_device_turned_up_with_meanwhile() {
    let stand = Stand::new();
    stand.cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    stand.takes(Duration::from_secs(2));
    let meanwhile = async {
        after(1).await;
        stand.takes(Duration::ZERO);
        let other = Record { provider_id: "other".to_owned(), udid: Fact::Value("udid-other".to_owned()), ..record("C02A") };
        *stand.script.records.lock().unwrap() = [("C02A".to_owned(), other)].into();
        stand.cache.lookup(&udid("udid-other"), Terms::default()).await.answer
    };
    let (swept, other) = tokio::join!(stand.cache.sweep(true), meanwhile);
    assert!(swept.is_ok() && matches!(other, Answer::Found(_)));
    let looked = stand.ask("C02A").await;
    assert_eq!((looked.answer, looked.source), (other, Source::Live), "the list was asked for before");
}
