//! Random histories against a small model of what may be allowed.
//!
//! A scripted service changes under the cache's hands while devices are asked for by several identifiers, lists and events come,
//! operators lock and exempt, the service fails, and settings are read again. Everything that the service said is logged with the
//! moment at which it was asked. Whenever a decision is an allow, the model looks through the whole log, in the slowest and
//! plainest way, whether anything forbids it at that moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use posture::identity::{DeviceId, IdentifierKind, Identity, Trust, normal};
use posture::policy::{Policy, RequestKind, Rules};
use posture::record::{Fact, Field, Fields, Record};
use posture::secret::Secret;
use posture::time::UnixTime;
use posture::webhook::Kind;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;
use crate::cache::Wanted;
use crate::config::{self, Combine, Enforcement, OnNotFound, OnUnavailable, SecretSource};
use crate::decide::{Asker, Link, Own, decide};
use crate::locks::{RulingKind, Which};
use crate::metrics::Metrics;
use crate::provider::http::Endpoint;
use crate::provider::inventory::{Change, Finding, Inventory, Listed, Listing, Question, Subject};
use crate::provider::service::Service;
use crate::provider::{Context, Unavailable, kandji};

/// A device of the service: serial, unique device identifier, and whether it is managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    serial: u8,
    udid: u8,
    managed: bool,
}

/// What one question says about whose an identifier is.
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
    /// An event about everything that these name.
    Event { names: Vec<String>, revoking: bool },
}

/// One entry of the log, by the moment at which it was asked, and the time.
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
    /// Failures so far: a decision during which there was one may rest on an old record.
    failures: AtomicUsize,
}

/// A life of the service's process: what an earlier one was told is not known to it.
#[derive(Debug)]
struct Life {
    script: Arc<Script>,
    log: Mutex<Vec<Entry>>,
    /// What the next list counts as asked at.
    list_asked: AtomicU64,
    list_complete: AtomicBool,
    /// The list of everything that was read last.
    whole: Mutex<Option<Entry>>,
    /// When the last complete list began.
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

    async fn lookup(&self, question: &Question) -> Answer {
        let script = &self.0.script;
        let (asked, at) = (script.moment(), Instant::now());
        let key = question.device.normal().to_owned();
        let said = script.ask(&key);
        let latency = *script.latency.lock().unwrap();
        tokio::time::sleep(latency).await;
        if script.fails.load(Ordering::SeqCst) {
            script.failures.fetch_add(1, Ordering::SeqCst);
            return Answer::Unavailable(Unavailable::Network);
        }
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
            // What a list says of a device counts once the record is taken, which is when it is told of: see `open`.
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

/// The model: why an allow for this identifier is wrong now, or `None`.
fn forbids(log: &[Entry], key: &str, failing: bool, confirmed: Option<Instant>) -> Option<String> {
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
        match doubt(log, key, basis.asked, id, failing, confirmed) {
            None => return None,
            Some(doubt) => why = format!("of id{id}, asked at {}: {doubt}", basis.asked),
        }
    }
    Some(why)
}

/// Why the device may not be allowed by this identifier, whose it is since it was asked then.
fn doubt(log: &[Entry], key: &str, proven: u64, id: u8, failing: bool, confirmed: Option<Instant>) -> Option<String> {
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
                if (since || (names.is_empty() && asked > newest)) && (*revoking || !failing) {
                    return wrong("an event came since");
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

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Decide { by_udid: bool, number: u8 },
    Enrol { id: u8, device: Device },
    Remove { id: u8 },
    Event { name: Option<String>, revoking: bool },
    Sweep { full: bool, complete: bool },
    Lock { name: String },
    Unlock { name: String },
    Exempt { name: String },
    Outage(bool),
    Latency(u16),
    Wait(u16),
    Reload { per_second: u32 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop_oneof![(0..3_u8).prop_map(serial), (0..3_u8).prop_map(udid)];
    let event = prop_oneof![name.clone(), (0..4_u8).prop_map(|id| format!("id{id}"))];
    let device = (0..3_u8, 0..3_u8, prop::bool::weighted(0.8)).prop_map(|(serial, udid, managed)| Device { serial, udid, managed });
    let step = prop_oneof![
        12 => (any::<bool>(), 0..3_u8).prop_map(|(by_udid, number)| Step::Decide { by_udid, number }),
        5 => (0..4_u8, device).prop_map(|(id, device)| Step::Enrol { id, device }),
        2 => (0..4_u8).prop_map(|id| Step::Remove { id }),
        2 => (prop::option::weighted(0.9, event), any::<bool>()).prop_map(|(name, revoking)| Step::Event { name, revoking }),
        2 => (prop::bool::weighted(0.7), prop::bool::weighted(0.8)).prop_map(|(full, complete)| Step::Sweep { full, complete }),
        1 => name.clone().prop_map(|name| Step::Lock { name }),
        1 => name.clone().prop_map(|name| Step::Unlock { name }),
        1 => name.prop_map(|name| Step::Exempt { name }),
        1 => any::<bool>().prop_map(Step::Outage),
        3 => prop_oneof![Just(0_u16), 1..200_u16, Just(2500), Just(9000)].prop_map(Step::Latency),
        6 => prop_oneof![1..300_u16, Just(1500), Just(5000), Just(31_000), Just(60_000)].prop_map(Step::Wait),
        1 => (1..50_u32).prop_map(|per_second| Step::Reload { per_second }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 10..80)
}

struct Stand {
    script: Arc<Script>,
    life: Arc<Life>,
    link: Link,
    locks: Arc<Locks>,
    locked: Arc<Mutex<Vec<String>>>,
    exempt: Arc<Mutex<Vec<String>>>,
    allows: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Option<String>>>,
    tasks: JoinSet<()>,
    sweeping: Arc<AtomicBool>,
}

fn settings(per_second: u32) -> config::Provider {
    let token = SecretSource::Env("TOKEN".to_owned());
    config::Provider::Remote(config::Remote {
        service: Service::Kandji(kandji::Settings { token, compliance_from_status: false, list_details: false }),
        endpoint: Endpoint { base_url: "http://127.0.0.1:9".parse().unwrap(), ca_file: None, connections: 5 },
        cache: config::Cache { positive: LIFETIME, negative: Duration::from_secs(2), ..config::Cache::default() },
        limits: config::Limits { per_second, unknown_per_minute: 600_000 },
        // Lists are read when a step says so, since the model has to know when they were asked for.
        sync: None,
        push: None,
    })
}

const LIFETIME: Duration = Duration::from_secs(40);

fn open(settings: &config::Provider, life: &Arc<Life>, before: Option<&Provider>) -> Link {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = Context::default();
    let log = Arc::clone(life);
    context.acquaintances.tell(move |record| {
        let number = |text: &str| text.trim_start_matches(|letter: char| letter.is_alphabetic()).parse().unwrap();
        // Answers to single questions are in the log already.
        let Some(asked) = record.name.value().map(|asked| asked.parse().unwrap()) else { return };
        let (serial, udid) = (record.serial.value().unwrap(), record.udid.value().unwrap());
        let device = Device { serial: number(serial), udid: number(udid), managed: *record.managed.value().unwrap() };
        let devices = vec![(number(&record.provider_id), device)];
        log.log(asked, Instant::now(), Logged::List { whole: false, devices });
    });
    let provider = Provider::open("mdm", settings, &[Secret::new(b"token".to_vec())], before, &context).unwrap();
    let cache = provider.cache().unwrap();
    cache.replace_inventory(Arc::new(Scripted(Arc::clone(life))));
    cache.want(Wanted { fields: Fields::of(&[Field::Managed]), kinds: vec![IdentifierKind::Serial, IdentifierKind::Udid] });
    Link { name: "mdm".into(), provider: Arc::new(provider), own: Own::nothing().unwrap() }
}

impl Stand {
    fn new() -> Self {
        let script = Arc::new(Script {
            devices: Mutex::default(),
            changed: Mutex::default(),
            moments: AtomicU64::new(0),
            latency: Mutex::new(Duration::from_millis(50)),
            fails: AtomicBool::new(false),
            failures: AtomicUsize::new(0),
        });
        let life = Life::new(&script);
        Self {
            link: open(&settings(1000), &life, None),
            script,
            life,
            locks: Arc::default(),
            locked: Arc::default(),
            exempt: Arc::default(),
            allows: Arc::default(),
            wrong: Arc::default(),
            tasks: JoinSet::new(),
            sweeping: Arc::default(),
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Decide { by_udid, number } => self.decide(by_udid, number),
            Step::Enrol { id, device } => {
                self.script.devices.lock().unwrap().insert(id, device);
                self.script.changed.lock().unwrap().insert(id, device);
            }
            Step::Remove { id } => {
                self.script.devices.lock().unwrap().remove(&id);
                self.script.changed.lock().unwrap().remove(&id);
            }
            Step::Event { name, revoking } => {
                let device = match &name {
                    None => Subject::Everything,
                    Some(id) if id.starts_with("id") => Subject::ProviderId(id.clone()),
                    Some(name) => Subject::Identifier(name.clone()),
                };
                self.life.log(self.script.moment(), Instant::now(), Logged::Event { names: name.into_iter().collect(), revoking });
                self.link.provider.cache().unwrap().apply(&[Change { device, revoking }]);
            }
            Step::Sweep { full, complete } => self.sweep(full, complete),
            Step::Lock { name } => {
                drop(self.locks.lock(ruling(RulingKind::Lock, &name)).await.unwrap());
                self.locked.lock().unwrap().push(name);
            }
            Step::Unlock { name } => {
                let now = UnixTime::from_system(SystemTime::now());
                self.locked.lock().unwrap().retain(|locked| *locked != name);
                self.locks.take_back(&Which::MadeBy(RulingKind::Lock, None, name), "a test", now).await.unwrap();
            }
            Step::Exempt { name } => {
                if self.locks.exempt(ruling(RulingKind::Exemption, &name)).await.is_ok() {
                    self.exempt.lock().unwrap().push(name);
                }
            }
            Step::Outage(fails) => self.script.fails.store(fails, Ordering::SeqCst),
            Step::Latency(millis) => *self.script.latency.lock().unwrap() = Duration::from_millis(millis.into()),
            Step::Wait(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
            Step::Reload { per_second } => self.link = open(&settings(per_second), &self.life, Some(&self.link.provider)),
            Step::Restart => {
                self.life = Life::new(&self.script);
                self.link = open(&settings(1000), &self.life, None);
                self.sweeping = Arc::default();
            }
        }
    }

    fn sweep(&mut self, full: bool, complete: bool) {
        if self.sweeping.swap(true, Ordering::SeqCst) {
            return;
        }
        self.life.list_complete.store(complete, Ordering::SeqCst);
        let (cache, sweeping) = (Arc::clone(self.link.provider.cache().unwrap()), Arc::clone(&self.sweeping));
        cache.accept_shrink();
        let life = Arc::clone(&self.life);
        self.tasks.spawn(async move {
            let began = Instant::now();
            // Nothing can come between this and the moment at which the cache begins.
            life.list_asked.store(life.script.moment(), Ordering::SeqCst);
            let swept = cache.sweep(full).await;
            // What a list does not have counts once all of it is known; and a list of changes that is complete says that what it
            // does not have is as it was.
            let whole = life.whole.lock().unwrap().take();
            if swept.is_ok() && life.list_complete.load(Ordering::SeqCst) {
                *life.confirmed.lock().unwrap() = Some(began);
            }
            if let (Ok(_), Some(whole)) = (swept, whole) {
                life.log.lock().unwrap().push(whole);
            }
            sweeping.store(false, Ordering::SeqCst);
        });
    }

    fn decide(&mut self, by_udid: bool, number: u8) {
        let kind = if by_udid { IdentifierKind::Udid } else { IdentifierKind::Serial };
        let key = if by_udid { udid(number) } else { serial(number) };
        let plan = Arc::new(Plan {
            policy: Some("p".into()),
            rules: Some(Arc::new(Policy::compile(&Rules { managed: true, ..Rules::default() }).unwrap())),
            links: vec![self.link.clone()],
            on_not_found: OnNotFound::Next,
            on_unavailable: OnUnavailable::Fail,
            combine: Combine::FirstFound,
            enrich: false,
            enforcement: Enforcement::Enforce,
        });
        let asker = Asker {
            identity: Identity { device: DeviceId::new(kind, &key).unwrap(), trust: Trust::Attested },
            kind: RequestKind::Webhook(Kind::Enriching),
            webhook: None,
            caller: None,
            hint: None,
            deadline: Instant::now() + Duration::from_millis(3350),
            explain: false,
        };
        let (life, locks, locked, exempt) =
            (Arc::clone(&self.life), Arc::clone(&self.locks), Arc::clone(&self.locked), Arc::clone(&self.exempt));
        let (allows, wrong) = (Arc::clone(&self.allows), Arc::clone(&self.wrong));
        self.tasks.spawn(async move {
            let failures = life.script.failures.load(Ordering::SeqCst);
            let decision = decide(|| Some(Arc::clone(&plan)), &asker, &locks, &Metrics::default()).await;
            let Outcome::Allow(_) = decision.outcome else { return };
            allows.fetch_add(1, Ordering::SeqCst);
            // Who was silent for long is taken for one that fails.
            let failing = life.script.fails.load(Ordering::SeqCst)
                || life.script.failures.load(Ordering::SeqCst) > failures
                || decision.asked.iter().any(|asked| asked.source == crate::provider::Source::Stale);
            let log = life.log.lock().unwrap();
            let names = log.iter().filter_map(|entry| match &entry.logged {
                Logged::Answer { said: Said::One(_, device), .. } if device.has(&key) => Some(vec![*device]),
                Logged::List { devices, .. } => Some(devices.iter().map(|(_, device)| *device).filter(|device| device.has(&key)).collect()),
                _ => None,
            });
            // By the newest record of the device, at least, which every path has.
            let of_device: Vec<String> = names.flatten().flat_map(|device| device.keys()).collect();
            let locked = locked.lock().unwrap();
            let by_exemption = exempt.lock().unwrap().contains(&normal(&key).into_owned());
            let why = if locked.contains(&key) {
                Some("locked by what was stated".to_owned())
            } else if by_exemption {
                None
            } else if let Some(why) = forbids(&log, &key, failing, *life.confirmed.lock().unwrap()) {
                Some(why)
            } else {
                let newest = newest(&log, &key);
                let own = newest.map(|device| device.keys().to_vec()).unwrap_or(of_device);
                own.iter().find(|own| locked.contains(own)).map(|own| format!("locked by {own}"))
            };
            if let Some(why) = why {
                *wrong.lock().unwrap() = Some(format!("allowed {key}: {why}\n{}", shown(&log)));
            }
        });
    }
}

/// The log, for people: each entry with the moment at which it was asked, and how long ago that was.
fn shown(log: &[Entry]) -> String {
    log.iter().map(|entry| format!("{} ({:?} ago): {:?}\n", entry.asked, entry.at.elapsed(), entry.logged)).collect()
}

/// The newest record that has this identifier.
fn newest(log: &[Entry], key: &str) -> Option<Device> {
    let records = log.iter().flat_map(|entry| match &entry.logged {
        Logged::Answer { said: Said::One(_, device), .. } => vec![(entry.asked, *device)],
        Logged::List { devices, .. } => devices.iter().map(|(_, device)| (entry.asked, *device)).collect(),
        _ => Vec::new(),
    });
    records.filter(|(_, device)| device.has(key)).max_by_key(|(asked, _)| *asked).map(|(_, device)| device)
}

fn ruling(kind: RulingKind, device: &str) -> Ruling {
    let exempt = if device.starts_with('U') { IdentifierKind::Udid } else { IdentifierKind::Serial };
    let identifier_kind = (kind == RulingKind::Exemption).then_some(exempt);
    Ruling::new(
        kind,
        identifier_kind,
        device,
        "a test",
        "a test",
        UnixTime::from_system(SystemTime::now()),
        Some(Duration::from_secs(3600)),
    )
}

/// Runs one history; returns how many devices it let in, or what was wrong.
fn run(steps: &[Step]) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut stand = Stand::new();
        for step in steps {
            stand.take(step.clone()).await;
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
    // The same histories each time, so that a change is judged by what it changed; a number in STEPWARD_HISTORIES tries as many
    // others.
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
    // Where nobody is let in, nothing is shown.
    let allows = allows.into_inner();
    assert!(allows > cases as usize, "{allows} allows in {cases} histories");
}

/// Histories of one run; each takes some milliseconds.
const CASES: u32 = 3000;
