//! Random histories against a small model of what may be allowed.
//!
//! Two scripted services change under the hands of their caches while devices are asked for by several identifiers and by
//! chains of every kind, lists and events come, operators lock and exempt, a service fails, settings are read again, and the
//! system's clock jumps. Everything that a service said is logged with the moment at which it was asked. Whenever a decision is
//! an allow, or one that was given earlier is said to hold, the model looks through the whole log, in the slowest and plainest
//! way, whether anything forbids it at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use inventory::http::Endpoint;
use inventory::{Change, Finding, Inventory, Listed, Listing, Question, Service, Subject, Unavailable, kandji};
use posture::identity::{DeviceId, IdentifierKind, Identity, Trust};
use posture::policy::{Policy, RequestKind, Rules};
use posture::record::{Fact, Field, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use posture::webhook::Kind;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use settings::SecretSource;
use store::RulingKind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::cache::{Lifetimes, Limits, Wanted};
use crate::decide::{Asker, decide};
use crate::locks::Which;
use crate::metrics::Metrics;
use crate::plan::{Combine, Enforcement, Link, OnNotFound, OnUnavailable, Own};
use crate::provider::{self, Context, Provider, ProviderSettings, RemoteSettings};
use clock::scripted;

/// A device of the service: serial, unique device identifier, and whether it is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    serial: u8,
    udid: u8,
    managed: bool,
}

/// The owner of an identifier, as one question tells it.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    None,
    Many,
    One(u8, Device),
}

#[derive(Clone, Debug)]
enum Logged {
    /// An answer to a question by this identifier.
    Answer { key: String, said: Said },
    /// A list; `whole` proves what it does not have.
    List { whole: bool, devices: Vec<(u8, Device)> },
    /// An event about everything that the names mean.
    Event { names: Vec<String>, revoking: bool },
}

/// One entry of the log, with the moment and the time at which it was asked.
#[derive(Clone, Debug)]
struct Entry {
    asked: u64,
    at: Instant,
    logged: Logged,
}

#[derive(Debug)]
struct Script {
    devices: Mutex<BTreeMap<u8, Device>>,
    changed: Mutex<BTreeMap<u8, Device>>,
    moments: AtomicU64,
    latency: Mutex<Duration>,
    fails: AtomicBool,
    /// Failures so far: a decision with a failure under way may rest on an old record.
    failures: AtomicUsize,
}

/// A life of the sidecar's process, and what one service told it. It does not know what an earlier life was told of devices.
#[derive(Debug)]
struct Life {
    script: Arc<Script>,
    /// Whether the life has ended.
    over: AtomicBool,
    log: Mutex<Vec<Entry>>,
    /// Moment at which the next list counts as asked.
    list_asked: AtomicU64,
    list_complete: AtomicBool,
    /// The last list of everything.
    whole: Mutex<Option<Entry>>,
    /// Time at which the last complete list began.
    confirmed: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug)]
struct Scripted(Arc<Life>);

fn serial(number: u8) -> String {
    format!("S{number}")
}

fn udid(number: u8) -> String {
    format!("U{number}")
}

impl Device {
    fn has(&self, key: &str) -> bool {
        serial(self.serial) == key || udid(self.udid) == key
    }

    fn keys(&self) -> [String; 2] {
        [serial(self.serial), udid(self.udid)]
    }

    fn record(&self, id: u8) -> Record {
        Record {
            provider_id: format!("id{id}"),
            serial: Fact::Value(serial(self.serial)),
            udid: Fact::Value(udid(self.udid)),
            managed: Fact::Value(self.managed),
            lost: Fact::Value(false),
            wipe_pending: Fact::Value(false),
            ..Record::default()
        }
    }
}

impl Script {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn ask(&self, key: &str) -> Said {
        let devices = self.devices.lock().unwrap();
        let mut fitting = devices.iter().filter(|(_, device)| device.has(key));
        match (fitting.next(), fitting.next()) {
            (None, _) => Said::None,
            (Some((id, device)), None) => Said::One(*id, *device),
            _ => Said::Many,
        }
    }
}

impl Life {
    fn new(script: &Arc<Script>) -> Arc<Self> {
        Arc::new(Self {
            script: Arc::clone(script),
            over: AtomicBool::new(false),
            log: Mutex::default(),
            list_asked: AtomicU64::new(0),
            list_complete: AtomicBool::new(true),
            whole: Mutex::default(),
            confirmed: Mutex::default(),
        })
    }

    fn log(&self, asked: u64, at: Instant, logged: Logged) {
        self.log.lock().unwrap().push(Entry { asked, at, logged });
    }
}

#[async_trait]
impl Inventory for Scripted {
    fn fields(&self) -> Fields {
        Fields::of(&[Field::Serial, Field::Udid, Field::Managed])
    }

    fn asks(&self, _: IdentifierKind) -> bool {
        true
    }

    async fn lookup(&self, question: &Question) -> Answer {
        let script = &self.0.script;
        let (asked, at) = (script.moment(), Instant::now());
        let key = question.device.normal().to_owned();
        let host = question.device.kind() == IdentifierKind::Hostname;
        let said = if host { Said::None } else { script.ask(&key) };
        let latency = *script.latency.lock().unwrap();
        tokio::time::sleep(latency).await;
        if script.fails.load(Ordering::SeqCst) {
            script.failures.fetch_add(1, Ordering::SeqCst);
            return Answer::Unavailable(Unavailable::Network);
        }
        // A host name that nobody has says nothing of the serial number with the same text.
        let key = if host { format!("host {key}") } else { key };
        self.0.log(asked, at, Logged::Answer { key, said: said.clone() });
        match said {
            Said::None => Answer::NotFound,
            Said::Many => Answer::Ambiguous,
            Said::One(id, device) => Answer::Found(Arc::new(device.record(id))),
        }
    }

    fn listing(&self) -> Listing {
        Listing::Incremental
    }

    async fn list(&self, since: Option<UnixTime>, _: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let script = &self.0.script;
        let at = Instant::now();
        let source = if since.is_none() { &script.devices } else { &script.changed };
        let devices: Vec<_> = source.lock().unwrap().iter().map(|(id, device)| (*id, *device)).collect();
        let latency = *script.latency.lock().unwrap();
        tokio::time::sleep(latency * 3).await;
        if script.fails.load(Ordering::SeqCst) {
            return Err(Unavailable::Network);
        }
        let complete = self.0.list_complete.load(Ordering::SeqCst);
        let asked = self.0.list_asked.load(Ordering::SeqCst);
        for page in devices.chunks(2) {
            // What a list says of a device counts once its record is taken, which is when the listener hears of it: see `open`.
            let listed = |(id, device): &(u8, Device)| Record { name: Fact::Value(format!("{asked}")), ..device.record(*id) };
            if pages.send(page.iter().map(listed).collect()).await.is_err() {
                return Ok(Listed { complete: false });
            }
        }
        let whole = Entry { asked, at, logged: Logged::List { whole: true, devices } };
        *self.0.whole.lock().unwrap() = (complete && since.is_none()).then_some(whole);
        Ok(Listed { complete })
    }

    async fn probe(&self, _: Instant) -> Vec<Finding> {
        Vec::new()
    }
}

/// The terms by which the model judges.
#[derive(Clone, Copy)]
struct Terms {
    /// Whether the service may be silent, so that an old record counts.
    failing: bool,
    /// Time at which the last complete list began.
    confirmed: Option<Instant>,
    /// Moment at which the request came: an event about everything says nothing against what was asked after that.
    came: u64,
}

/// The model: the reason why an allow for this identifier is wrong now, or `None`.
fn forbids(log: &[Entry], key: &str, terms: Terms) -> Option<String> {
    let mut why = "nobody was asked by it".to_owned();
    for basis in log {
        let (id, ..) = match &basis.logged {
            Logged::Answer { key: by, said: Said::One(id, device) } if by == key => (*id, *device),
            Logged::List { whole: true, devices } => {
                let mut owners = devices.iter().filter(|(_, device)| device.has(key));
                match (owners.next(), owners.next()) {
                    (Some(owner), None) => *owner,
                    _ => continue,
                }
            }
            _ => continue,
        };
        match doubt(log, key, basis.asked, id, terms) {
            None => return None,
            Some(doubt) => why = format!("of id{id}, asked at {}: {doubt}", basis.asked),
        }
    }
    Some(why)
}

/// The reason why device `id`, whose the identifier was when that was asked at `proven`, may not be allowed by it.
fn doubt(log: &[Entry], key: &str, proven: u64, id: u8, terms: Terms) -> Option<String> {
    let Terms { failing, confirmed, came } = terms;
    let told = |entry: &Entry| match &entry.logged {
        Logged::Answer { said: Said::One(other, device), .. } if *other == id => Some((entry.asked, entry.at, *device)),
        Logged::List { devices, .. } => devices.iter().find(|(other, _)| *other == id).map(|(_, device)| (entry.asked, entry.at, *device)),
        _ => None,
    };
    let (newest, at, device) = log.iter().filter_map(told).max_by_key(|(asked, ..)| *asked)?;
    if !device.has(key) {
        return Some("its newest record has it no more".to_owned());
    }
    if !device.managed {
        return Some(format!("its newest record, asked at {newest}, is not managed"));
    }
    let lifetime = if failing { Duration::from_secs(86_400) } else { LIFETIME };
    if confirmed.map_or(at, |confirmed| confirmed.max(at)).elapsed() > lifetime {
        return Some("it is too old".to_owned());
    }
    for entry in log {
        let (asked, wrong) = (entry.asked, |what: &str| Some(format!("{what}, asked at {}", entry.asked)));
        match &entry.logged {
            Logged::Answer { key: by, said } => match said {
                Said::None if asked > newest && device.has(by) => return wrong("not found by one of its identifiers"),
                Said::None | Said::Many if by == key && asked > proven => return wrong("not one device's any more"),
                Said::One(other, _) if by == key && *other != id && asked > proven => return wrong("another's"),
                Said::One(other, record) if *other != id && record.has(key) && asked > proven => return wrong("in another record"),
                _ => {}
            },
            Logged::List { whole, devices } => {
                let owners: Vec<u8> = devices.iter().filter(|(_, device)| device.has(key)).map(|(id, _)| *id).collect();
                if *whole && asked > proven && owners != [id] {
                    return wrong("the list has it elsewhere");
                }
                if *whole && asked > newest && !devices.iter().any(|(other, _)| *other == id) {
                    return wrong("not in the list");
                }
                if asked > proven && owners.iter().any(|owner| *owner != id) {
                    return wrong("in another record of a list");
                }
            }
            Logged::Event { names, revoking } => {
                let of_device = device.keys().iter().chain([&format!("id{id}")]).any(|name| names.contains(name));
                let since = (of_device && asked > newest) || (names.iter().any(|name| name == key) && asked > proven);
                if since && (*revoking || !failing || asked > came) {
                    return wrong("an event came since");
                }
                if names.is_empty() && asked > newest && (*revoking || (!failing && newest <= came)) {
                    return wrong("an event about everything came since");
                }
            }
        }
    }
    device.keys().iter().find(|own| is_ambiguous(log, own)).map(|own| format!("{own} is ambiguous"))
}

/// Whether more than one device had this identifier when that was last known for sure.
fn is_ambiguous(log: &[Entry], key: &str) -> bool {
    let proofs = log.iter().filter_map(|entry| match &entry.logged {
        Logged::Answer { key: by, said } if by == key => Some((entry.asked, *said == Said::Many)),
        Logged::List { whole: true, devices } => {
            let owners = devices.iter().filter(|(_, device)| device.has(key)).count();
            (owners > 0).then_some((entry.asked, owners > 1))
        }
        _ => None,
    });
    proofs.max_by_key(|(asked, _)| *asked).is_some_and(|(_, many)| many)
}

/// The kind of identifier by which a device is asked for. A host name is only claimed, and no service knows any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Serial,
    Udid,
    Host,
}

impl By {
    const fn kind(self) -> IdentifierKind {
        match self {
            Self::Serial => IdentifierKind::Serial,
            Self::Udid => IdentifierKind::Udid,
            Self::Host => IdentifierKind::Hostname,
        }
    }

    /// The text of the identifier; that of a host is the same as of a serial number.
    fn text(self, number: u8) -> String {
        if self == Self::Udid { udid(number) } else { serial(number) }
    }
}

/// The chain of a plan: whom it asks, and what it makes of the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chain {
    First,
    Second,
    /// One after the other. The flag: whether the second is asked too where the first cannot say.
    Next(bool),
    All,
    Any,
}

/// The request for a decision.
#[derive(Clone, Copy, Debug)]
struct Ask {
    by: By,
    number: u8,
    chain: Chain,
    /// Whether the policy demands that the device is attested.
    strict: bool,
}

/// One step of a history. `side` is the number of a service.
#[derive(Clone, Debug)]
enum Step {
    Decide(Ask),
    /// Checks whether an earlier allow still holds, counted back from the last one.
    Hold(usize),
    Enrol {
        side: usize,
        id: u8,
        device: Device,
    },
    Remove {
        side: usize,
        id: u8,
    },
    Event {
        side: usize,
        name: Option<String>,
        revoking: bool,
    },
    Sweep {
        side: usize,
        full: bool,
        complete: bool,
    },
    Lock {
        name: String,
        ttl: u32,
    },
    Unlock {
        name: String,
    },
    Exempt {
        by: By,
        number: u8,
        ttl: u32,
    },
    Outage {
        side: usize,
        fails: bool,
    },
    Latency {
        side: usize,
        millis: u16,
    },
    Wait(u32),
    Reload {
        side: usize,
        per_second: u32,
    },
    Restart,
    /// Sets the system's clock so many seconds ahead.
    Clock(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = || prop_oneof![(0..3_u8).prop_map(serial), (0..3_u8).prop_map(udid)];
    let event = prop_oneof![name(), (0..4_u8).prop_map(|id| format!("id{id}"))];
    let device = (0..3_u8, 0..3_u8, prop::bool::weighted(0.8)).prop_map(|(serial, udid, managed)| Device { serial, udid, managed });
    let by = || prop_oneof![6 => Just(By::Serial), 6 => Just(By::Udid), 1 => Just(By::Host)];
    let chain = prop_oneof![
        6 => Just(Chain::First),
        1 => Just(Chain::Second),
        1 => any::<bool>().prop_map(Chain::Next),
        2 => Just(Chain::All),
        1 => Just(Chain::Any),
    ];
    let ask = (by(), 0..3_u8, chain, any::<bool>()).prop_map(|(by, number, chain, strict)| Ask { by, number, chain, strict });
    let side = || prop_oneof![3 => Just(0_usize), 1 => Just(1_usize)];
    let ttl = || prop_oneof![Just(60_u32), Just(86_400)];
    let step = prop_oneof![
        12 => ask.prop_map(Step::Decide),
        3 => (0..3_usize).prop_map(Step::Hold),
        6 => (side(), 0..4_u8, device).prop_map(|(side, id, device)| Step::Enrol { side, id, device }),
        2 => (side(), 0..4_u8).prop_map(|(side, id)| Step::Remove { side, id }),
        2 => (side(), prop::option::weighted(0.9, event), any::<bool>()).prop_map(|(side, name, revoking)| Step::Event { side, name, revoking }),
        2 => (side(), prop::bool::weighted(0.7), prop::bool::weighted(0.8))
            .prop_map(|(side, full, complete)| Step::Sweep { side, full, complete }),
        2 => (name(), ttl()).prop_map(|(name, ttl)| Step::Lock { name, ttl }),
        1 => name().prop_map(|name| Step::Unlock { name }),
        2 => (by(), 0..3_u8, ttl()).prop_map(|(by, number, ttl)| Step::Exempt { by, number, ttl }),
        2 => (side(), any::<bool>()).prop_map(|(side, fails)| Step::Outage { side, fails }),
        3 => (side(), prop_oneof![Just(0_u16), 1..200_u16, Just(2500), Just(9000)])
            .prop_map(|(side, millis)| Step::Latency { side, millis }),
        6 => prop_oneof![
            8 => 1..300_u32,
            8 => Just(1500),
            8 => Just(5000),
            8 => Just(31_000),
            8 => Just(60_000),
            1 => Just(3_700_000),
        ]
        .prop_map(Step::Wait),
        1 => (side(), 1..50_u32).prop_map(|(side, per_second)| Step::Reload { side, per_second }),
        1 => Just(Step::Restart),
        1 => prop_oneof![3 => Just(0_i64), 1 => Just(-3600), 1 => Just(60 * 86_400), 1 => Just(-60 * 86_400)].prop_map(Step::Clock),
    ];
    let part = prop_oneof![40 => step.prop_map(|step| vec![step]), 1 => races()];
    prop::collection::vec(part, 10..80).prop_map(|parts| parts.concat())
}

/// Steps that seldom come together by chance: something changes while a list or an answer is on its way, and somebody asks for
/// it who is answered before that arrives, and again afterwards.
fn races() -> impl Strategy<Value = Vec<Step>> {
    let device = || (0..3_u8, 0..3_u8, any::<bool>()).prop_map(|(serial, udid, managed)| Device { serial, udid, managed });
    let change = prop_oneof![
        2 => (0..4_u8, device()).prop_map(|(id, device)| (id, Some(device))),
        1 => (0..4_u8).prop_map(|id| (id, None)),
    ];
    let by = prop_oneof![2 => Just(By::Serial), 2 => Just(By::Udid), 1 => Just(By::Host)];
    let what = (0..2_usize, 0..4_u8, device(), change);
    (what, by, 0..4_u8, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(what, by, first, same, exempt, lock)| {
        let (side, id, device, (other, changed)) = what;
        let chain = if side == 0 { Chain::First } else { Chain::Second };
        let ask = |by: By| Ask { by, number: if by == By::Udid { device.udid } else { device.serial }, chain, strict: first % 2 == 0 };
        let (asked, [serial, udid]) = (ask(by), device.keys());
        let (own, another, by_another) = if by == By::Udid { (udid, serial, By::Serial) } else { (serial, udid, By::Udid) };
        let id_changed = if same { id } else { other };
        let mut steps = vec![
            Step::Outage { side, fails: false },
            Step::Enrol { side, id, device: Device { managed: true, ..device } },
            // The remembered record is not good enough, so that the device is asked for.
            Step::Event { side, name: Some(own.clone()), revoking: false },
        ];
        steps.extend(exempt.then_some(Step::Exempt { by: asked.by, number: asked.number, ttl: 60 }));
        steps.extend([
            Step::Latency { side, millis: if exempt { 9000 } else { 2500 } },
            match first {
                0 => Step::Decide(asked),
                1 => Step::Decide(ask(by_another)),
                full => Step::Sweep { side, full: full == 2, complete: true },
            },
            Step::Wait(100),
            match changed {
                Some(device) => Step::Enrol { side, id: id_changed, device },
                None => Step::Remove { side, id: id_changed },
            },
        ]);
        steps.extend(lock.then_some(Step::Lock { name: if same { own } else { another }, ttl: 60 }));
        steps.extend([
            Step::Latency { side, millis: 50 },
            Step::Decide(asked),
            Step::Wait(9000),
            Step::Decide(asked),
            Step::Wait(100),
            Step::Hold(0),
        ]);
        steps
    })
}

/// One of the two services, with the provider that asks it.
struct Side {
    name: &'static str,
    script: Arc<Script>,
    life: Arc<Life>,
    link: Link,
    sweeping: Arc<AtomicBool>,
}

/// The rulings of operators in the model, by the time that really passes.
#[derive(Debug, Default)]
struct Ruled {
    /// The locked identifiers, and the end of each lock.
    locks: Vec<(String, Instant)>,
    exemptions: Vec<((IdentifierKind, String), Instant)>,
    /// Identifiers that once stood in one record, in both directions.
    together: BTreeSet<(String, String)>,
}

impl Ruled {
    fn locked(&self) -> impl Iterator<Item = &str> {
        let now = Instant::now();
        self.locks.iter().filter(move |(_, until)| now < *until).map(|(name, _)| &**name)
    }

    /// Whether an exemption may hold: a ruling ends at a whole second, and a clock may be two seconds off before it counts as
    /// wrong.
    fn exempts(&self, kind: IdentifierKind, key: &str) -> bool {
        let now = Instant::now();
        self.exemptions.iter().any(|((of, name), until)| *of == kind && name == key && now < *until + Duration::from_secs(4))
    }

    fn know(&mut self, device: Device) {
        let [serial, udid] = device.keys();
        self.together.insert((serial.clone(), udid.clone()));
        self.together.insert((udid, serial));
    }
}

struct Stand {
    sides: [Side; 2],
    locks: Arc<Locks>,
    ruled: Arc<Mutex<Ruled>>,
    given: Arc<Mutex<Vec<Given>>>,
    allows: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Option<String>>>,
    tasks: JoinSet<()>,
}

/// An allow that was given.
#[derive(Clone)]
struct Given {
    ask: Ask,
    allowed: Allowed,
    lives: [Arc<Life>; 2],
    /// Moment at which the request came, as each service counts.
    came: [u64; 2],
    /// Whether each service may be silent, so that an old record counts.
    failing: [bool; 2],
    /// Whether the allow rests on a record.
    recorded: bool,
}

fn settings(per_second: u32) -> ProviderSettings {
    let token = SecretSource::Env("TOKEN".to_owned());
    ProviderSettings::Remote(RemoteSettings {
        service: Service::Kandji(kandji::Settings { token, compliance_from_status: false, list_details: false }),
        endpoint: Endpoint { base_url: "http://127.0.0.1:9".parse().unwrap(), ca_file: None, connections: 5 },
        cache: Lifetimes { positive: LIFETIME, negative: Duration::from_secs(2), ..Lifetimes::default() },
        limits: Limits { per_second, unknown_per_minute: 600_000 },
        // Lists are read when a step says so, since the model has to know when they were asked for.
        sync: None,
        push: None,
        placeholders: inventory::Placeholders::default(),
    })
}

const LIFETIME: Duration = Duration::from_secs(40);

fn open(
    name: &'static str,
    settings: &ProviderSettings,
    life: &Arc<Life>,
    before: Option<&dyn Provider>,
    (locks, ruled): (&Arc<Locks>, &Arc<Mutex<Ruled>>),
) -> Link {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = Context::default();
    let (log, locks, ruled) = (Arc::clone(life), Arc::clone(locks), Arc::clone(ruled));
    context.acquaintances.tell(move |record| {
        // Only in a test does a call go on after its process has ended.
        if log.over.load(Ordering::SeqCst) {
            return;
        }
        locks.learned(&record.identifiers().collect::<Vec<_>>());
        let number = |text: &str| text.trim_start_matches(|letter: char| letter.is_alphabetic()).parse().unwrap();
        let (serial, udid) = (record.serial.value().unwrap(), record.udid.value().unwrap());
        let device = Device { serial: number(serial), udid: number(udid), managed: *record.managed.value().unwrap() };
        ruled.lock().unwrap().know(device);
        // A record without a moment is an answer to a single question, which is in the log already.
        let Some(asked) = record.name.value().map(|asked| asked.parse().unwrap()) else { return };
        let devices = vec![(number(&record.provider_id), device)];
        log.log(asked, Instant::now(), Logged::List { whole: false, devices });
    });
    let provider = provider::open(name, settings, &[Secret::new(b"token".to_vec())], before, &context).unwrap();
    let cache = provider.cache().unwrap();
    cache.replace_inventory(Arc::new(Scripted(Arc::clone(life))));
    cache.want(Wanted {
        fields: Fields::of(&[Field::Managed]),
        kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid, IdentifierKind::Hostname],
    });
    Link { name: name.into(), provider, own: Own::nothing().unwrap() }
}

impl Side {
    fn new(name: &'static str, shared: (&Arc<Locks>, &Arc<Mutex<Ruled>>)) -> Self {
        let script = Arc::new(Script {
            devices: Mutex::default(),
            changed: Mutex::default(),
            moments: AtomicU64::new(0),
            latency: Mutex::new(Duration::from_millis(50)),
            fails: AtomicBool::new(false),
            failures: AtomicUsize::new(0),
        });
        let life = Life::new(&script);
        Self { name, link: open(name, &settings(1000), &life, None, shared), script, life, sweeping: Arc::default() }
    }

    fn cache(&self) -> &Arc<crate::cache::Cache> {
        self.link.provider.cache().unwrap()
    }
}

impl Stand {
    fn new() -> Self {
        scripted::set(UnixTime::from_nanos(BASE));
        let (locks, ruled) = (Arc::default(), Arc::default());
        Self {
            sides: ["first", "second"].map(|name| Side::new(name, (&locks, &ruled))),
            locks,
            ruled,
            given: Arc::default(),
            allows: Arc::default(),
            wrong: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    async fn take(&mut self, began: Instant, step: Step) {
        let shared = (&self.locks, &self.ruled);
        match step {
            Step::Decide(ask) => self.decide(ask),
            Step::Hold(before) => self.hold(before),
            Step::Enrol { side, id, device } => {
                self.sides[side].script.devices.lock().unwrap().insert(id, device);
                self.sides[side].script.changed.lock().unwrap().insert(id, device);
            }
            Step::Remove { side, id } => {
                self.sides[side].script.devices.lock().unwrap().remove(&id);
                self.sides[side].script.changed.lock().unwrap().remove(&id);
            }
            Step::Event { side, name, revoking } => {
                let device = match &name {
                    None => Subject::Everything,
                    Some(id) if id.starts_with("id") => Subject::ProviderId(id.clone()),
                    Some(name) => Subject::Identifier(name.clone()),
                };
                let side = &self.sides[side];
                side.life.log(side.script.moment(), Instant::now(), Logged::Event { names: name.into_iter().collect(), revoking });
                side.cache().apply(&[Change { device, revoking }]);
            }
            Step::Sweep { side, full, complete } => self.sweep(side, full, complete),
            Step::Lock { name, ttl } => {
                drop(self.locks.lock(self.ruling(RulingKind::Lock, None, &name, ttl)).await.unwrap());
                self.ruled.lock().unwrap().locks.push((name, Instant::now() + Duration::from_secs(ttl.into())));
            }
            Step::Unlock { name } => {
                self.ruled.lock().unwrap().locks.retain(|(locked, _)| *locked != name);
                self.locks.take_back(&Which::MadeBy(RulingKind::Lock, None, name), "a test", clock::now()).await.unwrap();
            }
            Step::Exempt { by, number, ttl } => {
                let name = by.text(number);
                if self.locks.exempt(self.ruling(RulingKind::Exemption, Some(by.kind()), &name, ttl)).await.is_ok() {
                    let until = Instant::now() + Duration::from_secs(ttl.into());
                    self.ruled.lock().unwrap().exemptions.push(((by.kind(), name), until));
                }
            }
            Step::Outage { side, fails } => self.sides[side].script.fails.store(fails, Ordering::SeqCst),
            Step::Latency { side, millis } => *self.sides[side].script.latency.lock().unwrap() = Duration::from_millis(millis.into()),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
            Step::Reload { side, per_second } => {
                let side = &mut self.sides[side];
                side.link = open(side.name, &settings(per_second), &side.life, Some(&*side.link.provider), shared);
            }
            Step::Restart => self.restart(),
            Step::Clock(ahead) => scripted::set(UnixTime::from_nanos(BASE + ahead * 1_000_000_000).saturating_add(began.elapsed())),
        }
    }

    /// Puts another process in the place of this one. It has what a store keeps: rulings, and which identifiers are known to
    /// belong together.
    fn restart(&mut self) {
        self.tasks = JoinSet::new();
        self.locks = Arc::new(self.locks.restarted(clock::now()));
        for side in &mut self.sides {
            side.life.over.store(true, Ordering::SeqCst);
            side.life = Life::new(&side.script);
            side.link = open(side.name, &settings(1000), &side.life, None, (&self.locks, &self.ruled));
            side.sweeping = Arc::default();
        }
        // The allows of an earlier process are unknown to this one.
        self.given.lock().unwrap().clear();
    }

    fn ruling(&self, kind: RulingKind, of: Option<IdentifierKind>, device: &str, ttl: u32) -> Ruling {
        let ttl = Some(Duration::from_secs(ttl.into()));
        self.locks.anchored(Ruling::new(kind, of, device, "a test", "a test", clock::now(), ttl))
    }

    fn sweep(&mut self, side: usize, full: bool, complete: bool) {
        let side = &self.sides[side];
        if side.sweeping.swap(true, Ordering::SeqCst) {
            return;
        }
        side.life.list_complete.store(complete, Ordering::SeqCst);
        let (cache, sweeping) = (Arc::clone(side.cache()), Arc::clone(&side.sweeping));
        cache.accept_shrink();
        let life = Arc::clone(&side.life);
        self.tasks.spawn(async move {
            let began = Instant::now();
            // Nothing can come between this moment and the one at which the cache begins.
            life.list_asked.store(life.script.moment(), Ordering::SeqCst);
            let swept = cache.sweep(full).await;
            // What a whole list does not have counts once all of the list is known; a list of changes says nothing of it.
            let whole = life.whole.lock().unwrap().take();
            if full && swept.is_ok() && life.list_complete.load(Ordering::SeqCst) {
                *life.confirmed.lock().unwrap() = Some(began);
            }
            if let (Ok(_), Some(whole)) = (swept, whole) {
                life.log.lock().unwrap().push(whole);
            }
            sweeping.store(false, Ordering::SeqCst);
        });
    }

    fn plan(&self, ask: Ask) -> Arc<Plan> {
        let [first, second] = &self.sides;
        let links = match ask.chain {
            Chain::First => vec![first.link.clone()],
            Chain::Second => vec![second.link.clone()],
            _ => vec![first.link.clone(), second.link.clone()],
        };
        let trust = ask.strict.then_some(Trust::Attested);
        Arc::new(Plan {
            policy: Some("p".into()),
            rules: Some(Arc::new(Policy::compile(&Rules { managed: true, trust, ..Rules::default() }).unwrap())),
            links,
            on_not_found: OnNotFound::Next,
            on_unavailable: if ask.chain == Chain::Next(true) { OnUnavailable::Next } else { OnUnavailable::Fail },
            combine: match ask.chain {
                Chain::All => Combine::AllOf,
                Chain::Any => Combine::AnyOf,
                _ => Combine::FirstFound,
            },
            enrich: false,
            enforcement: Enforcement::Enforce,
        })
    }

    fn decide(&mut self, ask: Ask) {
        let plan = self.plan(ask);
        let trust = if ask.by == By::Host { Trust::Claimed } else { Trust::Attested };
        let asker = Asker {
            identity: Identity { device: DeviceId::new(ask.by.kind(), &ask.by.text(ask.number)).unwrap(), trust },
            kind: RequestKind::Webhook(Kind::Enriching),
            webhook: None,
            caller: None,
            hint: None,
            deadline: Instant::now() + Duration::from_millis(3350),
            explain: false,
        };
        let lives = [&self.sides[0].life, &self.sides[1].life].map(Arc::clone);
        let (locks, ruled, given) = (Arc::clone(&self.locks), Arc::clone(&self.ruled), Arc::clone(&self.given));
        let (allows, wrong) = (Arc::clone(&self.allows), Arc::clone(&self.wrong));
        self.tasks.spawn(async move {
            let came = lives.each_ref().map(|life| life.script.moments.load(Ordering::SeqCst));
            let failures = lives.each_ref().map(|life| life.script.failures.load(Ordering::SeqCst));
            let decision = decide(|| Some(Arc::clone(&plan)), &asker, &locks, &Metrics::default()).await;
            let Outcome::Allow(allowed) = decision.outcome else { return };
            allows.fetch_add(1, Ordering::SeqCst);
            // A service that was silent for long counts as failed.
            let stale =
                |name: &str| decision.asked.iter().any(|asked| &*asked.provider == name && asked.source == inventory::Source::Stale);
            let silent = |side: usize| lives[side].script.failures.load(Ordering::SeqCst) > failures[side];
            let failing = [stale("first") || silent(0), stale("second") || silent(1)];
            let recorded = allowed.grounds.records().next().is_some();
            let this = Given { ask, allowed, lives, came, failing, recorded };
            if let Some(why) = this.wrong(this.came, &ruled.lock().unwrap()) {
                *wrong.lock().unwrap() = Some(why);
            }
            given.lock().unwrap().push(this);
        });
    }

    /// Checks an allow that is said to hold: it has to be right at this moment too.
    fn hold(&self, before: usize) {
        let given = self.given.lock().unwrap();
        let Some(given) = given.len().checked_sub(before + 1).and_then(|number| given.get(number)) else { return };
        // A reload may have put another provider into the plan.
        if given.allowed.holds(&self.plan(given.ask), &self.locks)
            && let Some(why) = given.wrong([u64::MAX; 2], &self.ruled.lock().unwrap())
        {
            *self.wrong.lock().unwrap() = Some(format!("held: {why}"));
        }
    }
}

impl Given {
    /// The reason why this allow is wrong now for a request that came at these moments, with everything that was said.
    fn wrong(&self, came: [u64; 2], ruled: &Ruled) -> Option<String> {
        let why = self.why(came, ruled)?;
        let logs = self.lives.each_ref().map(|life| shown(&life.log.lock().unwrap()));
        Some(format!("allowed {:?}: {why}\n{ruled:?}\nfirst:\n{}second:\n{}", self.ask, logs[0], logs[1]))
    }

    fn why(&self, came: [u64; 2], ruled: &Ruled) -> Option<String> {
        let (ask, key) = (self.ask, self.ask.by.text(self.ask.number));
        let together = |other: &str| ask.by != By::Host && ruled.together.contains(&(key.clone(), other.to_owned()));
        if let Some(lock) = ruled.locked().find(|lock| *lock == key || together(lock)) {
            return Some(format!("locked by {lock}"));
        }
        if ask.by == By::Host && ask.strict {
            return Some("nobody has proven that it is this device".to_owned());
        }
        if ruled.exempts(ask.by.kind(), &key) {
            let devices = self.lives.iter().flat_map(|life| life.script.devices.lock().unwrap().values().copied().collect::<Vec<_>>());
            let mut own = devices.filter(|device| ask.by != By::Host && device.has(&key)).flat_map(|device| device.keys());
            // Only the record of an allow shows whose the locked identifier is.
            let doubtful = |other: &String| ruled.locked().any(|lock| lock == other);
            return own.find(doubtful).filter(|_| !self.recorded).map(|other| format!("exempt, and {other} is locked"));
        }
        if ask.by == By::Host {
            return Some("nobody knows such a host".to_owned());
        }
        let sides = [0, 1].map(|side| {
            let life = &self.lives[side];
            let failing = self.failing[side] || life.script.fails.load(Ordering::SeqCst);
            let terms = Terms { failing, confirmed: *life.confirmed.lock().unwrap(), came: came[side] };
            forbids(&life.log.lock().unwrap(), &key, terms)
        });
        let [first, second] = sides;
        match ask.chain {
            Chain::First => first,
            Chain::Second => second,
            Chain::All => first.or(second),
            Chain::Next(_) | Chain::Any => first.zip(second).map(|(first, second)| format!("{first}; {second}")),
        }
    }
}

/// The log, for people: each entry with the moment at which it was asked, and how long ago that was.
fn shown(log: &[Entry]) -> String {
    log.iter().map(|entry| format!("{} ({:?} ago): {:?}\n", entry.asked, entry.at.elapsed(), entry.logged)).collect()
}

/// The time at which histories begin, in nanoseconds since the epoch.
const BASE: i64 = 1_800_000_000 * 1_000_000_000;

/// Runs one history; returns how many devices it let in, or what was wrong.
fn run(steps: &[Step]) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (mut stand, began) = (Stand::new(), Instant::now());
        for step in steps {
            stand.take(began, step.clone()).await;
            if let Some(wrong) = stand.wrong.lock().unwrap().take() {
                return Err(wrong);
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        while stand.tasks.join_next().await.is_some() {}
        let wrong = stand.wrong.lock().unwrap().take();
        wrong.map_or_else(|| Ok(stand.allows.load(Ordering::SeqCst)), Err)
    })
}

#[test]
fn no_history_ends_in_an_allow_that_something_known_forbids() {
    let allows = AtomicUsize::new(0);
    // The histories are the same each time, so that a change is judged by what it changed; a number in STEPWARD_HISTORIES tries
    // as many others.
    let others: Option<u32> = std::env::var("STEPWARD_HISTORIES").ok().and_then(|number| number.parse().ok());
    let cases = others.unwrap_or(CASES);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = match others {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    let outcome = runner.run(&steps(), |steps| {
        let allowed = run(&steps).map_err(TestCaseError::fail)?;
        allows.fetch_add(allowed, Ordering::Relaxed);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    // A run that lets nobody in shows nothing.
    let allows = allows.into_inner();
    assert!(allows > cases as usize, "{allows} allows in {cases} histories");
}

/// Histories of one run; each takes some milliseconds.
const CASES: u32 = 1000;
