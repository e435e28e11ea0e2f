//! The time by which things end: the system's clock as far as it is proven.
//!
//! A clock may be wrong for an hour, after a start of a machine or by a mistake, and come back. What ended by it must not be
//! gone then. So what ends (locks, exemptions, keys of devices, decisions) does so by [`Span`], never by the system's clock
//! alone, and what is deleted for ever is past by every clock that there is.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use posture::time::UnixTime;
use tokio::time::Instant;

/// What the system's clock says: the one place where it is read for whatever is decided, kept or ended.
pub fn now() -> UnixTime {
    #[cfg(test)]
    if let Some(now) = scripted::now() {
        return now;
    }
    UnixTime::from_system(SystemTime::now())
}

/// The system's clock, held against the monotonic one and against the last proven time of the process before.
///
/// Proven time goes on by the monotonic clock alone. It becomes that of the system's clock where the two say the same, and
/// else only once the system's clock has run for [`STEADY`] without a jump.
#[derive(Debug, Default)]
pub struct Clock(Mutex<State>);

/// Between which times it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// What ends only in order to let somebody in, or for ever, has ended by this: the earlier of the two clocks.
    pub earliest: UnixTime,
    /// What has ended by this lets nobody in any more: the later of the two clocks.
    pub latest: UnixTime,
    /// The proven time, one of the two.
    pub proven: UnixTime,
    /// By how many nanoseconds the proven time was put right until now, in sum: a date that was reckoned by a wrong clock is
    /// right once it is moved by what was corrected since.
    pub corrected: i64,
}

#[cfg(test)]
impl Span {
    /// Where all clocks say the same, and always did.
    pub(crate) const fn at(now: UnixTime) -> Self {
        Self { earliest: now, latest: now, proven: now, corrected: 0 }
    }
}

/// The proven time, as one process leaves it to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The time.
    pub time: UnixTime,
    /// As [`Span::corrected`].
    pub corrected: i64,
}

#[derive(Debug, Default)]
struct State {
    /// The last proven time that the process before kept.
    before: Option<UnixTime>,
    /// As [`Span::corrected`].
    corrected: i64,
    /// Whether the proven time still goes on from that of the process before, since when a while may have passed.
    resumed: bool,
    /// The proven time, and when that was found.
    proven: Option<(UnixTime, Instant)>,
    /// The system's clock when it was last read.
    read: Option<Read>,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    wall: UnixTime,
    at: Instant,
    /// Since when it has not jumped.
    steady_since: Instant,
}

impl Clock {
    /// One that goes on from the last proven time that the process before kept; `None`: there was none.
    pub fn after(before: Option<Proven>) -> Self {
        let (before, corrected) = before.map_or((None, 0), |before| (Some(before.time), before.corrected));
        Self(Mutex::new(State { before, corrected, ..State::default() }))
    }

    /// Reads the system's clock: `wall` is what it says now.
    pub fn read(&self, wall: UnixTime) -> Span {
        let mut state = self.lock();
        let now = Instant::now();
        let steady_since = match state.read {
            Some(read) if apart(wall, read.wall.saturating_add(now - read.at)) <= JITTER => read.steady_since,
            _ => now,
        };
        state.read = Some(Read { wall, at: now, steady_since });
        let (reckoned, resumed) = match (state.proven, state.before) {
            (Some((proven, at)), _) => (proven.saturating_add(now - at), state.resumed),
            // A restart takes a while, in which no clock of ours ran.
            (None, Some(before)) if before <= wall && apart(before, wall) <= RESTART => (wall, false),
            (None, Some(before)) => (before, true),
            (None, None) => (wall, false),
        };
        let believed = apart(wall, reckoned) <= JITTER || now - steady_since >= STEADY;
        let proven = if believed { wall } else { reckoned };
        state.resumed = resumed && !believed;
        let was_away = resumed && proven > reckoned;
        if apart(proven, reckoned) > JITTER && !was_away {
            state.corrected = state.corrected.saturating_add(proven.as_nanos().saturating_sub(reckoned.as_nanos()));
        }
        state.proven = Some((proven, now));
        Span { earliest: proven.min(wall), latest: proven.max(wall), proven, corrected: state.corrected }
    }

    /// The proven time; `None` until the clock is first read.
    pub fn proven(&self) -> Option<Proven> {
        let state = self.lock();
        state.proven.map(|(proven, at)| Proven { time: proven.saturating_add(at.elapsed()), corrected: state.corrected })
    }

    /// The latest time that the process before may have seen, though it did not come to keep it; `None`: there was none.
    pub fn seen_before(&self) -> Option<UnixTime> {
        self.lock().before.map(|before| before.saturating_add(KEPT_EVERY))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apart(one: UnixTime, other: UnixTime) -> Duration {
    Duration::from_nanos(one.as_nanos().abs_diff(other.as_nanos()))
}

/// By how much a clock that is kept right may differ from the monotonic one between two readings.
const JITTER: Duration = Duration::from_secs(2);

/// How long a clock that jumped has to run without another jump until it is believed.
pub const STEADY: Duration = Duration::from_secs(3600);

/// How often the proven time is kept for the next process.
pub const KEPT_EVERY: Duration = Duration::from_secs(60);

/// How long after the last proven time of the process before a start may be, to believe the clock at once.
const RESTART: Duration = Duration::from_secs(600);

/// A system's clock for tests that pause time: it runs as tokio's does, and jumps when a test says so.
#[cfg(test)]
pub(crate) mod scripted {
    use std::cell::Cell;

    use super::*;

    thread_local!(static CLOCK: Cell<Option<(UnixTime, Instant)>> = const { Cell::new(None) });

    /// From now on, on this thread, it is this time.
    pub(crate) fn set(now: UnixTime) {
        CLOCK.set(Some((now, Instant::now())));
    }

    pub(super) fn now() -> Option<UnixTime> {
        CLOCK.get().map(|(set, at)| set.saturating_add(at.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> UnixTime {
        UnixTime::from_nanos((1_800_000_000 + seconds) * 1_000_000_000)
    }

    const DAYS: i64 = 60 * 86_400;

    /// As it is where both clocks say the same, and were corrected by so many seconds until now.
    fn exactly_after(corrected: i64, seconds: i64) -> Span {
        Span { earliest: at(seconds), latest: at(seconds), proven: at(seconds), corrected: corrected * 1_000_000_000 }
    }

    fn exactly(seconds: i64) -> Span {
        exactly_after(0, seconds)
    }

    fn left(seconds: i64) -> Option<Proven> {
        Some(Proven { time: at(seconds), corrected: 0 })
    }

    #[tokio::test(start_paused = true)]
    async fn g1_a_clock_that_runs_as_time_passes_is_the_time() {
        let clock = Clock::default();
        assert_eq!(clock.proven(), None);
        assert_eq!(clock.read(at(0)), exactly(0));
        for second in [1, 5, 4000] {
            tokio::time::advance(Duration::from_secs(second)).await;
        }
        assert_eq!(clock.read(at(4006)), exactly(4006));
        assert_eq!(clock.read(at(4007)), exactly(4007), "it is kept right by a second");
        assert_eq!(clock.read(at(4009)), exactly(4009), "and by two, which is no jump yet");
    }

    #[tokio::test(start_paused = true)]
    async fn g1_a_clock_that_jumps_is_believed_after_an_hour_without_another_jump() {
        for jump in [DAYS, -DAYS] {
            let clock = Clock::default();
            clock.read(at(0));
            let wrong = |passed: i64| clock.read(at(passed + jump));
            let apart = |span: Span| (span.proven, span.latest.as_nanos() - span.earliest.as_nanos());
            let unproven = |passed: i64| (at(passed), jump.abs() * 1_000_000_000);
            assert_eq!(apart(wrong(0)), unproven(0));
            tokio::time::advance(STEADY - Duration::from_secs(1)).await;
            assert_eq!(apart(wrong(3599)), unproven(3599), "the monotonic clock goes on");
            // Another jump, and the hour begins anew.
            assert_eq!(clock.read(at(3599 + 2 * jump)).proven, at(3599));
            assert_eq!(wrong(3599).proven, at(3599));
            tokio::time::advance(STEADY - Duration::from_secs(1)).await;
            assert_eq!(wrong(7198).proven, at(7198));
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(wrong(7199), exactly_after(jump, 7199 + jump));
            assert_eq!(clock.proven().unwrap().corrected, jump * 1_000_000_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g1_a_clock_that_comes_back_is_believed_at_once() {
        let clock = Clock::default();
        clock.read(at(0));
        for jump in [DAYS, -DAYS] {
            clock.read(at(jump));
            assert_eq!(clock.read(at(0)), exactly(0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g1_a_start_soon_after_the_last_proven_time_believes_the_clock_and_no_other_does() {
        for (wall, proven) in [(0, 0), (600, 600), (601, 0), (DAYS, 0), (-1, -1), (-3, 0), (-DAYS, 0)] {
            assert_eq!(Clock::after(left(0)).read(at(wall)).proven, at(proven), "{wall}");
        }
        let clock = Clock::after(left(0));
        clock.read(at(DAYS));
        tokio::time::advance(STEADY).await;
        assert_eq!(clock.read(at(DAYS + 3600)), exactly(DAYS + 3600), "the service was not there for so long");
        clock.read(at(3600));
        tokio::time::advance(STEADY).await;
        assert_eq!(clock.read(at(7200)), exactly_after(-DAYS, 7200), "that clock was wrong");
        let clock = Clock::after(left(DAYS));
        clock.read(at(0));
        tokio::time::advance(STEADY).await;
        assert_eq!(clock.read(at(3600)), exactly_after(-DAYS, 3600), "the one of the process before was");
        let clock = Clock::after(Some(Proven { time: at(0), corrected: 7 }));
        assert_eq!(clock.read(at(1)).corrected, 7, "what was corrected before stays so");
    }
}
