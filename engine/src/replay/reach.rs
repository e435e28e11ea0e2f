//! The greatest age of what is sent to a webhook, where a reload has widened its window.
//!
//! The memory forgets bytes as soon as the window of their time could not take them any more. A wider window would take them
//! again, from another caller too. So the accepted age grows no faster than the memory does: what came before a reload is
//! judged by the window for which it was kept.
//!
//! The age goes by the secret, and not by the webhook's id, which nobody has signed: under another id, of a webhook that is
//! renamed or that has taken over the secret, the same bytes are as good.

use std::collections::BTreeMap;
use std::time::Duration;

use posture::secret::Secret;
use posture::time::Window;
use posture::verify::SigningKeys;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The greatest accepted age of what is signed with each secret. A secret that is not configured any more is kept for half an
/// hour, since it may come back.
#[derive(Clone, Debug, Default)]
pub struct Reaches(BTreeMap<Signer, Reach>);

/// A webhook as [`Reaches`] judge it: its signers, the window of its timestamps, and how long a question may have waited
/// besides.
pub type Judged<'w> = (&'w [Signer], Window, Duration);

/// The identity of a secret: what it makes of a fixed text. Two secrets that HMAC does not tell apart are one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signer([u8; 32]);

impl Signer {
    /// The identity of this secret; `None` where nothing can be signed with it.
    pub fn of(secret: &Secret) -> Option<Self> {
        SigningKeys::new(std::slice::from_ref(secret)).sign(b"stepward: which secret").map(|signature| Self(*signature.as_bytes()))
    }

    /// The identity of the secret that an unsigned webhook does not have: one for each id.
    pub fn none(webhook_id: &str) -> Self {
        Self(Sha256::digest(webhook_id).into())
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer([redacted])")
    }
}

#[derive(Clone, Copy, Debug)]
struct Reach {
    /// The greatest age that the settings take.
    wanted: Duration,
    /// The furthest that a timestamp may be ahead, or might be before: what came then is remembered for as long.
    future: Duration,
    /// Moment since which the memory keeps everything for `wanted`.
    since: Instant,
    /// Age for which the memory kept everything before `since`.
    kept: Duration,
    /// The furthest that a timestamp from before `since` may be ahead.
    ahead: Duration,
    /// Moment at which the secret left the configuration; `None`: it is there.
    until: Option<Instant>,
}

impl Reaches {
    /// The reaches of webhooks of which the memory knows everything that came.
    pub fn new<'w>(webhooks: impl IntoIterator<Item = Judged<'w>>) -> Self {
        Self::new_at(webhooks, Instant::now())
    }

    fn new_at<'w>(webhooks: impl IntoIterator<Item = Judged<'w>>, now: Instant) -> Self {
        let reach = |window: Window, deadline| {
            let wanted = window.past.saturating_add(deadline);
            Reach { wanted, future: window.future, since: now, kept: wanted, ahead: Duration::ZERO, until: None }
        };
        let of = |(signers, window, deadline): Judged<'w>| signers.iter().map(move |signer| (*signer, reach(window, deadline)));
        Self(webhooks.into_iter().flat_map(of).collect())
    }

    /// The reaches of these webhooks after a reload, with the same memory.
    #[must_use]
    pub fn reloaded<'w>(&self, webhooks: impl IntoIterator<Item = Judged<'w>>) -> Self {
        self.reloaded_at(webhooks, Instant::now())
    }

    fn reloaded_at<'w>(&self, webhooks: impl IntoIterator<Item = Judged<'w>>, now: Instant) -> Self {
        let mut next = Self::new_at(webhooks, now);
        for (signer, before) in &self.0 {
            match next.0.get_mut(signer) {
                Some(reach) => {
                    reach.future = reach.future.max(before.future);
                    if reach.wanted <= before.wanted {
                        // What came since `before.since` is kept for long enough.
                        (reach.since, reach.kept, reach.ahead) = (before.since, before.kept, before.ahead);
                    } else {
                        (reach.kept, reach.ahead) = (before.at(now), before.ahead.max(before.future));
                    }
                }
                None => {
                    let until = before.until.unwrap_or(now);
                    if now.saturating_duration_since(until) <= LONGEST {
                        next.0.insert(*signer, Reach { until: Some(until), ..*before });
                    }
                }
            }
        }
        next
    }

    /// The greatest age that is accepted now of what may be signed with any of these.
    pub fn of(&self, signers: &[Signer]) -> Duration {
        self.of_at(signers, Instant::now())
    }

    fn of_at(&self, signers: &[Signer], now: Instant) -> Duration {
        signers.iter().map(|signer| self.0.get(signer).map_or(Duration::ZERO, |reach| reach.at(now))).min().unwrap_or_default()
    }
}

impl Reach {
    fn at(&self, now: Instant) -> Duration {
        // A webhook that is younger than this came after `since`.
        let came_since = now.saturating_duration_since(self.since).saturating_sub(self.ahead).saturating_sub(UNDERWAY);
        self.wanted.min(self.kept.max(came_since))
    }
}

/// How long a webhook that is judged by the settings before a reload may take until the memory has it.
const UNDERWAY: Duration = Duration::from_secs(1);

/// A time beyond the greatest age of any webhook: 10 min in both directions, and the deadline.
const LONGEST: Duration = Duration::from_secs(1800);

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [Signer; 1] = [Signer([1; 32])];
    const BOTH: [Signer; 2] = [Signer([2; 32]), Signer([1; 32])];

    fn webhook(past: u64, future: u64) -> Judged<'static> {
        (&ONE, Window { past: Duration::from_secs(past), future: Duration::from_secs(future) }, Duration::ZERO)
    }

    #[test]
    fn a_wider_window_takes_nothing_that_came_before_and_is_forgotten() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let narrow = Reaches::new_at([webhook(30, 5)], start);
        let of = |reaches: &Reaches, seconds| reaches.of_at(&ONE, at(seconds)).as_secs();
        assert_eq!((of(&narrow, 0), of(&narrow, 1000)), (30, 30));
        let wide = narrow.reloaded_at([webhook(300, 5)], at(100));
        // After 136 s, what is 31 s old is of 105 s: nothing that came before 100 s could be so far ahead.
        assert_eq!(
            [100, 130, 136, 137, 200, 405, 406, 407, 9000].map(|seconds| of(&wide, seconds)),
            [30, 30, 30, 31, 94, 299, 300, 300, 300]
        );
        // Reloads that change nothing hold nothing up.
        let same = (101..200).fold(wide.clone(), |reaches, seconds| reaches.reloaded_at([webhook(300, 5)], at(seconds)));
        assert_eq!(of(&same, 200), 94);
        // A reload that widens further goes on from the age that is reached, by the furthest that a timestamp was ahead.
        let wider = wide.reloaded_at([webhook(600, 0)], at(200));
        assert_eq!([200, 299, 301, 9000].map(|seconds| of(&wider, seconds)), [94, 94, 95, 600]);
        // A reload that narrows does so at once, and a later one may widen again.
        let narrowed = wider.reloaded_at([webhook(10, 0)], at(210));
        assert_eq!(of(&narrowed, 210), 10);
        let again = narrowed.reloaded_at([webhook(300, 0)], at(220));
        assert_eq!([220, 230, 9000].map(|seconds| of(&again, seconds)), [10, 10, 300]);
    }

    #[test]
    fn g8_what_was_ahead_when_it_came_is_not_taken_again_though_the_window_narrowed_before_it_widened() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for gone in [false, true] {
            let mut reaches = Reaches::new_at([webhook(2, 20)], start);
            if gone {
                reaches = reaches.reloaded_at([], at(1));
            }
            let reaches = reaches.reloaded_at([webhook(2, 0)], at(1)).reloaded_at([webhook(60, 0)], at(2));
            // What came at 0 s may be dated 20 s, and is forgotten at 22 s.
            for seconds in 22..80 {
                assert!(reaches.of_at(&ONE, at(seconds)) < Duration::from_secs(seconds - 20).max(Duration::from_secs(3)), "{seconds}");
            }
            assert_eq!(reaches.of_at(&ONE, at(90)), Duration::from_secs(60));
        }
    }

    #[test]
    fn g8_a_window_goes_by_the_secret_whatever_id_it_stands_under() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let window = |seconds| Window { past: Duration::from_secs(seconds), future: Duration::ZERO };
        let [one, other] = [b"one", b"two"].map(|secret| [Signer::of(&Secret::new(secret.to_vec())).unwrap()]);
        assert_eq!(Signer::of(&Secret::new(b"one\0".to_vec())), Some(one[0]), "one key to HMAC");
        assert_eq!(Signer::of(&Secret::new(Vec::new())), None);
        assert_ne!(Signer::none("one"), Signer::none("two"));
        assert_eq!(format!("{:?}", one[0]), "Signer([redacted])");
        let reaches = Reaches::new_at([(&one[..], window(30), Duration::ZERO), (&other[..], window(300), Duration::ZERO)], start);
        // The two secrets change places.
        let reaches = reaches.reloaded_at([(&other[..], window(30), Duration::ZERO), (&one[..], window(300), Duration::ZERO)], at(100));
        let of = |signers: &[Signer], seconds| reaches.of_at(signers, at(seconds)).as_secs();
        assert_eq!([100, 131, 200, 401].map(|seconds| of(&one, seconds)), [30, 30, 99, 300]);
        assert_eq!(of(&other, 100), 30);
        // Where one secret replaces another, what was signed with either is judged by the narrower of both.
        let reaches = Reaches::new_at([webhook(30, 0)], start).reloaded_at([(&BOTH[..], window(300), Duration::ZERO)], at(10));
        assert_eq!((reaches.of_at(&BOTH[..1], at(10)).as_secs(), reaches.of_at(&BOTH, at(10)).as_secs()), (300, 30));
        assert_eq!(reaches.of_at(&[], at(10)), Duration::ZERO);
    }

    #[test]
    fn a_webhook_that_was_taken_away_comes_back_with_what_it_had() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let gone = Reaches::new_at([webhook(30, 0)], start).reloaded_at([], at(10)).reloaded_at([], at(20));
        assert_eq!(gone.reloaded_at([webhook(300, 0)], at(25)).of_at(&ONE, at(30)).as_secs(), 30);
        // Nothing from before is in any window.
        let forgotten = gone.reloaded_at([], at(2000));
        assert_eq!(forgotten.0.len(), 0);
        assert_eq!(forgotten.reloaded_at([webhook(300, 0)], at(2000)).of_at(&ONE, at(2000)).as_secs(), 300);
        assert_eq!(Reaches::default().of(&ONE), Duration::ZERO);
    }
}
