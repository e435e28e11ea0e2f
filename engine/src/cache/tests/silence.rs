//! The rule of silence (A12): an old record answers only where the service itself is silent.

use inventory::http::{Client, Endpoint, LOOKUP, PAGE};

use super::*;

mod doubted;
mod over_http;
mod owned;
mod steered;

const HOUR: Duration = Duration::from_secs(3600);

fn asks(cache: &Arc<Cache>, name: &str, way: Way) -> tokio::task::JoinHandle<Looked> {
    let (cache, question) = (Arc::clone(cache), Question { way, ..question(name, Fields::NONE) });
    tokio::spawn(async move { cache.lookup(&question, Terms::default()).await })
}

fn webhook(cache: &Arc<Cache>, name: &str) -> tokio::task::JoinHandle<Looked> {
    asks(cache, name, Way::Webhook)
}

fn short(looked: &Looked) -> String {
    match &looked.answer {
        Answer::Found(_) => format!("found {:?}", looked.source),
        Answer::Unavailable(why) => format!("{} {:?}", why.as_str(), looked.source),
        other => format!("{} {:?}", other.kind().as_str(), looked.source),
    }
}

async fn millis_later(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// All of these known and old, those of the name GONE removed since.
async fn world(connections: usize, per_second: u32, known: &[String]) -> (Stand, Arc<Cache>) {
    let stand = Stand::new();
    stand.keeps(known.iter().cloned());
    for name in known {
        assert_eq!(stand.says(name).await, "found live", "{name}");
    }
    after(301).await;
    stand.script.records.lock().unwrap().retain(|name, _| !name.starts_with("GONE"));
    let limits = Limits { per_second, unknown_per_minute: 6000 };
    let settings = Settings { cache: Lifetimes::default(), limits, connections, sync: Some(Schedule::default()) };
    let cache = Arc::new(stand.cache.with_settings(settings, stand.cache.inventory()));
    stand.script.asked.lock().unwrap().clear();
    (stand, cache)
}

fn all(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A service over HTTP: devices whose names begin with SLOW or STRANGER, and pages of lists, take very long; everybody else is answered at once.
#[derive(Debug)]
struct Web {
    client: Client,
    /// Requests at once that a lookup takes.
    at_once: usize,
    /// Requests one after the other that a record takes.
    rounds: usize,
}

#[async_trait]
impl Inventory for Web {
    fn fields(&self) -> Fields {
        Fields::NONE
    }
    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial
    }
    async fn lookup(&self, question: &Question) -> Answer {
        let name = question.device.normal().to_owned();
        for round in 0..self.rounds {
            let requests = (0..self.at_once).map(|number| {
                let url = self.client.url(&format!("/d/{name}/{round}/{number}"), &[]);
                self.client.send(self.client.get(url), question.deadline, LOOKUP)
            });
            for reply in futures::future::join_all(requests).await {
                match reply {
                    Err(why) => return Answer::Unavailable(why),
                    Ok(reply) if reply.status.as_u16() == 404 => return Answer::NotFound,
                    Ok(reply) if reply.status.as_u16() == 200 => {}
                    Ok(_) => return Answer::Unavailable(Unavailable::Protocol),
                }
            }
        }
        Answer::Found(Arc::new(record(&name)))
    }
    fn listing(&self) -> Listing {
        Listing::Whole
    }
    async fn list(&self, _: Option<UnixTime>, _: Fields, _: mpsc::Sender<Vec<Record>>) -> Result<End, Unavailable> {
        self.client.send(self.client.get(self.client.url("/list", &[])), Instant::now() + Duration::from_secs(30), PAGE).await?;
        Ok(End { complete: true })
    }
    async fn probe(&self, _: Instant) -> Vec<Finding> {
        Vec::new()
    }
}

/// Serves such a service, whose other answers take so many milliseconds; gives its address.
async fn web(takes: u64) -> url::Url {
    let treats: over_http::Treats = Arc::new(move |path| {
        let slow = ["/d/SLOW", "/d/STRANGER", "/list"].iter().any(|name| path.starts_with(name));
        let gone = path.starts_with("/d/GONE") && GONE.load(Ordering::SeqCst) == 1 || path.starts_with("/d/STRANGER");
        (if slow { 6000 } else { takes }, if gone { 404 } else { 200 })
    });
    over_http::serve(treats).await
}

static GONE: AtomicUsize = AtomicUsize::new(0);

/// What GONE is told, beside this.
async fn over_http(connections: usize, at_once: usize, rounds: usize, takes: u64, strangers: usize, slow: usize, list: bool) -> String {
    GONE.store(0, Ordering::SeqCst);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let base_url = web(takes).await;
    let client = Client::new(&Endpoint { base_url, ca_file: None, connections }).unwrap();
    let web: Arc<dyn Inventory> = Arc::new(Web { client, at_once, rounds });
    let cache = Lifetimes { positive: Duration::from_millis(1500), ..Lifetimes::default() };
    let limits = Limits { per_second: 1000, unknown_per_minute: 6000 };
    let settings = Settings { cache, limits, connections, sync: Some(Schedule::default()) };
    let cache = Arc::new(Cache::new("mdm", settings, web, Arc::default(), Handle::current()));
    cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    let mut known = vec!["GONE".to_owned()];
    known.extend((0..8).map(|number| format!("GOOD{number}")));
    for name in &known {
        assert_eq!(short(&webhook(&cache, name).await.unwrap()), "found Live", "{name}");
    }
    // Devices that were found before and are slow now: by a record that is put there.
    for number in 0..slow {
        let name = format!("SLOW{number}");
        let answer = Answer::Found(Arc::new(record(&name)));
        let key = Key::of(&question(&name, Fields::NONE).device);
        let open = cache.knowledge.ask();
        let learned = Learned { at: cache.knowledge.now(), moment: open.moment(), asked: Fields::NONE, hint: None };
        cache.knowledge.learn(&key, &answer, None, learned, 0);
    }
    GONE.store(1, Ordering::SeqCst);
    millis_later(1600).await;
    let _list = list.then(|| {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move { cache.sweep(true).await })
    });
    let _strangers: Vec<_> = (0..strangers).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
    let _slow: Vec<_> = (0..slow).map(|number| webhook(&cache, &format!("SLOW{number}"))).collect();
    millis_later(100).await;
    short(&webhook(&cache, "GONE").await.unwrap())
}

#[tokio::test]
async fn a12_who_waits_for_a_place_for_its_request_is_not_let_in_while_the_service_answers_others() {
    // One at a time: they share a static.
    let mut wrong = Vec::new();
    for (what, connections, at_once, strangers, slow, list) in [
        ("control: one place is free", 5, 1, 3, 0, true),
        ("fleet or kandji of 5: four slow strangers and a page of a list", 5, 1, 4, 0, true),
        ("mosyle's default: one slow stranger and a page of a list", 3, 4, 1, 0, true),
        ("jamf's default: two slow strangers and a page of a list", 5, 2, 2, 0, true),
        ("jamf's default: two slow strangers and one slow device", 5, 2, 2, 1, false),
        ("two connections: one slow stranger and a page of a list", 2, 1, 1, 0, true),
    ] {
        if over_http(connections, at_once, 1, 20, strangers, slow, list).await.starts_with("found") {
            wrong.push(what);
        }
    }
    // A witness whose record takes two requests, each answered within 0.8 s, while one stranger holds the only place.
    if over_http(1, 1, 2, 800, 1, 0, false).await.starts_with("found") {
        wrong.push("two rounds of 0.8 s");
    }
    assert!(wrong.is_empty(), "a device that was removed was let in: {wrong:?}");
}

#[tokio::test(start_paused = true)]
async fn a12_whoever_asks_first_does_not_choose_the_witness() {
    let mut wrong = Vec::new();
    for connections in [1, 5] {
        // Beside the one that holds a place, one is slow.
        let mut known = all(&["GONE", "SLOW1", "GOOD0", "GOOD1", "GOOD2", "GOOD3", "GOOD4"]);
        known.extend((connections > 1).then(|| "SLOW0".to_owned()));
        let (stand, cache) = world(connections, 20, &known).await;
        *stand.script.slow.lock().unwrap() = vec![("SLOW", Duration::from_millis(2500)), ("STRANGER", HOUR)];
        let _strangers: Vec<_> = (0..connections.max(2) - 1).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
        let _slow = (connections > 1).then(|| webhook(&cache, "SLOW0"));
        millis_later(10).await;
        // Everybody who is known asks, the slow one first.
        let _first = webhook(&cache, "SLOW1");
        millis_later(1).await;
        let _others: Vec<_> = known.iter().filter(|name| name.starts_with("GOOD")).map(|name| webhook(&cache, name)).collect();
        let said = short(&webhook(&cache, "GONE").await.unwrap());
        wrong.extend(said.starts_with("found").then_some(connections));
    }
    assert!(wrong.is_empty(), "a device that was removed was let in at {wrong:?} connections");
}

#[tokio::test(start_paused = true)]
async fn a12_in_doubt_somebody_is_asked_though_no_place_is_free() {
    let mut wrong = Vec::new();
    for (connections, strangers) in [(2, 0), (5, 3)] {
        let known = all(&["GONE", "SLOW0", "SLOW1", "GOOD0", "GOOD1"]);
        let (stand, cache) = world(connections, 20, &known).await;
        *stand.script.slow.lock().unwrap() = vec![("SLOW", HOUR), ("STRANGER", HOUR)];
        let _slow = [webhook(&cache, "SLOW0"), webhook(&cache, "SLOW1")];
        let _strangers: Vec<_> = (0..strangers).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
        millis_later(2700).await;
        let others = [webhook(&cache, "GOOD0"), webhook(&cache, "GOOD1")];
        millis_later(1).await;
        let said = short(&webhook(&cache, "GONE").await.unwrap());
        for other in others {
            other.await.unwrap();
        }
        wrong.extend(said.starts_with("found").then_some(connections));
    }
    assert!(wrong.is_empty(), "a device that was removed was let in at {wrong:?} connections");
}

#[tokio::test(start_paused = true)]
async fn a12_one_slow_device_is_not_the_witness_each_time() {
    let known: Vec<_> = (0..40).map(|number| format!("D{number}X")).chain((0..12).map(|number| format!("GONE{number}"))).collect();
    let (stand, cache) = world(1, 20, &known).await;
    *stand.script.slow.lock().unwrap() = vec![("STRANGER", HOUR), ("D0X", Duration::from_millis(2000))];
    let mut wrong = 0;
    for round in 0..10 {
        let stranger = webhook(&cache, &format!("STRANGER{round}"));
        millis_later(10).await;
        let said = short(&webhook(&cache, &format!("GONE{round}")).await.unwrap());
        wrong += usize::from(said.starts_with("found"));
        stranger.await.unwrap();
        after(20).await;
    }
    assert_eq!(wrong, 0, "{wrong} of 10 devices that were removed were let in, with one slow device of 52");
}

#[tokio::test(start_paused = true)]
async fn b5_in_silence_a_device_that_cannot_be_asked_for_is_no_witness() {
    let known: Vec<_> = (0..12).map(|number| format!("D{number}X")).chain(["ODD0".to_owned()]).collect();
    let (stand, cache) = world(2, 20, &known).await;
    stand.odd("ODD", Some(Answer::InvalidIdentifier));
    stand.script.slow.lock().unwrap().extend([("ODD", Duration::ZERO)]);
    stand.takes(HOUR);
    // The service is silent for everybody. One stranger and one known device hold both places.
    let _held = [webhook(&cache, "STRANGER"), webhook(&cache, "D0X")];
    millis_later(10).await;
    let mut busy = 0;
    for _ in 0..6 {
        let said = futures::future::join_all((1..4).map(|number| webhook(&cache, &format!("D{number}X")))).await;
        let said: Vec<_> = said.into_iter().map(|said| short(&said.unwrap())).collect();
        busy += said.iter().filter(|said| !said.starts_with("found")).count();
    }
    assert!(busy <= 3, "{busy} of 18 had no answer though the service is silent");
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_that_cannot_be_asked_for_keeps_no_service_in_doubt_for_ever() {
    let mut known: Vec<_> = (0..12).map(|number| format!("D{number}X")).chain(["ODD0".to_owned()]).collect();
    known.extend((0..30).map(|number| format!("GONE{number}")));
    let (stand, cache) = world(5, 20, &known).await;
    stand.odd("ODD", Some(Answer::InvalidIdentifier));
    stand.script.slow.lock().unwrap().push(("ODD", Duration::ZERO));
    // For half a second it fails; then it is well for ever.
    for name in ["D0X", "D1X"] {
        stand.odd(name, Some(Answer::Unavailable(Unavailable::ServerError(None))));
    }
    for number in 0..2 {
        webhook(&cache, &format!("D{number}X")).await.unwrap();
    }
    stand.script.odd.lock().unwrap().truncate(1);
    stand.script.asked.lock().unwrap().clear();
    let mut wrong = 0;
    for round in 0..30 {
        after(4).await;
        let said = short(&webhook(&cache, &format!("GONE{round}")).await.unwrap());
        wrong += usize::from(said.starts_with("found"));
    }
    assert_eq!(wrong, 0, "{wrong} of 30 devices that were removed were let in during two minutes in which the service was well");
}

/// Two such devices, which take turns: the first is under way still while the second is looked for.
#[tokio::test(start_paused = true)]
async fn b5_two_devices_that_cannot_be_asked_for_keep_no_service_in_doubt_for_ever() {
    let mut known = all(&["D0X", "D1X", "ODD0", "ODD1", "ODD2"]);
    known.extend((0..8).map(|number| format!("GONE{number}")));
    let (stand, cache) = world(5, 20, &known).await;
    stand.odd("ODD", Some(Answer::InvalidIdentifier));
    stand.script.slow.lock().unwrap().push(("ODD", Duration::ZERO));
    for name in ["D0X", "D1X"] {
        stand.odd(name, Some(Answer::Unavailable(Unavailable::ServerError(None))));
        webhook(&cache, name).await.unwrap();
    }
    stand.script.odd.lock().unwrap().truncate(1);
    let mut wrong = 0;
    for round in 0..8 {
        after(60).await;
        stand.script.asked.lock().unwrap().clear();
        after(10).await;
        let calls = stand.script.asked.lock().unwrap().len();
        assert!(calls <= 12, "{calls} in ten seconds in which nobody asks");
        let said = short(&webhook(&cache, &format!("GONE{round}")).await.unwrap());
        wrong += usize::from(said.starts_with("found"));
    }
    assert_eq!(wrong, 0, "{wrong} of 8 devices that were removed were let in during ten minutes in which the service was well");
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_that_cannot_be_asked_for_does_not_stand_for_all_others_beside_one_that_cannot_be_read() {
    let known = all(&["BAD", "ODD0", "GOOD0", "GOOD1", "GOOD2"]);
    let (stand, cache) = world(5, 20, &known).await;
    stand.odd("ODD", Some(Answer::InvalidIdentifier));
    stand.odd("BAD", Some(Answer::Unavailable(Unavailable::Protocol)));
    stand.script.slow.lock().unwrap().push(("ODD", Duration::ZERO));
    let mut said = Vec::new();
    for _ in 0..5 {
        said.push(short(&webhook(&cache, "BAD").await.unwrap()));
        after(1).await;
    }
    assert!(said.iter().all(|said| said.starts_with("protocol")), "others can be read: {said:?}");
}

/// Callers that go away, providers that panic, a reload with other connections: nothing is left of them.
#[tokio::test(start_paused = true)]
async fn b5_no_count_drifts() {
    for seed in seeds() {
        let mut rolls = Rolls::new(seed);
        let known: Vec<_> = (0..10).map(|number| format!("D{number}X")).collect();
        let (stand, first) = world(usize::try_from(1 + rolls.below(5)).unwrap(), 20, &known).await;
        stand.script.slow.lock().unwrap().extend(SLOW_NAMES.map(|(name, takes)| (name, Duration::from_millis(takes))));
        stand.odd("OI", Some(Answer::InvalidIdentifier));
        let mut caches = vec![Arc::clone(&first)];
        for number in 0..400 {
            if rolls.below(80) == 0 {
                let before = caches.last().unwrap();
                let limits = Limits { per_second: 20, unknown_per_minute: 6000 };
                let connections = usize::try_from(1 + rolls.below(5)).unwrap();
                let settings = Settings { cache: Lifetimes::default(), limits, connections, sync: Some(Schedule::default()) };
                let next = Arc::new(before.with_settings(settings, before.inventory()));
                caches.push(next);
            }
            if rolls.below(20) == 0 {
                let mut panics = stand.script.panics.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *panics = !*panics;
            }
            let cache = caches.last().unwrap();
            let kind = rolls.of(&["SB", "SD", "SF", "SH", "SJ", "OI"]);
            let name = if rolls.below(2) == 0 {
                format!("{kind}{number}")
            } else {
                rolls.of(&known.iter().map(String::as_str).collect::<Vec<_>>()).to_owned()
            };
            let ask = asks(cache, &name, rolls.of(&Way::ALL));
            let gives_up = rolls.below(4) == 0;
            millis_later(rolls.below(120)).await;
            if gives_up {
                ask.abort();
            }
        }
        after(60).await;
        for cache in caches {
            let state = cache.turns.left();
            assert!(state.starts_with("[0, 0, 0, 0, 0, 0] [0, 0] 0 0 0"), "seed {seed}: {state}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b5_a_device_that_cannot_be_asked_for_takes_few_turns() {
    let known: Vec<_> = (0..40).map(|number| format!("D{number}X")).chain(["ODD0".to_owned()]).collect();
    let (stand, cache) = world(1, 20, &known).await;
    stand.odd("ODD", Some(Answer::InvalidIdentifier));
    stand.script.slow.lock().unwrap().extend([("ODD", Duration::ZERO), ("STRANGER", HOUR)]);
    let _held = webhook(&cache, "STRANGER");
    millis_later(10).await;
    futures::future::join_all((0..40).map(|number| webhook(&cache, &format!("D{number}X")))).await;
    let taken = stand.script.asked.lock().unwrap().iter().filter(|name| name.starts_with("ODD")).count();
    assert!(taken <= 10, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn b5_one_of_a_hundred_that_cannot_be_asked_for_keeps_no_service_in_doubt() {
    let mut stuck = 0;
    const WORLDS: usize = 60;
    for _ in 0..WORLDS {
        let known: Vec<_> = (0..97).map(|number| format!("D{number}X")).chain(all(&["ODD0", "GONE0", "GONE1"])).collect();
        let (stand, cache) = world(5, 20, &known).await;
        stand.odd("ODD", Some(Answer::InvalidIdentifier));
        for name in ["D0X", "D1X"] {
            stand.odd(name, Some(Answer::Unavailable(Unavailable::ServerError(None))));
        }
        for number in 0..2 {
            webhook(&cache, &format!("D{number}X")).await.unwrap();
        }
        stand.script.odd.lock().unwrap().truncate(1);
        after(60).await;
        stuck += usize::from(short(&webhook(&cache, "GONE0").await.unwrap()).starts_with("found"));
    }
    assert_eq!(stuck, 0);
}

struct Rolls(rand::rngs::StdRng);

impl Rolls {
    fn new(seed: u64) -> Self {
        use rand::SeedableRng as _;
        Self(rand::rngs::StdRng::seed_from_u64(seed))
    }
    fn below(&mut self, most: u64) -> u64 {
        use rand::RngExt as _;
        self.0.random_range(0..most)
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.below(list.len() as u64)).unwrap()]
    }
}

const SLOW_NAMES: [(&str, u64); 10] = [
    ("SA", 400),
    ("SB", 900),
    ("SC", 1450),
    ("SD", 1600),
    ("SE", 2100),
    ("SF", 2950),
    ("SG", 3100),
    ("SH", 5000),
    ("SI", 7900),
    ("SJ", 3_600_000),
];

/// One history. Strangers are slow or odd; every known device is answered within `longest`. From `silent` on nobody is.
/// Gives (came, name, way, what, took) of known devices.
async fn history(seed: u64, longest: u64, silent: Option<u64>, millis: u64) -> Vec<(u64, String, Way, String, u64)> {
    let mut rolls = Rolls::new(seed);
    let connections = usize::try_from(rolls.of(&[1, 1, 2, 3, 5, 8])).unwrap();
    let known: Vec<_> =
        (0..rolls.of(&[3, 8, 40])).map(|number| format!("D{number}X")).chain((0..20).map(|number| format!("GONE{number}"))).collect();
    let (stand, cache) = world(connections, 20, &known).await;
    stand.script.slow.lock().unwrap().extend(SLOW_NAMES.map(|(name, takes)| (name, Duration::from_millis(takes))));
    stand.odd("OR", Some(Answer::Unavailable(Unavailable::Rejected)));
    stand.odd("ON", Some(Answer::Unavailable(Unavailable::Network)));
    stand.odd("OP", Some(Answer::Unavailable(Unavailable::Protocol)));
    stand.odd("OI", Some(Answer::InvalidIdentifier));
    stand.takes(Duration::from_millis(1 + rolls.below(longest)));
    let began = Instant::now();
    let mut asked = Vec::new();
    let mut next = 0;
    let (rate, share) = (rolls.of(&[15, 60, 250]), rolls.of(&[1, 3, 6, 9]));
    let mut went_silent = false;
    let mut number = 0;
    while next < millis {
        tokio::time::sleep_until(began + Duration::from_millis(next)).await;
        if silent.is_some_and(|silent| next >= silent) && !went_silent {
            went_silent = true;
            stand.takes(HOUR);
            let mut slow = stand.script.slow.lock().unwrap();
            slow.iter_mut().for_each(|(_, takes)| *takes = HOUR);
        }
        number += 1;
        let way = rolls.of(&[Way::Webhook, Way::Webhook, Way::Authorization, Way::Query]);
        if rolls.below(10) < share {
            let kind = rolls.of(&["SA", "SB", "SC", "SD", "SE", "SF", "SG", "SH", "SI", "SJ", "OR", "ON", "OP", "OI", "PLAIN"]);
            asks(&cache, &format!("{kind}{number}"), way);
        } else {
            let name = known[usize::try_from(rolls.below(known.len() as u64)).unwrap()].clone();
            let (cache, came) = (Arc::clone(&cache), next);
            asked.push(tokio::spawn(async move {
                let began = Instant::now();
                let question = Question { way, ..question(&name, Fields::NONE) };
                let looked = cache.lookup(&question, Terms::default()).await;
                (came, name, way, short(&looked), u64::try_from(began.elapsed().as_millis()).unwrap())
            }));
        }
        if rolls.below(200) == 0 {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { cache.read_feed().await });
        }
        next += rolls.below(2 * rate);
    }
    let mut all = Vec::new();
    for ask in asked {
        all.push(ask.await.unwrap());
    }
    after(20).await;
    // Nothing stays that should have gone: the counters are where they began.
    let state = cache.turns.left();
    if !went_silent && state != "[0, 0, 0, 0, 0, 0] [0, 0] 0 0 0" {
        after(120).await;
        let state = cache.turns.left();
        assert_eq!(state, "[0, 0, 0, 0, 0, 0] [0, 0] 0 0 0", "seed {seed}");
    }
    all
}

fn seeds() -> std::ops::Range<u64> {
    0..8
}

#[tokio::test(start_paused = true)]
async fn a12_where_every_known_device_is_answered_no_old_record_answers() {
    for seed in seeds() {
        for (came, name, way, said, _) in history(seed, 1300, None, 60_000).await {
            assert_ne!(said, "found Stale", "seed {seed}: {name} by {way:?} at {came}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b5_where_nobody_is_answered_every_known_device_soon_has_its_old_record() {
    let mut silent = 0;
    for seed in seeds() {
        for (came, name, way, said, _) in history(seed, 300, Some(20_000), 60_000).await {
            if came >= 23_000 && name.starts_with('D') {
                silent += 1;
                assert!(said.starts_with("found"), "seed {seed}: {name} by {way:?} at {came}: {said}");
            }
        }
    }
    assert!(silent > 1000, "{silent}");
}
