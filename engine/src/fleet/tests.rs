use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use inventory::{Answer, Change, Finding, Inventory, Listed, Listing, Question, Source, Subject, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Fact, Fields, Record};
use posture::time::UnixTime;
use store::scripted::Cluster;
use store::{Server, Settings, Sharing};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, mpsc};

use super::*;
use crate::cache::{self, Lifetimes, Limits, Schedule, Terms, Wanted};
use crate::follow::follow;
use crate::locks::Locks;

async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER.get_or_init(async || Cluster::start(&[]).await.unwrap()).await
}

/// A device management that counts what it is asked.
#[derive(Debug)]
struct Management {
    records: Mutex<BTreeMap<String, Record>>,
    calls: AtomicUsize,
    lists: AtomicUsize,
    /// Whether lists fail at their end.
    fails: AtomicBool,
    /// Places for calls and pages of lists at once: none keeps all of them waiting.
    open: Semaphore,
}

impl Management {
    fn new(devices: usize) -> Arc<Self> {
        let records = (0..devices).map(|number| (format!("C{number}"), record(&format!("C{number}")))).collect();
        let (calls, lists) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { records: Mutex::new(records), calls, lists, fails: AtomicBool::new(false), open: Semaphore::new(100) })
    }

    fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }

    fn remove(&self, serial: &str) {
        self.records.lock().unwrap().remove(serial);
    }
}

/// A client of a management.
#[derive(Debug)]
struct Client(Arc<Management>);

#[async_trait]
impl Inventory for Client {
    fn fields(&self) -> Fields {
        Fields::NONE
    }

    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial
    }

    async fn lookup(&self, question: &Question) -> Answer {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        // An answer is as of the time of its question.
        let found = self.0.records.lock().unwrap().get(question.device.normal()).cloned();
        let _open = self.0.open.acquire().await.unwrap();
        found.map_or(Answer::NotFound, |record| Answer::Found(Arc::new(record)))
    }

    fn listing(&self) -> Listing {
        Listing::Incremental
    }

    async fn list(&self, _: Option<UnixTime>, _: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        self.0.lists.fetch_add(1, Ordering::SeqCst);
        let records: Vec<_> = self.0.records.lock().unwrap().values().cloned().collect();
        for page in records.chunks(100) {
            let _open = self.0.open.acquire().await.unwrap();
            pages.send(page.to_vec()).await.map_err(|_| Unavailable::Network)?;
        }
        if self.0.fails.load(Ordering::SeqCst) { Err(Unavailable::Network) } else { Ok(Listed { complete: true }) }
    }

    async fn probe(&self, _: Instant) -> Vec<Finding> {
        Vec::new()
    }
}

fn record(serial: &str) -> Record {
    Record { provider_id: format!("id of {serial}"), serial: Fact::Value(serial.to_owned()), ..Record::default() }
}

fn device(serial: &str) -> DeviceId {
    DeviceId::new(IdentifierKind::Serial, serial).unwrap()
}

/// A service with one provider.
struct Service {
    store: Store,
    locks: Locks,
    fleet: Arc<Fleet>,
    cache: Arc<Cache>,
}

async fn open(server: &Server) -> Store {
    let settings = Settings { server: Some(server.clone()), sharing: Sharing::DEFAULT, ..Settings::none() };
    Store::open(&settings, Arc::<AtomicU64>::default()).await.unwrap()
}

impl Service {
    async fn start(server: &Server, provider: &str, management: &Arc<Management>) -> Self {
        let fleet = Arc::new(Fleet::unheard());
        let limits = Limits { per_second: 10_000, unknown_per_minute: 600_000 };
        let settings = cache::Settings { cache: Lifetimes::default(), limits, connections: 5, sync: Some(Schedule::default()) };
        let inventory: Arc<dyn Inventory> = Arc::new(Client(Arc::clone(management)));
        let cache = Cache::new(provider, settings, inventory, Arc::default(), Handle::current());
        let cache = Arc::new(cache.among(fleet.common()));
        cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
        fleet.add(&cache);
        let store = open(server).await;
        let locks = Locks::load(store.clone(), clock::now()).await.unwrap();
        fleet.keep_in(&store).await.unwrap();
        Self { store, locks, fleet, cache }
    }

    /// Two services on one new store, which ask one management.
    async fn two(management: &Arc<Management>) -> (Server, Self, Self) {
        let server = cluster().await.database().await.unwrap();
        let (one, other) = (Self::start(&server, "mdm", management).await, Self::start(&server, "mdm", management).await);
        (server, one, other)
    }

    /// Takes an event, and tells the others of it.
    async fn event(&self, device: Subject, revoking: bool) {
        let about = self.cache.apply(&[Change { device, revoking }]);
        self.tell(about).await;
    }

    async fn purge(&self, device: Option<DeviceId>) {
        self.cache.purge(device.as_ref());
        self.tell(vec![device.map_or(About::PurgeAll, About::Purge)]).await;
    }

    async fn tell(&self, about: Vec<About>) {
        let told = async { assert!(self.fleet.tell("mdm", about, Duration::from_secs(20)).await) };
        tokio::select! {
            () = told => {}
            () = self.fleet.keep_telling() => panic!("it goes on"),
        }
    }

    /// Heeds everything that is new.
    async fn hear(&self) {
        while self.locks.hear(&self.fleet, Duration::from_secs(5)).await.unwrap() {}
    }

    async fn says(&self, serial: &str) -> (&'static str, Source) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let question = Question { device: device(serial), need: Fields::NONE, hint: None, deadline, way: Way::Webhook };
        let looked = self.cache.lookup(&question, Terms::default()).await;
        (looked.answer.kind().as_str(), looked.source)
    }
}

/// Runs a statement on the database.
async fn sql(server: &Server, sql: &str) {
    cluster().await.run(server.to_string().rsplit_once('/').unwrap().1, sql).await.unwrap();
}

const LIVE: (&str, Source) = ("found", Source::Live);
const CACHED: (&str, Source) = ("found", Source::Cached);

#[tokio::test]
async fn an_event_at_one_service_drops_the_device_at_the_others_and_no_other_device_or_provider() {
    let management = Management::new(3);
    let (server, one, other) = Service::two(&management).await;
    let elsewhere = Service::start(&server, "another", &management).await;
    for service in [&one, &other, &elsewhere] {
        assert_eq!((service.says("C0").await, service.says("C1").await), (LIVE, LIVE));
    }
    for (subject, revoking) in
        [(Subject::Identifier("c0".to_owned()), false), (Subject::ProviderId("id of C0".to_owned()), true), (Subject::Everything, false)]
    {
        let everything = subject == Subject::Everything;
        one.event(subject, revoking).await;
        assert_eq!(other.says("C0").await, CACHED, "it has not heard of it yet");
        for service in [&one, &other, &elsewhere] {
            service.hear().await;
        }
        for service in [&one, &other] {
            assert_eq!(service.says("C0").await, LIVE);
            assert_eq!(service.says("C1").await, if everything { LIVE } else { CACHED });
        }
        assert_eq!((elsewhere.says("C0").await, elsewhere.says("C1").await), (CACHED, CACHED));
    }
}

#[tokio::test]
async fn what_revokes_at_one_service_revokes_at_the_others() {
    let management = Management::new(1);
    let (_, one, other) = Service::two(&management).await;
    for revoking in [false, true] {
        assert_eq!(other.says("C0").await.0, "found");
        one.event(Subject::Identifier("C0".to_owned()), revoking).await;
        other.hear().await;
        let silent = management.open.acquire_many(100).await.unwrap();
        let (answer, source) = other.says("C0").await;
        // An old record stands in where nobody can say, unless it was revoked.
        assert_eq!((answer == "found", source == Source::Stale), (!revoking, !revoking), "{answer} {source:?}");
        drop(silent);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn an_answer_that_was_asked_for_before_the_event_was_heard_is_not_used() {
    let management = Management::new(1);
    let (_, one, other) = Service::two(&management).await;
    let silent = management.open.acquire_many(100).await.unwrap();
    let asking = async {
        let question = Question {
            device: device("C0"),
            need: Fields::NONE,
            hint: None,
            deadline: Instant::now() + Duration::from_secs(5),
            way: Way::Webhook,
        };
        other.cache.lookup(&question, Terms::default()).await
    };
    let event = async {
        while management.calls.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        management.remove("C0");
        one.event(Subject::Identifier("C0".to_owned()), true).await;
        other.hear().await;
        drop(silent);
    };
    let (looked, ()) = tokio::join!(asking, event);
    assert!(!other.cache.stands(&device("C0"), &looked), "{looked:?}");
    assert_eq!(other.says("C0").await.0, "not_found");
}

#[tokio::test]
async fn a_purge_at_one_service_is_one_at_the_others() {
    let management = Management::new(2);
    let (_, one, other) = Service::two(&management).await;
    for service in [&one, &other] {
        assert_eq!((service.says("C0").await, service.says("C1").await, service.cache.len()), (LIVE, LIVE, 2));
    }
    one.purge(Some(device("C0"))).await;
    other.hear().await;
    assert_eq!((other.cache.len(), one.cache.len(), other.says("C1").await), (1, 1, CACHED));
    one.purge(None).await;
    other.hear().await;
    assert_eq!((other.cache.len(), one.cache.len()), (0, 0));
    // What a service told itself of takes nothing from it later.
    assert_eq!(one.says("C0").await, LIVE);
    one.hear().await;
    assert_eq!(one.says("C0").await, CACHED);
}

#[tokio::test]
async fn who_is_too_far_behind_forgets_everything() {
    let management = Management::new(2);
    let (server, one, other) = Service::two(&management).await;
    assert_eq!(other.says("C1").await, LIVE);
    one.event(Subject::Identifier("C0".to_owned()), false).await;
    one.event(Subject::Identifier("C0".to_owned()), false).await;
    sql(&server, "delete from stepward.notices where version = 1").await;
    other.hear().await;
    assert_eq!((other.cache.len(), other.says("C1").await), (0, LIVE));
    other.hear().await;
    assert_eq!(other.says("C1").await, CACHED, "once");
    let late = Service::start(&server, "mdm", &management).await;
    assert_eq!(late.says("C1").await, LIVE);
    late.hear().await;
    assert_eq!(late.says("C1").await, CACHED, "who starts is not behind");
}

/// Remembers what was told so far.
async fn remember(server: &Server) {
    sql(
        server,
        "create schema before; create table before.notices as table stepward.notices; \
        create table before.count as table stepward.count_of_notices",
    )
    .await;
}

/// Takes back what was told since, as where a standby takes over that had not got it.
async fn go_back(server: &Server) {
    sql(
        server,
        "truncate stepward.notices, stepward.count_of_notices; insert into stepward.notices table before.notices; \
        insert into stepward.count_of_notices table before.count",
    )
    .await;
}

#[tokio::test]
async fn what_the_store_lost_is_told_again_and_whoever_had_heard_it_forgets_everything() {
    let management = Management::new(2);
    let (server, one, other) = Service::two(&management).await;
    let third = Service::start(&server, "mdm", &management).await;
    one.event(Subject::Identifier("C1".to_owned()), false).await;
    for service in [&one, &other, &third] {
        service.hear().await;
        assert_eq!((service.says("C0").await, service.says("C1").await), (LIVE, LIVE));
    }
    remember(&server).await;
    one.event(Subject::Identifier("C0".to_owned()), true).await;
    other.hear().await;
    // As a standby takes over that had not got the event; `one` and `third` have not looked since.
    go_back(&server).await;
    third.hear().await;
    assert_eq!(third.says("C0").await, CACHED, "nobody has told it");
    one.hear().await;
    one.tell(vec![About::All { revoking: false }]).await;
    for service in [&other, &third] {
        service.hear().await;
        assert_eq!(service.says("C0").await, LIVE);
    }
    assert_eq!(other.cache.len(), 1, "it had heard what is gone");
    one.hear().await;
    assert_eq!(one.fleet.outbox().last(), 3);
}

#[tokio::test]
async fn what_the_store_lost_after_its_sender_heard_it_back_makes_everybody_forget_everything() {
    let management = Management::new(2);
    let (server, one, other) = Service::two(&management).await;
    for service in [&one, &other] {
        service.hear().await;
        assert_eq!(service.says("C0").await, LIVE);
    }
    remember(&server).await;
    one.event(Subject::Identifier("C0".to_owned()), true).await;
    one.hear().await;
    // As a standby takes over that had not got the event, which `other` has not heard.
    go_back(&server).await;
    other.hear().await;
    assert_eq!(other.says("C0").await, CACHED, "nobody has told it yet");
    one.hear().await;
    one.tell(vec![About::Device { mark: 7, revoking: false }]).await;
    other.hear().await;
    assert_eq!(other.says("C0").await, LIVE, "whoever had heard it has told that something is lost");
}

#[tokio::test]
async fn what_cannot_be_told_holds_nobody_up_and_is_told_when_the_store_is_back() {
    let mut cluster = Cluster::start(&[]).await.unwrap();
    let (server, management) = (cluster.database().await.unwrap(), Management::new(1));
    let (one, other) = (Service::start(&server, "mdm", &management).await, Service::start(&server, "mdm", &management).await);
    assert_eq!(other.says("C0").await, LIVE);
    let one = Arc::new(one);
    let following = tokio::spawn({
        let one = Arc::clone(&one);
        async move { follow(&one.locks, &one.fleet).await }
    });
    cluster.kill().unwrap();
    let began = Instant::now();
    let bound = Duration::from_secs(1);
    let gone = || vec![About::Device { mark: 1, revoking: true }];
    // The server ends a moment after it is killed.
    while one.fleet.tell("mdm", gone(), bound).await {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    while !one.fleet.outbox().add("mdm", gone()).1 {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    let about = one.cache.apply(&[Change { device: Subject::Identifier("C0".to_owned()), revoking: false }]);
    assert!(!one.fleet.tell("mdm", about, Duration::from_secs(60)).await);
    assert!(began.elapsed() < bound, "nobody waits for a store that is away: {:?}", began.elapsed());
    cluster.revive().await.unwrap();
    assert!(one.fleet.settle(Duration::from_secs(30)).await);
    while other.locks.hear(&other.fleet, Duration::from_secs(5)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    other.hear().await;
    assert_eq!(other.says("C0").await, LIVE);
    following.abort();
    drop(other.store);
}

#[tokio::test]
async fn no_list_is_read_before_events_of_others_are_heard() {
    let management = Management::new(2);
    let server = cluster().await.database().await.unwrap();
    let fleet = Arc::new(Fleet::unheard());
    let settings = cache::Settings {
        cache: Lifetimes::default(),
        limits: Limits { per_second: 100, unknown_per_minute: 100 },
        connections: 5,
        sync: Some(Schedule::default()),
    };
    let cache = Cache::new("mdm", settings, Arc::new(Client(Arc::clone(&management))), Arc::default(), Handle::current());
    let cache = Arc::new(cache.among(fleet.common()));
    cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    let sweeping = tokio::spawn(Arc::clone(&cache).keep_swept());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(management.lists(), 0);
    fleet.keep_in(&open(&server).await).await.unwrap();
    let began = Instant::now();
    while cache.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(management.lists(), 1);
    sweeping.abort();
}

impl Service {
    /// Looks at what others tell, and tells them, until the task is dropped.
    fn follows(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let service = Arc::clone(self);
        tokio::spawn(async move { follow(&service.locks, &service.fleet).await })
    }

    async fn following(server: &Server, management: &Arc<Management>) -> Arc<Self> {
        let service = Arc::new(Self::start(server, "mdm", management).await);
        drop(service.follows());
        service
    }

    async fn lists(&self, full: bool) -> u64 {
        self.cache.sweep(full).await.unwrap().seen
    }
}

/// Fails unless this holds in the database.
async fn holds(server: &Server, condition: &str) {
    sql(server, &format!("do $$ begin if not ({condition}) then raise exception 'it does not hold'; end if; end $$")).await;
}

/// Waits until this holds.
async fn until(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_services_read_a_list_once() {
    let (server, management) = (cluster().await.database().await.unwrap(), Management::new(700));
    let mut services = Vec::new();
    for _ in 0..10 {
        services.push(Service::following(&server, &management).await);
    }
    for (round, full) in [(1, true), (2, false), (3, true)] {
        let seen = futures::future::join_all(services.iter().map(|service| service.lists(full))).await;
        assert_eq!((seen, management.lists()), (vec![700; 10], round));
    }
    for service in &services {
        assert_eq!((service.cache.len(), service.says("C7").await), (700, CACHED));
    }
    assert_eq!(management.calls.load(Ordering::SeqCst), 0);
    // What is gone from the list is gone everywhere.
    management.remove("C7");
    futures::future::join_all(services.iter().map(|service| service.lists(true))).await;
    assert_eq!(management.lists(), 4);
    for service in &services {
        assert_eq!((service.cache.len(), service.says("C7").await.0), (699, "not_found"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_during_a_list_elsewhere_and_an_answer_since_it_began_are_not_overtaken_by_it() {
    let (server, management) = (cluster().await.database().await.unwrap(), Management::new(3));
    let [one, other] = [Service::following(&server, &management).await, Service::following(&server, &management).await];
    let held = management.open.acquire_many(100).await.unwrap();
    let [listing, waiting] = [&one, &other].map(|service| {
        let service = Arc::clone(service);
        tokio::spawn(async move { service.lists(true).await })
    });
    until(|| management.lists() == 1).await;
    drop(held);
    // The list has all three by now, and both services get it.
    for task in [listing, waiting] {
        assert_eq!(task.await.unwrap(), 3);
    }
    let held = management.open.acquire_many(100).await.unwrap();
    let [listing, waiting] = [&one, &other].map(|service| {
        let service = Arc::clone(service);
        tokio::spawn(async move { service.lists(true).await })
    });
    until(|| management.lists() == 2).await;
    // It is asked for while the list is read, and so is an event heard.
    management.remove("C0");
    let about = other.cache.apply(&[Change { device: Subject::Identifier("C0".to_owned()), revoking: true }]);
    assert!(other.fleet.tell("mdm", about, Duration::from_secs(20)).await);
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(held);
    for task in [listing, waiting] {
        assert_eq!(task.await.unwrap(), 3, "the list still has it");
    }
    for service in [&one, &other] {
        assert_eq!((service.says("C0").await.0, service.says("C1").await), ("not_found", CACHED));
    }
    assert_eq!(management.lists(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_passes_on_when_its_holder_dies_and_nothing_of_its_list_is_seen() {
    let (server, management) = (cluster().await.database().await.unwrap(), Management::new(300));
    let [one, other] = [Service::following(&server, &management).await, Service::following(&server, &management).await];
    let held = management.open.acquire_many(100).await.unwrap();
    let dying = tokio::spawn(async move { one.lists(true).await });
    until(|| management.lists() == 1).await;
    let waiting = tokio::spawn({
        let other = Arc::clone(&other);
        async move { other.lists(true).await }
    });
    dying.abort();
    assert!(dying.await.is_err());
    drop(held);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((management.lists(), other.cache.len()), (1, 0), "the lease holds for a while");
    holds(&server, "(select count(*) from stepward.lists where ended is null) = 1").await;
    sql(&server, "update stepward.leases set until = now()").await;
    assert_eq!((waiting.await.unwrap(), management.lists()), (300, 2));
    holds(&server, "(select count(*) from stepward.lists) = 1 and (select count(*) from stepward.leases) = 0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_ended_badly_or_of_another_configuration_or_is_gone_is_not_used() {
    let (server, management) = (cluster().await.database().await.unwrap(), Management::new(300));
    let [one, other] = [Service::following(&server, &management).await, Service::following(&server, &management).await];
    management.fails.store(true, Ordering::SeqCst);
    assert!(one.cache.sweep(true).await.is_err());
    holds(&server, "(select count(*) from stepward.lists where ended is not null) = 0 and (select count(*) from stepward.leases) = 0")
        .await;
    management.fails.store(false, Ordering::SeqCst);
    assert_eq!((other.lists(true).await, management.lists()), (300, 2));
    // Its fields are others, so its lists are.
    one.cache.want(Wanted { fields: Fields::of(&[posture::record::Field::Groups]), kinds: vec![IdentifierKind::Serial] });
    assert_eq!((one.lists(true).await, management.lists()), (300, 3));
    let late = Service::following(&server, &management).await;
    assert_eq!((other.lists(true).await, management.lists()), (300, 4));
    // A page is gone: what is there of the list is not all.
    sql(&server, "delete from stepward.pages where number = 0").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((late.lists(true).await, late.cache.len(), management.lists()), (300, 300, 5));
}
