use std::sync::atomic::AtomicU64;

use super::*;
use crate::fixture::{Backend, Stand, cluster};
use crate::postgres::scripted::Cluster;
use crate::settings::Settings;
use crate::store::Store;

/// Two services on one database.
async fn two() -> (Stand, Store, Store) {
    let stand = Backend::Postgres.stand().await;
    let (one, other) = (stand.open().await, stand.open().await);
    (stand, one, other)
}

/// The claim of a caller for a body.
fn claim_of(body: u8) -> Claim {
    Claim { body: [body; 32], webhook: [1; 16], sender: [2; 32], mode: 0, keep: Duration::from_secs(60) }
}

/// Claims until the answer is this one, which it has to be soon.
async fn soon(store: &Store, claim: Claim, wanted: &Claimed) {
    let began = Instant::now();
    loop {
        let claimed = store.claim(claim).await;
        if claimed.as_ref().is_ok_and(|claimed| claimed == wanted) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{claimed:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_webhooks_is_granted_to_one_of_two_services_and_the_other_hears_what_came_of_it() {
    let (_stand, one, other) = two().await;
    let of_each = |body| futures::future::join(one.claim(claim_of(body)), other.claim(claim_of(body)));
    let mut granted = [0, 0];
    for (body, claimed) in (0..200).zip(futures::future::join_all((0..200).map(of_each)).await) {
        let (by, decides) = match (claimed.0.unwrap(), claimed.1.unwrap()) {
            (Claimed::Granted, Claimed::Running) => (0, &one),
            (Claimed::Running, Claimed::Granted) => (1, &other),
            claimed => panic!("{claimed:?}"),
        };
        granted[by] += 1;
        decides.denied([body; 32], "no \0 entry".to_owned());
    }
    for body in 0..200 {
        for service in [&one, &other] {
            soon(service, claim_of(body), &Claimed::Denied("no \0 entry".to_owned())).await;
        }
    }
    assert_eq!(granted[0] + granted[1], 200);
}

#[tokio::test]
async fn the_same_bytes_of_another_sender_or_to_another_webhook_are_refused_at_every_service_and_after_the_next_start() {
    let (stand, one, other) = two().await;
    let claim = claim_of(1);
    assert_eq!(one.claim(claim).await.unwrap(), Claimed::Granted);
    one.undecided(claim.body);
    let others = [Claim { sender: [3; 32], ..claim }, Claim { webhook: [3; 16], ..claim }];
    for other_claim in others {
        soon(&other, other_claim, &Claimed::Another).await;
    }
    for store in [one, other] {
        store.close().await;
    }
    let again = stand.open().await;
    for other_claim in others {
        assert_eq!(again.claim(other_claim).await.unwrap(), Claimed::Another);
    }
    assert_eq!(again.claim(claim).await.unwrap(), Claimed::Granted);
}

#[tokio::test]
async fn what_has_to_be_decided_anew_is_granted_to_one() {
    let (_stand, one, other) = two().await;
    let claim = claim_of(1);
    assert_eq!(one.claim(claim).await.unwrap(), Claimed::Granted);
    assert_eq!(other.claim(claim).await.unwrap(), Claimed::Running);
    one.undecided(claim.body);
    soon(&other, claim, &Claimed::Granted).await;
    assert_eq!(one.claim(claim).await.unwrap(), Claimed::Running);
    // What the one says late of what is the other's by now counts for nothing.
    one.denied(claim.body, "late".to_owned());
    assert_eq!(one.claim(claim_of(2)).await.unwrap(), Claimed::Granted, "that is written before this");
    assert_eq!(one.claim(claim).await.unwrap(), Claimed::Running);
    other.denied(claim.body, "denied".to_owned());
    soon(&one, claim, &Claimed::Denied("denied".to_owned())).await;
    // The outcome was made for another mode.
    assert_eq!(one.claim(Claim { mode: 1, ..claim }).await.unwrap(), Claimed::Granted);
}

#[tokio::test]
async fn what_a_service_decides_that_is_gone_is_granted_to_another() {
    let (_stand, one, other) = two().await;
    let claim = claim_of(1);
    assert_eq!(one.claim(claim).await.unwrap(), Claimed::Granted);
    assert_eq!(other.claim(claim).await.unwrap(), Claimed::Running);
    assert_eq!(other.claim(Claim { sender: [3; 32], ..claim }).await.unwrap(), Claimed::Another);
    // As a process ends that is killed: without a word.
    drop(one);
    soon(&other, claim, &Claimed::Granted).await;
    assert_eq!(other.claim(Claim { sender: [3; 32], ..claim }).await.unwrap(), Claimed::Another);
}

#[tokio::test]
async fn who_sent_what_while_the_server_was_away_is_told_once_it_is_back() {
    let mut own = Cluster::start(&[]).await.unwrap();
    let settings = || Settings { server: Some(own.named("postgres").unwrap()), bind_keys: true, ..Settings::none() };
    let open = async |settings: Settings| Store::open(&settings, Arc::<AtomicU64>::default()).await.unwrap();
    let (one, other) = (open(settings()).await, open(settings()).await);
    assert_eq!(one.claim(claim_of(1)).await.unwrap(), Claimed::Granted);
    own.kill().unwrap();
    let began = Instant::now();
    while one.claim(claim_of(2)).await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "the server is killed");
    }
    let asked = Instant::now();
    for number in 3..10 {
        assert!(one.claim(claim_of(number)).await.is_err());
    }
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}: a webhook waits a second at most", asked.elapsed());
    own.revive().await.unwrap();
    // Before this is granted all that was decided meanwhile is told.
    soon(&one, claim_of(10), &Claimed::Granted).await;
    for number in 3..10 {
        soon(&other, Claim { sender: [3; 32], ..claim_of(number) }, &Claimed::Another).await;
    }
    soon(&other, claim_of(5), &Claimed::Granted).await;
}

#[tokio::test]
async fn what_nobody_can_send_any_more_is_free_and_is_deleted() {
    let stand = Backend::Postgres.stand().await;
    let store = stand.open().await;
    let short = Claim { keep: Duration::from_millis(50), ..claim_of(1) };
    assert_eq!(store.claim(short).await.unwrap(), Claimed::Granted);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(store.claim(Claim { sender: [3; 32], ..short }).await.unwrap(), Claimed::Granted);
    let server = stand.settings.server.clone().unwrap();
    let mut connection = cluster().await.connect(server.to_string().rsplit_once('/').unwrap().1).await.unwrap();
    let began = Instant::now();
    loop {
        let left: i64 = sqlx::query_scalar("select count(*) from stepward.webhooks").fetch_one(&mut connection).await.unwrap();
        if left == 0 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{left} are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_service_that_shares_nothing_decides_everything() {
    let store = Backend::Sqlite.stand().await.open().await;
    for _ in 0..2 {
        assert_eq!(store.claim(claim_of(1)).await.unwrap(), Claimed::Granted);
    }
    assert!(!store.is_shared() && !Store::none().is_shared());
    assert_eq!(Store::none().claim(claim_of(1)).await.unwrap(), Claimed::Granted);
}
