//! Locks and exemptions, as the operator asks for them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::Fields;
use proto::v1;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::server::UdsConnectInfo;

use super::{millis, now};
use crate::locks::{Ruling, RulingError, RulingKind};
use crate::provider::Answer;
use crate::provider::inventory::{Question, Way};
use crate::runtime::Runtime;
use crate::store::{DecisionId, StoreError};

/// Makes a lock or an exemption; returns it, and why the next start will not have it where that is so.
pub(super) async fn make(
    runtime: &Arc<Runtime>,
    kind: RulingKind,
    by: &str,
    device: &str,
    reason: &str,
    ttl_seconds: u64,
) -> Result<(v1::Ruling, String), Status> {
    let device = identifier(device)?;
    let reason = text(reason, "reason", LONGEST_REASON)?;
    let ttl = match (kind, ttl_seconds) {
        (RulingKind::Lock, 0) => None,
        (RulingKind::Exemption, 0) => return Err(Status::invalid_argument("an exemption needs an end: say how long, as in --ttl 4h")),
        (RulingKind::Lock, seconds) => Some(within(seconds, LONGEST_LOCK)?),
        (RulingKind::Exemption, seconds) => Some(within(seconds, LONGEST_EXEMPTION)?),
    };
    let ruling = Ruling::new(kind, device, reason, by, now(), ttl);
    let told = told(&ruling);
    let locks = Arc::clone(&runtime.locks);
    let kept = carried_through(async move {
        match kind {
            RulingKind::Lock => locks.lock(ruling).await,
            RulingKind::Exemption => {
                let kept = if locks.are_kept() { Ok(()) } else { Err(StoreError::None) };
                locks.exempt(ruling).await.map(|()| kept)
            }
        }
    })
    .await?;
    match kept {
        Ok(kept) => Ok((told, kept.err().map(|error| error.text()).unwrap_or_default())),
        Err(RulingError::NotKept(error)) => Err(Status::unavailable(format!("no exemption was made: {}", error.text()))),
        Err(error) => Err(Status::resource_exhausted(error.to_string())),
    }
}

/// Takes back all locks or exemptions of a device, those by its other identifiers as far as a provider knows them.
pub(super) async fn take_back(runtime: &Arc<Runtime>, kind: RulingKind, by: String, device: &str) -> Result<Vec<v1::Ruling>, Status> {
    let device = identifier(device)?;
    let identifiers = identifiers(runtime, device).await;
    let locks = Arc::clone(&runtime.locks);
    let gone = carried_through(async move { locks.take_back(kind, identifiers, &by, now()).await }).await?;
    let gone = gone.map_err(|error| Status::unavailable(format!("nothing was taken back: {}", error.text())))?;
    Ok(gone.iter().map(|ruling| told(ruling)).collect())
}

/// What holds, page by page.
pub(super) fn list(runtime: &Runtime, after_id: &str) -> Result<v1::ListLocksResponse, Status> {
    let after: Option<DecisionId> = match after_id {
        "" => None,
        id => Some(id.parse().map_err(|error| Status::invalid_argument(format!("after_id {error}")))?),
    };
    let all = runtime.locks.list(now());
    let mut rest = all.iter().filter(|ruling| after.is_none_or(|after| ruling.id > after));
    let rulings = rest.by_ref().take(PAGE).map(|ruling| told(ruling)).collect();
    Ok(v1::ListLocksResponse { rulings, more: rest.next().is_some() })
}

/// The user of the process at the other end of the socket.
pub(super) fn asker<T>(request: &tonic::Request<T>) -> String {
    let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    credentials.map_or_else(|| "unknown".to_owned(), |credentials| format!("uid {}", credentials.uid()))
}

/// A task of its own: whoever asked may go away in the middle, and memory and store must agree all the same.
async fn carried_through<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|error| Status::internal(error.to_string()))
}

/// The identifier, and every other one that a provider's record of the device has. Whoever cannot say in time is left out.
async fn identifiers(runtime: &Runtime, device: &str) -> BTreeSet<String> {
    let mut identifiers = BTreeSet::from([device.to_owned()]);
    let deadline = Instant::now() + LOOKUP;
    let snapshot = runtime.snapshot().clone();
    let questions = [IdentifierKind::Serial, IdentifierKind::Udid].into_iter().filter_map(|kind| {
        let device = DeviceId::new(kind, device).ok()?;
        Some(Question { device, need: Fields::NONE, hint: None, deadline, way: Way::Query })
    });
    let questions: Vec<_> = questions.collect();
    let asked = snapshot.providers.values().flat_map(|provider| questions.iter().map(|question| provider.lookup(question, None)));
    let answers = join_all(asked.map(|asked| tokio::time::timeout_at(deadline, asked))).await;
    for answer in answers.into_iter().flatten() {
        if let Answer::Found(record) = answer.answer {
            identifiers.extend(record.identifiers());
        }
    }
    identifiers
}

fn told(ruling: &Ruling) -> v1::Ruling {
    let kind = match ruling.kind {
        RulingKind::Lock => v1::RulingKind::Lock,
        RulingKind::Exemption => v1::RulingKind::Exemption,
    };
    v1::Ruling {
        id: ruling.id.to_string(),
        kind: kind.into(),
        device: ruling.device.clone(),
        reason: ruling.reason.clone(),
        made_by: ruling.made_by.clone(),
        made_at: millis(ruling.made_at),
        until: ruling.until.map(millis).unwrap_or_default(),
    }
}

fn within(seconds: u64, longest: Duration) -> Result<Duration, Status> {
    let ttl = Duration::from_secs(seconds);
    if ttl > longest {
        return Err(Status::invalid_argument(format!("it can hold for {} at most", humantime::format_duration(longest))));
    }
    Ok(ttl)
}

/// An identifier of any kind.
pub(super) fn identifier(device: &str) -> Result<&str, Status> {
    text(device, "identifier of the device", LONGEST_IDENTIFIER)
}

fn text<'t>(text: &'t str, what: &str, longest: usize) -> Result<&'t str, Status> {
    let text = text.trim_ascii();
    if text.is_empty() || text.len() > longest || text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!("the {what} has to have 1 to {longest} bytes, and no control characters")));
    }
    Ok(text)
}

/// Bytes.
const LONGEST_IDENTIFIER: usize = 254;
const LONGEST_REASON: usize = 500;

/// A longer one is meant to hold until it is taken back.
const LONGEST_LOCK: Duration = Duration::from_secs(3650 * 86_400);

/// Break-glass is for an emergency, not a state.
const LONGEST_EXEMPTION: Duration = Duration::from_secs(30 * 86_400);

/// How long providers may take to say what other identifiers a device has.
const LOOKUP: Duration = Duration::from_secs(2);

/// Rulings in one answer: with the longest texts well below what a client takes, 4 MiB.
const PAGE: usize = 2000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use posture::record::{Fact, Record};

    use super::*;
    use crate::config::Environment;
    use crate::locks::Standing;
    use crate::provider::Provider;
    use crate::provider::fake::Fake;
    use crate::runtime::Configured;

    const SERIAL: &str = "C02XL0GYJGH5";
    const UDID: &str = "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C";

    /// With a provider that knows one device by serial and UDID, and never answers for `HANGS`.
    fn runtime(folder: &std::path::Path) -> Arc<Runtime> {
        crate::cli::init::run(&crate::cli::init::InitArgs::new(folder.join("demo")), &Environment::new(folder), &mut Vec::new()).unwrap();
        let source = Configured::new(Some("stepward.toml".into()), Environment::new(folder.join("demo")));
        let fake = Fake::new(|device| async move {
            match (device.kind(), device.normal()) {
                (IdentifierKind::Serial, SERIAL) | (IdentifierKind::Udid, UDID) => {
                    let [serial, udid] = [SERIAL, UDID].map(|text| Fact::Value(text.to_owned()));
                    Answer::Found(Arc::new(Record { serial, udid, ..Record::default() }))
                }
                (_, "HANGS") => std::future::pending().await,
                _ => Answer::NotFound,
            }
        });
        let providers = BTreeMap::from([(Arc::from("fake"), Arc::new(Provider::Fake(fake)))]);
        Arc::new(Runtime::start_with(Box::new(source), Arc::default(), &providers).unwrap())
    }

    #[tokio::test]
    async fn a_device_is_unlocked_by_any_identifier_of_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        for (locked, unlocked) in [(SERIAL, UDID), (UDID, SERIAL), (&UDID.replace('-', ""), SERIAL)] {
            make(&runtime, RulingKind::Lock, "uid 0", locked, "a reason", 0).await.unwrap();
            make(&runtime, RulingKind::Lock, "uid 0", "OTHER", "a reason", 0).await.unwrap();
            let gone = take_back(&runtime, RulingKind::Lock, "uid 0".to_owned(), unlocked).await.unwrap();
            assert_eq!(gone.iter().map(|ruling| ruling.device.as_str()).collect::<Vec<_>>(), [locked]);
            assert_eq!(runtime.locks.standing([SERIAL, UDID], now()), Standing::Ordinary);
            assert!(runtime.locks.of(["OTHER"], now()).is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_hangs_holds_an_unlock_up_for_two_seconds_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        make(&runtime, RulingKind::Lock, "uid 0", "HANGS", "a reason", 0).await.unwrap();
        let started = Instant::now();
        assert_eq!(take_back(&runtime, RulingKind::Lock, "uid 0".to_owned(), "hangs").await.unwrap().len(), 1);
        assert_eq!(started.elapsed().as_secs(), 2);
    }

    #[tokio::test]
    async fn a_list_goes_on_where_it_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        for number in 0..PAGE + 1 {
            make(&runtime, RulingKind::Lock, "uid 0", &format!("D{number}"), "a reason", 0).await.unwrap();
        }
        let first = list(&runtime, "").unwrap();
        let second = list(&runtime, &first.rulings.last().unwrap().id).unwrap();
        assert_eq!((first.rulings.len(), first.more, second.rulings.len(), second.more), (PAGE, true, 1, false));
        assert!(list(&runtime, "nonsense").is_err());
    }
}
