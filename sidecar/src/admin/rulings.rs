//! Locks and exemptions, as the operator asks for them.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use inventory::{Answer, Question, Way};
use posture::identity::{DeviceId, IdentifierKind, UnknownWord};
use posture::record::Fields;
use posture::time::UnixTime;
use proto::v1;
use store::{DecisionId, Ruling, RulingKind};
use tonic::Status;
use tonic::transport::server::UdsConnectInfo;

use crate::runtime::Runtime;
use engine::cache::Terms;
use engine::locks::{RulingError, Which};
use posture::shown;

/// A lock or an exemption as a request asks for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'r> {
    /// Identifier of the device.
    pub(super) device: &'r str,
    /// Kind of the identifier; empty where the request says none.
    pub(super) identifier_kind: &'r str,
    /// Reason of the ruling.
    pub(super) reason: &'r str,
    /// Seconds that the ruling holds; 0: without an end.
    pub(super) ttl_seconds: u64,
}

/// Makes a lock or an exemption. Returns it, and the reason why the next start will not have it; empty where it will.
pub(super) async fn make(
    runtime: &Arc<Runtime>,
    kind: RulingKind,
    by: &str,
    Wanted { device, identifier_kind, reason, ttl_seconds }: Wanted<'_>,
) -> Result<(v1::Ruling, String), Status> {
    if kind == RulingKind::Exemption && shown::clean(device) != device.trim_ascii() {
        let message = "the identifier has a character at its end that cannot be seen, so that it may be another device's: write it without";
        return Err(Status::invalid_argument(format!("`{}`: {message}", shown::cell(device))));
    }
    let device = identifier(device)?;
    let identifier_kind = stated_kind(kind, identifier_kind)?;
    if let Some(identifier_kind) = identifier_kind
        && DeviceId::new(identifier_kind, device).is_err()
    {
        let kind = identifier_kind.as_str();
        return Err(Status::invalid_argument(format!("`{device}` is longer than an identifier of kind {kind} can be")));
    }
    // Taking back has no such check: a ruling may be older than the placeholder.
    if runtime.snapshot().placeholders.has(identifier_kind, device) {
        let what = kind.as_str();
        return Err(Status::invalid_argument(format!(
            "`{device}` is what devices say that have no identifier, and means none of them: name the {what} by another one, \
             or change `placeholders` in the configuration"
        )));
    }
    let reason = text(reason, "reason", LONGEST_REASON)?;
    let ttl = match (kind, ttl_seconds) {
        (RulingKind::Lock, 0) => None,
        (RulingKind::Exemption, 0) => return Err(Status::invalid_argument("an exemption needs an end: say how long, as in --ttl 4h")),
        (RulingKind::Lock, seconds) => Some(within(seconds, LONGEST_LOCK)?),
        (RulingKind::Exemption, seconds) => Some(within(seconds, LONGEST_EXEMPTION)?),
    };
    let ruling = runtime.engine.locks.anchored(Ruling::new(kind, identifier_kind, device, reason, by, clock::now(), ttl));
    let mut told = told(runtime, &ruling);
    let locks = Arc::clone(&runtime.engine.locks);
    let kept = carried_through(async move {
        match kind {
            RulingKind::Lock => locks.lock(ruling).await.map(|kept| kept.err().map(|error| error.text())),
            RulingKind::Exemption => {
                let id = ruling.id;
                locks.exempt(ruling).await.map(|()| locks.why_not_kept(id))
            }
        }
    })
    .await?;
    match kept {
        Ok(not_kept) => {
            told.not_kept = not_kept.is_some();
            Ok((told, not_kept.unwrap_or_default()))
        }
        Err(RulingError::NotKept(error)) => Err(Status::unavailable(format!("no exemption was made: {}", error.text()))),
        Err(error) => Err(Status::resource_exhausted(error.to_string())),
    }
}

/// Returns a warning where no provider knows the device of a ruling; empty where one does, or there is none to ask.
///
/// The ruling holds already. The operator waits a moment for the providers: a typing mistake is found now or never.
pub(super) async fn not_known(runtime: &Runtime, ruling: &v1::Ruling) -> String {
    let snapshot = Arc::clone(&*runtime.snapshot());
    let kinds: Vec<IdentifierKind> = match ruling.identifier_kind.parse() {
        Ok(kind) => vec![kind],
        Err(_) => IdentifierKind::ALL.to_vec(),
    };
    let devices: Vec<DeviceId> = kinds.into_iter().filter_map(|kind| DeviceId::new(kind, &ruling.device).ok()).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let by = devices.iter().filter(|device| snapshot.providers.values().any(|provider| provider.is_asked_by(device.kind())));
    let by: Vec<&str> = by.map(|device| device.kind().as_str()).collect();
    let asked = snapshot.providers.iter().map(|(name, provider)| {
        let devices = devices.iter().filter(move |device| provider.is_asked_by(device.kind()));
        let looks = devices.map(move |device| async move {
            let question = Question { device: device.clone(), need: Fields::NONE, hint: None, deadline, way: Way::Query };
            provider.lookup(&question, Terms::default()).await.answer
        });
        async move { (name, join_all(looks).await) }
    });
    let asked = join_all(asked).await;
    let any = |answers: &[Answer], is: fn(&Answer) -> bool| answers.iter().any(is);
    if asked.is_empty() || asked.iter().any(|(_, answers)| any(answers, |answer| matches!(answer, Answer::Found(_) | Answer::Ambiguous))) {
        return String::new();
    }
    let away = asked.iter().filter(|(_, answers)| any(answers, |answer| matches!(answer, Answer::Unavailable(_))));
    let away: Vec<&str> = away.map(|(name, _)| &***name).collect();
    let (device, by) = (&ruling.device, by.join(", "));
    if away.is_empty() {
        let names: Vec<&str> = asked.iter().map(|(name, _)| &***name).collect();
        let denied = match ruling.kind() {
            v1::RulingKind::Exemption => {
                "; until one does it stays denied, since an exemption waives policies and outages and no missing device"
            }
            _ => "",
        };
        return format!("no provider knows a device `{device}` by {by} (asked: {}): is it spelled right?{denied}", names.join(", "));
    }
    format!("no provider that could say knows a device `{device}` by {by}, and {} could not say: is it spelled right?", away.join(", "))
}

/// Waits until the other services on the store have heard what was ruled; returns a warning where some may not have, empty where
/// all that answer have. `is_written`: whether the store has taken it, without which nobody can hear of it.
pub(super) async fn not_heard(runtime: &Runtime, is_written: bool) -> String {
    let locks = &runtime.engine.locks;
    if !is_written && locks.without_news().is_some() {
        return "other services do not know of it yet, since the store has not taken it".to_owned();
    }
    match locks.unheard().await {
        Ok(names) if names.is_empty() => String::new(),
        Ok(names) => {
            format!(
                "these services have not confirmed that they heard of it: {}",
                names.iter().map(|name| shown::cell(name)).collect::<Vec<_>>().join(", ")
            )
        }
        Err(error) => format!("whether other services have heard of it is not known: {}", error.text()),
    }
}

/// Longest time for providers to say whether they know the device of a ruling.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Takes back locks or exemptions by the identifier that they were made by, or one by its id. Returns those, or in the second list
/// similar ones where nothing was taken back. No record is looked up: what a device says of itself takes nothing back.
pub(super) async fn take_back(
    runtime: &Arc<Runtime>,
    kind: RulingKind,
    by: String,
    (device, identifier_kind, id): (&str, &str, &str),
) -> Result<(Vec<v1::Ruling>, Vec<v1::Ruling>), Status> {
    let which = match (device.trim_ascii(), id) {
        ("", id) if !id.is_empty() => {
            Which::Id(kind, id.parse().map_err(|error| Status::invalid_argument(format!("the id of a ruling {error}")))?)
        }
        (device, "") => Which::MadeBy(kind, stated_kind(kind, identifier_kind)?, identifier(device)?.to_owned()),
        _ => return Err(Status::invalid_argument("say the identifier or the id, one of the two")),
    };
    let locks = Arc::clone(&runtime.engine.locks);
    let named = which.clone();
    let gone = carried_through(async move { locks.take_back(&named, &by, clock::now()).await }).await?;
    let gone = gone.map_err(|error| Status::unavailable(format!("nothing was taken back: {}", error.text())))?;
    let others = if gone.is_empty() { runtime.engine.locks.like(&which, clock::now(), SHOWN) } else { Vec::new() };
    let told = |rulings: &[Arc<Ruling>]| rulings.iter().map(|ruling| told(runtime, ruling)).collect();
    Ok((told(&gone), told(&others)))
}

/// Lists the rulings that hold, page by page.
pub(super) fn list(runtime: &Runtime, after_id: &str) -> Result<v1::ListLocksResponse, Status> {
    let after: Option<DecisionId> = match after_id {
        "" => None,
        id => Some(id.parse().map_err(|error| Status::invalid_argument(format!("after_id {error}")))?),
    };
    let all = runtime.engine.locks.list(clock::now());
    let mut rest = all.iter().filter(|ruling| after.is_none_or(|after| ruling.id > after));
    let rulings = rest.by_ref().take(PAGE).map(|ruling| told(runtime, ruling)).collect();
    Ok(v1::ListLocksResponse { rulings, more: rest.next().is_some() })
}

/// Returns the user of the process at the other end of the socket.
pub(super) fn asker<T>(request: &tonic::Request<T>) -> String {
    let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    credentials.map_or_else(|| "unknown".to_owned(), |credentials| format!("uid {}", credentials.uid()))
}

/// Runs work in a task of its own: the client may go away in the middle, and memory and store must agree all the same.
async fn carried_through<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(|error| Status::internal(error.to_string()))
}

/// Reads the kind that a request names; where it names none, any for a lock and the serial number for an exemption.
fn stated_kind(kind: RulingKind, name: &str) -> Result<Option<IdentifierKind>, Status> {
    match (kind, name) {
        (RulingKind::Lock, "") => Ok(None),
        (RulingKind::Exemption, "") => Ok(Some(IdentifierKind::Serial)),
        (_, name) => name.parse().map(Some).map_err(|error: UnknownWord| Status::invalid_argument(error.to_string())),
    }
}

fn told(runtime: &Runtime, ruling: &Ruling) -> v1::Ruling {
    let kind = match ruling.kind {
        RulingKind::Lock => v1::RulingKind::Lock,
        RulingKind::Exemption => v1::RulingKind::Exemption,
    };
    v1::Ruling {
        id: ruling.id.to_string(),
        kind: kind.into(),
        device: ruling.device.clone(),
        identifier_kind: ruling.identifier_kind.map_or("", IdentifierKind::as_str).to_owned(),
        reason: ruling.reason.clone(),
        made_by: ruling.made_by.clone(),
        made_at: ruling.made_at.as_millis(),
        until: ruling.until.map(UnixTime::as_millis).unwrap_or_default(),
        not_kept: runtime.engine.locks.is_owed(ruling),
    }
}

fn within(seconds: u64, longest: Duration) -> Result<Duration, Status> {
    let ttl = Duration::from_secs(seconds);
    if ttl > longest {
        return Err(Status::invalid_argument(format!("it can hold for {} at most", humantime::format_duration(longest))));
    }
    Ok(ttl)
}

/// Reads an identifier of any kind, without characters at its ends that cannot be seen: a device file is read likewise.
pub(super) fn identifier(device: &str) -> Result<&str, Status> {
    text(shown::clean(device), "identifier of the device", LONGEST_IDENTIFIER)
}

fn text<'t>(text: &'t str, what: &str, longest: usize) -> Result<&'t str, Status> {
    let text = text.trim_ascii();
    if text.is_empty() || text.len() > longest || text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!("the {what} has to have 1 to {longest} bytes, and no control characters")));
    }
    Ok(text)
}

/// Longest identifier, and longest reason, in bytes.
const LONGEST_IDENTIFIER: usize = 254;
const LONGEST_REASON: usize = 500;

/// Longest time of a lock: a longer one is meant to hold until it is taken back.
const LONGEST_LOCK: Duration = Duration::from_secs(3650 * 86_400);

/// Longest time of an exemption: break-glass is for an emergency, not a state.
const LONGEST_EXEMPTION: Duration = Duration::from_secs(30 * 86_400);

/// Largest number of rulings that are named where none was taken back.
const SHOWN: usize = 20;

/// Largest number of rulings in one answer: with the longest texts well below what a client takes, 4 MiB.
const PAGE: usize = 2000;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use inventory::Answer;
    use posture::record::{Fact, Record};
    use settings::Environment;
    use tokio::time::Instant;

    use super::*;
    use crate::fixture;
    use crate::runtime::Configured;
    use engine::provider::Provider;
    use engine::provider::scripted::Scripted;

    const SERIAL: &str = "C02XL0GYJGH5";
    const UDID: &str = "6F1C2B3A-0D4E-4F5A-8B6C-7D8E9F0A1B2C";

    /// Makes a runtime with a provider that knows one device by serial and UDID, and never answers for `HANGS`.
    fn runtime(folder: &std::path::Path) -> Arc<Runtime> {
        fixture::make(&folder.join("demo"));
        let source = Configured::new(Some("stepward.toml".into()), Environment::new(folder.join("demo")));
        let fake = Scripted::new(|device| async move {
            match (device.kind(), device.normal()) {
                (IdentifierKind::Serial, SERIAL) | (IdentifierKind::Udid, UDID) => {
                    let [serial, udid] = [SERIAL, UDID].map(|text| Fact::Value(text.to_owned()));
                    Answer::Found(Arc::new(Record { serial, udid, ..Record::default() }))
                }
                (_, "HANGS") => std::future::pending().await,
                _ => Answer::NotFound,
            }
        });
        let providers = BTreeMap::from([(Arc::from("staff"), Arc::new(fake) as Arc<dyn Provider>)]);
        Arc::new(Runtime::start_with(Box::new(source), Arc::default(), &providers).unwrap())
    }

    fn wanted(device: &str) -> Wanted<'_> {
        Wanted { device, identifier_kind: "", reason: "a reason", ttl_seconds: 0 }
    }

    async fn take_back_lock(runtime: &Arc<Runtime>, device: &str, kind: &str, id: &str) -> (Vec<String>, Vec<String>) {
        let (gone, others) = take_back(runtime, RulingKind::Lock, "uid 0".to_owned(), (device, kind, id)).await.unwrap();
        let devices = |rulings: Vec<v1::Ruling>| rulings.into_iter().map(|ruling| ruling.device).collect();
        (devices(gone), devices(others))
    }

    #[tokio::test]
    async fn a9_a_ruling_is_taken_back_by_what_it_was_made_by_or_its_id_and_by_nothing_that_stands_in_a_record() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        let (by_udid, _) = make(&runtime, RulingKind::Lock, "uid 0", wanted(UDID)).await.unwrap();
        make(&runtime, RulingKind::Lock, "uid 0", Wanted { identifier_kind: "udid", ..wanted(UDID) }).await.unwrap();
        let none = || (Vec::<String>::new(), Vec::<String>::new());
        assert_eq!(take_back_lock(&runtime, SERIAL, "", "").await, none(), "though a record has serial and UDID");
        let both = (Vec::new(), vec![UDID.to_owned(); 2]);
        assert_eq!(take_back_lock(&runtime, UDID, "serial", "").await, both, "another kind is said, and left");
        assert_eq!(take_back_lock(&runtime, &UDID.to_lowercase(), "udid", "").await.0, [UDID]);
        assert_eq!(take_back_lock(&runtime, "", "", &by_udid.id).await.0, [UDID]);
        assert_eq!(take_back_lock(&runtime, "", "", &by_udid.id).await, none());
        let made = make(&runtime, RulingKind::Exemption, "uid 0", Wanted { ttl_seconds: 60, ..wanted(SERIAL) }).await.unwrap().0;
        assert_eq!(made.identifier_kind, "serial");
        assert_eq!(take_back_lock(&runtime, "", "", &made.id).await, none(), "an exemption is no lock");
        for (device, kind, id) in [("", "", ""), (SERIAL, "", &*made.id), (SERIAL, "nonsense", ""), ("", "", "nonsense")] {
            assert!(take_back(&runtime, RulingKind::Lock, "uid 0".to_owned(), (device, kind, id)).await.is_err(), "{device} {kind} {id}");
        }
    }

    #[tokio::test]
    async fn d5_nothing_is_ruled_by_a_placeholder_and_an_old_ruling_can_be_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        for (device, identifier_kind) in
            [("Default string", ""), (" none ", "serial"), ("00000000-0000-0000-0000-000000000000", "udid"), ("0", "hostname")]
        {
            for kind in RulingKind::ALL {
                let refused = make(&runtime, *kind, "uid 0", Wanted { identifier_kind, ttl_seconds: 60, ..wanted(device) }).await;
                let status = refused.unwrap_err();
                assert!(status.code() == tonic::Code::InvalidArgument && status.message().contains("means none of them"), "{status}");
            }
        }
        runtime
            .engine
            .locks
            .lock(Ruling::new(RulingKind::Lock, None, "Default string", "", "", clock::now(), None))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(take_back_lock(&runtime, "default string", "", "").await.0, ["Default string"]);
    }

    #[tokio::test]
    async fn d5_what_cannot_be_seen_at_the_ends_of_an_identifier_keeps_no_ruling_from_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        for ends in ["\u{a0}", "\u{200b}", " \u{feff}\u{2003}", "\u{200e}", "\u{ad}", "\u{202c}", "\u{fe0f}", "\u{2069}\u{e0100}"] {
            let copied = format!("{ends}{SERIAL}{ends}");
            let (made, _) = make(&runtime, RulingKind::Lock, "uid 0", wanted(&copied)).await.unwrap();
            assert_eq!(made.device, SERIAL);
            assert_eq!(take_back_lock(&runtime, &copied, "", "").await.0, [SERIAL]);
        }
        assert!(make(&runtime, RulingKind::Lock, "uid 0", wanted("\u{a0}\u{200b}")).await.is_err());
        // The identifier without the hidden character may be another device's.
        let refused = make(&runtime, RulingKind::Exemption, "uid 0", Wanted { ttl_seconds: 60, ..wanted("C02A\u{200b}") }).await;
        assert!(refused.unwrap_err().message().contains("`C02A\\u200b`: the identifier has a character at its end that cannot be seen"));
    }

    #[tokio::test(start_paused = true)]
    async fn a9_taking_back_asks_no_provider() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        make(&runtime, RulingKind::Lock, "uid 0", wanted("HANGS")).await.unwrap();
        let started = Instant::now();
        assert_eq!(take_back_lock(&runtime, "hangs", "", "").await.0, ["HANGS"]);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_list_goes_on_where_it_was_cut() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = runtime(folder.path());
        for number in 0..PAGE + 1 {
            make(&runtime, RulingKind::Lock, "uid 0", wanted(&format!("D{number}"))).await.unwrap();
        }
        let first = list(&runtime, "").unwrap();
        let second = list(&runtime, &first.rulings.last().unwrap().id).unwrap();
        assert_eq!((first.rulings.len(), first.more, second.rulings.len(), second.more), (PAGE, true, 1, false));
        assert!(list(&runtime, "nonsense").is_err());
    }
}
