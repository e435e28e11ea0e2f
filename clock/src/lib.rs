//! The time by which locks, exemptions and the like end: the system's clock, as far as it is proven.
//!
//! A system's clock may be wrong for an hour, after the machine started or by a mistake, and then be right again. Nothing may be
//! lost because it ended by the wrong time. So locks, exemptions, keys of devices and decisions end by a [`Span`], never by the
//! system's clock alone, and are deleted only once they are past by both clocks.

mod minute;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use posture::time::UnixTime;
use tokio::time::Instant;

pub use minute::OnceAMinute;

/// The time of the system's clock. No other code reads that clock for anything that is decided, kept or ended.
pub fn now() -> UnixTime {
    #[cfg(any(test, feature = "scripted"))]
    if let Some(now) = scripted::now() {
        return now;
    }
    UnixTime::from_system(SystemTime::now())
}

/// The time that the machine has slept since it started. During sleep the monotonic clock, which counts ages, stands still.
pub fn slept() -> Duration {
    #[cfg(any(test, feature = "scripted"))]
    if let Some(slept) = scripted::slept() {
        return slept;
    }
    let since = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    since(ClockId::CLOCK_BOOTTIME).saturating_sub(since(ClockId::CLOCK_MONOTONIC))
}

/// A clock that compares the system's clock with the monotonic one, and with the last proven time of the previous process.
///
/// Proven time runs by the monotonic clock alone. It is set to the system's clock if the two agree, and otherwise only once
/// the system's clock has run for [`STEADY`] without a jump.
#[derive(Debug, Default)]
pub struct Clock(Mutex<State>);

/// The bounds between which the current time lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The earlier of the two clocks. By it ends what admits a device by ending, such as a lock, and what is deleted at its end.
    pub earliest: UnixTime,
    /// The later of the two clocks. By it ends what admits a device until it ends, such as an exemption.
    pub latest: UnixTime,
    /// The proven time, which is one of the two clocks.
    pub proven: UnixTime,
    /// Sum of all corrections of the proven time so far, in nanoseconds. A date that was computed from a wrong time is right
    /// once the corrections since then are added to it.
    pub corrected: i64,
}

impl Span {
    /// The span of a moment at which all clocks agree, and always did.
    pub const fn at(now: UnixTime) -> Self {
        Self { earliest: now, latest: now, proven: now, corrected: 0 }
    }
}

/// The proven time that one process leaves to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The proven time.
    pub time: UnixTime,
    /// Sum of all corrections so far, as in [`Span::corrected`].
    pub corrected: i64,
}

#[derive(Debug, Default)]
struct State {
    /// Last proven time that the previous process kept.
    before: Option<UnixTime>,
    /// Sum of all corrections so far, as in [`Span::corrected`].
    corrected: i64,
    /// Whether the proven time still continues that of the previous process: time may have passed unnoticed since.
    resumed: bool,
    /// The proven time, and the moment at which it was found.
    proven: Option<(UnixTime, Instant)>,
    /// Last reading of the system's clock.
    read: Option<Read>,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    wall: UnixTime,
    at: Instant,
    /// Moment since which the system's clock has not jumped.
    steady_since: Instant,
}

impl Clock {
    /// Makes a clock that continues from the last proven time that the previous process kept; `None` if there was none.
    pub fn after(before: Option<Proven>) -> Self {
        let (before, corrected) = before.map_or((None, 0), |before| (Some(before.time), before.corrected));
        Self(Mutex::new(State { before, corrected, ..State::default() }))
    }

    /// Reads the clock: `wall` is the current time of the system's clock.
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
            // A restart takes a while, in which no clock of this process ran.
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

    /// The latest time that the previous process may have seen without having kept it; `None` if no process came before.
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

/// Most by which a correct clock may differ from the monotonic one between two readings.
const JITTER: Duration = Duration::from_secs(2);

/// Time for which a clock that jumped must run without another jump before it is believed.
pub const STEADY: Duration = Duration::from_secs(3600);

/// Interval at which the proven time is kept for the next process.
pub const KEPT_EVERY: Duration = Duration::from_secs(60);

/// Longest restart after which the clock is believed at once, from the last proven time of the previous process.
const RESTART: Duration = Duration::from_secs(600);

/// A system's clock for tests that pause time: it runs with tokio's clock, and jumps when a test says so.
#[cfg(any(test, feature = "scripted"))]
pub mod scripted {
    use std::cell::Cell;

    use super::*;

    thread_local!(static CLOCK: Cell<Option<(UnixTime, Instant)>> = const { Cell::new(None) });

    /// Sets the time of the system's clock on this thread.
    pub fn set(now: UnixTime) {
        CLOCK.set(Some((now, Instant::now())));
    }

    thread_local!(static SLEPT: Cell<Option<Duration>> = const { Cell::new(None) });

    /// Sets the time that the machine has slept, on this thread.
    pub fn sleep(slept: Duration) {
        SLEPT.set(Some(slept));
    }

    pub(super) fn slept() -> Option<Duration> {
        SLEPT.get()
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

    /// The span at which both clocks agree, after corrections of `corrected` seconds.
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
            // Another jump starts the hour anew.
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
