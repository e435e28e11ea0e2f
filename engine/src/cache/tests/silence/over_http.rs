//! The rule of silence over the real HTTP client: its places, its logins, and lookups of several requests.

use inventory::token::{Grant, Login, Tokens};
use posture::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// How a service over HTTP treats a path, with `#cookie` behind it where a cookie came: milliseconds until its answer, and the
/// status.
pub(super) type Treats = Arc<dyn Fn(&str) -> (u64, u16) + Send + Sync>;

/// Serves so, and gives the address.
pub(super) async fn serve(treats: Treats) -> url::Url {
    counted(treats, Arc::default(), Arc::default()).await
}

fn client(base_url: url::Url, connections: usize) -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::new(&Endpoint { base_url, ca_file: None, connections }).unwrap()
}

fn cache_of(inventory: Arc<dyn Inventory>, connections: usize, per_second: u32, positive: u64) -> Arc<Cache> {
    let cache = Lifetimes { positive: Duration::from_millis(positive), ..Lifetimes::default() };
    let limits = Limits { per_second, unknown_per_minute: 6000 };
    let settings = Settings { cache, limits, connections, sync: Some(Schedule::default()) };
    let cache = Arc::new(Cache::new("mdm", settings, inventory, Arc::default(), Handle::current()));
    cache.want(Wanted { fields: Fields::NONE, kinds: vec![IdentifierKind::Serial] });
    cache
}

/// Puts a record there, as if the device had been found just now.
fn knows(cache: &Arc<Cache>, name: &str) {
    let answer = Answer::Found(Arc::new(record(name)));
    let key = Key::of(&question(name, Fields::NONE).device);
    let open = cache.knowledge.ask();
    let learned = Learned { at: cache.knowledge.now(), moment: open.moment(), asked: Fields::NONE, hint: None };
    cache.knowledge.learn(&key, &answer, None, learned, 0);
}

/// A service that is silent for all, whose lookups take several requests at once.
#[tokio::test]
async fn b5_where_nobody_is_answered_every_known_device_has_its_old_record_over_http() {
    let mut wrong = Vec::new();
    // Of fifteen devices each is asked for again while its call waits for a place.
    for (connections, at_once, devices) in [(5, 1, 60), (5, 2, 15), (3, 4, 60), (5, 4, 15)] {
        let base = serve(Arc::new(|_| (3_600_000, 200))).await;
        let web: Arc<dyn Inventory> = Arc::new(Web { client: client(base, connections), at_once, rounds: 1 });
        let cache = cache_of(web, connections, 1000, 500);
        for number in 0..devices {
            knows(&cache, &format!("D{number}X"));
        }
        millis_later(600).await;
        let began = Instant::now();
        let mut waits = Vec::new();
        for number in 0..60 {
            waits.push((began.elapsed().as_millis(), webhook(&cache, &format!("D{}X", number % devices))));
            millis_later(100).await;
        }
        let mut said = Vec::new();
        for (came, wait) in waits {
            let what = short(&wait.await.unwrap());
            if !what.starts_with("found") {
                said.push((came, what));
            }
        }
        wrong.push(said.len());
    }
    assert!(wrong.iter().all(|refused| *refused == 0), "{wrong:?}");
}

/// A service whose lookups need a token that a login gives.
#[derive(Debug)]
struct WithLogin {
    client: Client,
    tokens: Tokens<AtTheService>,
}

#[derive(Debug)]
struct AtTheService {
    client: Client,
    lifetime: Duration,
}

#[async_trait]
impl Login for AtTheService {
    async fn login(&self, deadline: Instant) -> Result<Grant, Unavailable> {
        self.client.send(self.client.post(self.client.url("/login", &[])), deadline, LOOKUP).await?.ok()?;
        Ok(Grant { token: Secret::new(b"token".to_vec()), lifetime: Some(self.lifetime) })
    }
}

#[async_trait]
impl Inventory for WithLogin {
    fn fields(&self) -> Fields {
        Fields::NONE
    }
    fn asks(&self, kind: IdentifierKind) -> bool {
        kind == IdentifierKind::Serial
    }
    async fn lookup(&self, question: &Question) -> Answer {
        let name = question.device.normal().to_owned();
        let request = |_: &inventory::token::Token| self.client.get(self.client.url(&format!("/d/{name}"), &[]));
        match self.tokens.send(&self.client, question.deadline, LOOKUP, request).await {
            Err(why) => Answer::Unavailable(why),
            Ok(reply) if reply.status.as_u16() == 404 => Answer::NotFound,
            Ok(_) => Answer::Found(Arc::new(record(&name))),
        }
    }
    fn listing(&self) -> Listing {
        Listing::Whole
    }
    async fn list(&self, _: Option<UnixTime>, _: Fields, _: mpsc::Sender<Vec<Record>>) -> Result<End, Unavailable> {
        Ok(End { complete: true })
    }
    async fn probe(&self, _: Instant) -> Vec<Finding> {
        Vec::new()
    }
}

/// Whoever waits for the login of another is not answered when that login is.
#[tokio::test]
async fn a12_who_waits_for_the_login_of_another_is_not_let_in_while_each_request_is_answered_within_a_second() {
    let mut seen = Vec::new();
    for (login, lookup) in [(900, 800), (1000, 700), (600, 600)] {
        let treats: Treats = Arc::new(move |path| match path {
            "/login" => (login, 200),
            path => (lookup, if path.starts_with("/d/GONE") || path.starts_with("/d/STRANGER") { 404 } else { 200 }),
        });
        let client = client(serve(treats).await, 5);
        let tokens = Tokens::new(AtTheService { client: client.apart(), lifetime: Duration::from_secs(60) });
        let cache = cache_of(Arc::new(WithLogin { client, tokens }), 5, 1000, 500);
        ["GONE", "GOOD0", "GOOD1", "GOOD2"].iter().for_each(|name| knows(&cache, name));
        millis_later(600).await;
        let _stranger = webhook(&cache, "STRANGER");
        millis_later(10).await;
        seen.push((login, lookup, short(&webhook(&cache, "GONE").await.unwrap())));
    }
    assert!(seen.iter().all(|(.., said)| !said.starts_with("found")), "{seen:?}");
}

/// Serves as [`serve`] does; counts the requests that are open at once, and notes the most.
async fn counted(treats: Treats, open: Arc<AtomicUsize>, most: Arc<AtomicUsize>) -> url::Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let (treats, open, most) = (Arc::clone(&treats), Arc::clone(&open), Arc::clone(&most));
            tokio::spawn(async move {
                loop {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") {
                        if connection.read_exact(&mut byte).await.is_err() {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let path = head.split(' ').nth(1).unwrap();
                    let cookie = if head.to_lowercase().contains("\r\ncookie:") { "#cookie" } else { "" };
                    let (takes, status) = treats(&format!("{path}{cookie}"));
                    most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let gone = tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(takes)) => false,
                        _ = connection.read_exact(&mut byte) => true,
                    };
                    open.fetch_sub(1, Ordering::SeqCst);
                    let sets = if path.starts_with("/d/COOKIE") { "set-cookie: node=1; Path=/\r\n" } else { "" };
                    let said = format!("HTTP/1.1 {status} X\r\n{sets}content-length: 0\r\n\r\n");
                    if gone || connection.write_all(said.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    base
}

/// Random histories over HTTP: callers that go away, several requests at once and one after the other, lists. Every known
/// device is answered within 1.2 s for each request. No removed one is let in; no count drifts; the connections are bounded.
#[tokio::test]
async fn a12_in_random_histories_over_http_nobody_is_let_in() {
    let runs = (0..24_u64).map(|seed| async move {
        let mut rolls = Rolls::new(seed);
        let connections = usize::try_from(rolls.of(&[1, 2, 3, 5])).unwrap();
        let (at_once, rounds) = (usize::try_from(rolls.of(&[1, 1, 2, 4])).unwrap(), usize::try_from(rolls.of(&[1, 1, 2])).unwrap());
        let takes = rolls.of(&[20, 300, 800]);
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let treats: Treats = Arc::new(move |path| {
            if path.starts_with("/d/GONE") {
                (takes, 404)
            } else if path.starts_with("/d/D") {
                (takes, 200)
            } else if path == "/list" {
                (4000, 200)
            } else {
                (5000, 404)
            }
        });
        let base = counted(treats, Arc::clone(&open), Arc::clone(&most)).await;
        let web: Arc<dyn Inventory> = Arc::new(Web { client: client(base, connections), at_once, rounds });
        let cache = cache_of(web, connections, 50, 300);
        let known: Vec<_> = (0..12).map(|number| format!("D{number}X")).chain((0..6).map(|number| format!("GONE{number}"))).collect();
        known.iter().for_each(|name| knows(&cache, name));
        millis_later(400).await;
        let (mut wrong, mut kinds) = (Vec::new(), BTreeMap::<String, usize>::new());
        let began = Instant::now();
        let mut asked = Vec::new();
        let mut number = 0;
        while began.elapsed() < Duration::from_secs(15) {
            number += 1;
            let way = rolls.of(&[Way::Webhook, Way::Webhook, Way::Authorization, Way::Query]);
            if rolls.below(3) == 0 {
                let ask = asks(&cache, &format!("STRANGER{number}"), way);
                if rolls.below(3) == 0 {
                    ask.abort();
                }
            } else {
                let name = known[usize::try_from(rolls.below(known.len() as u64)).unwrap()].clone();
                let ask = asks(&cache, &name, way);
                if rolls.below(4) == 0 {
                    ask.abort();
                } else {
                    asked.push((name, began.elapsed().as_millis(), ask));
                }
            }
            if rolls.below(30) == 0 {
                let cache = Arc::clone(&cache);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(Duration::from_secs(6), cache.inventory().list(None, Fields::NONE, mpsc::channel(1).0)).await;
                });
            }
            millis_later(rolls.below(300)).await;
        }
        for (name, came, ask) in asked {
            let said = short(&ask.await.unwrap());
            if said == "found Stale" {
                wrong.push((name, came));
            }
            *kinds.entry(said).or_default() += 1;
        }
        millis_later(10_000).await;
        let what = format!(
            "seed {seed}: {connections} connections, {at_once} at once, {rounds} rounds of {takes} ms: {kinds:?}; most {} open; left {}; wrong {wrong:?}",
            most.load(Ordering::SeqCst),
            cache.turns.left()
        );
        (what, wrong.len(), most.load(Ordering::SeqCst) > connections + 2 + usize::from(connections == 1))
    });
    let seen = futures::future::join_all(runs).await;
    for (what, wrong, more) in seen {
        assert!(wrong == 0 && !more && what.contains("left [0, 0, 0, 0, 0, 0] [0, 0] 0 0 0"), "{what}");
    }
}

/// A token that is good still is renewed by one caller, who waits for a login that is slow.
#[tokio::test]
async fn a12_a_slow_login_lets_nobody_in_while_the_token_is_good() {
    let treats: Treats = Arc::new(move |path| match path {
        "/login" => (1700, 200),
        path => (20, if path.starts_with("/d/GONE") || path.starts_with("/d/STRANGER") { 404 } else { 200 }),
    });
    let client = client(serve(treats).await, 5);
    let tokens = Tokens::new(AtTheService { client: client.apart(), lifetime: Duration::from_secs(5) });
    let cache = cache_of(Arc::new(WithLogin { client, tokens }), 5, 1000, 500);
    ["GONE", "GOOD0", "GOOD1", "GOOD2"].iter().for_each(|name| knows(&cache, name));
    millis_later(600).await;
    // The first login; the token is good for 5 s from its begin, and renewed from 4 s on.
    webhook(&cache, "STRANGER").await.unwrap();
    webhook(&cache, "GOOD0").await.unwrap();
    millis_later(2400).await;
    let gone = webhook(&cache, "GONE");
    millis_later(10).await;
    assert_eq!(short(&webhook(&cache, "GOOD1").await.unwrap()), "found Live");
    let gone = short(&gone.await.unwrap());
    assert_eq!(gone, "not_found Live");
}

/// An answer that may be about cookies is an answer.
#[tokio::test]
async fn a12_the_first_of_two_answers_counts() {
    let treats: Treats = Arc::new(move |path| match path {
        path if path.starts_with("/d/GONE") => (900, if path.ends_with("#cookie") { 400 } else { 404 }),
        path if path.starts_with("/d/STRANGER") => (20, 404),
        _ => (20, 200),
    });
    let web: Arc<dyn Inventory> = Arc::new(Web { client: client(serve(treats).await, 5), at_once: 1, rounds: 1 });
    let cache = cache_of(web, 5, 1000, 500);
    ["GONE", "GOOD0", "GOOD1", "GOOD2"].iter().for_each(|name| knows(&cache, name));
    webhook(&cache, "COOKIE").await.unwrap();
    millis_later(600).await;
    let said = short(&webhook(&cache, "GONE").await.unwrap());
    assert_eq!(said, "not_found Live");
}

#[tokio::test]
async fn a12_who_had_a_turn_and_waits_for_a_place_can_be_a_witness() {
    let mut seen = Vec::new();
    for (at_once, strangers, held, good) in [(2, 8, 3, 8), (4, 4, 2, 13)].repeat(2) {
        let treats: Treats = Arc::new(|path| {
            let slow = ["/d/SLOW", "/d/STRANGER"].iter().any(|name| path.starts_with(name));
            (if slow { 6000 } else { 20 }, if path.starts_with("/d/GONE") || path.starts_with("/d/STRANGER") { 404 } else { 200 })
        });
        let web: Arc<dyn Inventory> = Arc::new(Web { client: client(serve(treats).await, 20), at_once, rounds: 1 });
        let cache = cache_of(web, 20, 1000, 500);
        knows(&cache, "GONE");
        (0..good).for_each(|number| knows(&cache, &format!("GOOD{number}")));
        (0..held + 2).for_each(|number| knows(&cache, &format!("SLOW{number}")));
        millis_later(600).await;
        let _strangers: Vec<_> = (0..strangers).map(|number| webhook(&cache, &format!("STRANGER{number}"))).collect();
        millis_later(30).await;
        let _slow: Vec<_> = (0..held).map(|number| webhook(&cache, &format!("SLOW{number}"))).collect();
        millis_later(30).await;
        let _good: Vec<_> = (0..good).map(|number| webhook(&cache, &format!("GOOD{number}"))).collect();
        seen.push(short(&webhook(&cache, "GONE").await.unwrap()));
    }
    // Chance chooses the two slow ones that are free once in fifty times.
    assert!(seen.iter().filter(|said| said.starts_with("found")).count() <= 2, "{seen:?}");
}

#[tokio::test]
async fn a12_an_identifier_that_is_refused_costs_nobody_else_the_token() {
    let treats: Treats = Arc::new(|path| match path {
        "/login" => (1700, 200),
        path if path.starts_with("/d/ODD") => (20, 401),
        path => (20, if path.starts_with("/d/GONE") { 404 } else { 200 }),
    });
    let client = client(serve(treats).await, 5);
    let tokens = Tokens::new(AtTheService { client: client.apart(), lifetime: Duration::from_secs(600) });
    let cache = cache_of(Arc::new(WithLogin { client, tokens }), 5, 1000, 500);
    ["GONE", "GOOD0", "GOOD1", "GOOD2"].iter().for_each(|name| knows(&cache, name));
    millis_later(600).await;
    webhook(&cache, "GOOD0").await.unwrap();
    webhook(&cache, "ODD").await.unwrap();
    assert_eq!(short(&webhook(&cache, "GONE").await.unwrap()), "not_found Live");
}
