//! Identifiers about which a service gave no answer though it may be well: each is left alone by itself, and all of them together
//! say no more against the service than that somebody else should be asked.

use std::collections::{HashMap, HashSet};

use inventory::{Blame, Unavailable};
use tokio::time::{Duration, Instant};

use super::mark::Mark;

/// The identifier and the device that a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Who {
    /// The identifier that is asked by.
    pub(super) asked: Mark,
    /// The device, where it is known; else the identifier.
    pub(super) device: Mark,
}

/// Identifiers that failed by themselves and were not answered since, in bounds.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Identifiers of known devices.
    known: HashMap<Mark, Suspect>,
    /// Identifiers of new devices: apart, so that invented ones push no known one out.
    new: HashMap<Mark, Suspect>,
    /// Known identifiers that the service cannot be asked by.
    unaskable: HashSet<Mark>,
    /// Known devices towards which the service was silent, by whichever identifier, how often, and until when they are left alone.
    silent: HashMap<Mark, (u32, Instant)>,
    /// Known devices whose last answer was slow, with the time of that answer.
    slow: HashMap<Mark, Instant>,
    /// Number of answers that the service gave, to whomever.
    answers: u64,
    /// Number of records that the service gave, and the time of the last one.
    records: u64,
    recorded: Option<Instant>,
}

#[derive(Debug)]
struct Suspect {
    why: Unavailable,
    failures: u32,
    /// Time until which the identifier is not asked for.
    until: Instant,
    /// Number of answers that the service had given when the identifier first failed.
    before: u64,
    /// Number of records that the service had given when the identifier last failed.
    records: u64,
}

/// The worth of a device as a witness for the service, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Witness {
    /// The device did not fail.
    Clean,
    /// The device did not fail, but its last answer was slow.
    Slow,
    /// The device failed, and nobody was answered since; it was left alone until this time.
    Suspect(Instant),
}

impl Suspects {
    /// The reason why an identifier is left alone at present; `None`: it may be asked for.
    pub(super) fn left_alone(&self, new: bool, who: Who, now: Instant) -> Option<Unavailable> {
        let suspects = if new { &self.new } else { &self.known };
        let asked = suspects.get(&who.asked).filter(|suspect| now < suspect.until).map(|suspect| suspect.why);
        asked.or_else(|| self.silent.get(&who.device).filter(|(_, until)| !new && now < *until).map(|_| Unavailable::Timeout))
    }

    /// Notes that an identifier failed. True: the failure is the identifier's own, since others were answered after it failed
    /// first.
    pub(super) fn failed(&mut self, new: bool, who: Who, why: Unavailable, now: Instant) -> bool {
        let (answers, records) = (self.answers, self.records);
        let suspects = if new { &mut self.new } else { &mut self.known };
        if suspects.len() >= MOST && !suspects.contains_key(&who.asked) {
            suspects.retain(|_, suspect| now < suspect.until);
            // Without a place an identifier is merely not left alone.
            if suspects.len() >= MOST {
                return false;
            }
        }
        let first = Suspect { why, failures: 0, until: now, before: answers, records };
        let suspect = suspects.entry(who.asked).or_insert(first);
        // A failure so long after the last one is another failure.
        if now.saturating_duration_since(suspect.until) > FORGOTTEN {
            (suspect.failures, suspect.before) = (0, answers);
        }
        let own = suspect.before < answers;
        let longest = if own && why.blame() == Blame::Identifier { LONGEST_OWN } else { LONGEST };
        // The first failure costs nothing: whoever asked asks again at once.
        let pause = suspect.failures.checked_sub(1).map_or(Duration::ZERO, |more| FIRST.saturating_mul(1 << more.min(8)).min(longest));
        suspect.failures = suspect.failures.saturating_add(1);
        (suspect.why, suspect.until, suspect.records) = (why, now + pause, records);
        if !new && own && why == Unavailable::Timeout && (self.silent.len() < MOST || self.silent.contains_key(&who.device)) {
            let (times, until) = self.silent.entry(who.device).or_insert((0, now));
            let pause = FIRST.saturating_mul(1 << (*times).min(8)).min(LONGEST_OWN);
            (*times, *until) = (times.saturating_add(1), now + pause);
        }
        own
    }

    /// Notes that the service gave an answer about this identifier, or one that is about none: a record, or none.
    pub(super) fn answered(&mut self, who: Option<Who>, record: bool, now: Instant) {
        self.answers = self.answers.saturating_add(1);
        if record {
            (self.records, self.recorded) = (self.records.saturating_add(1), Some(now));
        }
        if let Some(who) = who {
            self.clear(who);
        }
    }

    /// Whether a known device fails by itself: since it failed last, the service gave the record of another. That the service
    /// does not have some identifiers would not do: whoever asks for invented ones has that answer from a service that can read
    /// no record.
    pub(super) fn is_alone(&self, who: Who, now: Instant) -> bool {
        self.known.get(&who.asked).is_some_and(|suspect| {
            let lately = now.saturating_duration_since(suspect.until) <= FORGOTTEN;
            lately && suspect.why.blame() == Blame::Identifier && suspect.records < self.records
        })
    }

    /// Whether the service gave a record in the last hour: then a failure about an unknown identifier says nothing of the
    /// service.
    pub(super) fn gives_records(&self, now: Instant) -> bool {
        self.recorded.is_some_and(|at| now.saturating_duration_since(at) < RECENT)
    }

    /// Forgets the failures of an identifier that was answered.
    pub(super) fn clear(&mut self, who: Who) {
        self.known.remove(&who.asked);
        self.new.remove(&who.asked);
        self.unaskable.remove(&who.asked);
        self.silent.remove(&who.device);
    }

    /// Forgets whoever failed since the last answer of the service: the service failed for all, and is back.
    pub(super) fn forgive(&mut self) {
        let answers = self.answers;
        for suspects in [&mut self.known, &mut self.new] {
            suspects.retain(|_, suspect| suspect.before < answers);
        }
    }

    /// Notes whether the service took long for its answer about a known device.
    pub(super) fn took(&mut self, who: Who, long: bool, now: Instant) {
        if !long {
            self.slow.remove(&who.device);
            return;
        }
        if self.slow.len() >= MOST {
            self.slow.retain(|_, at| now.saturating_duration_since(*at) < RECENT);
        }
        // Where thousands are slow, the service is.
        if self.slow.len() < MOST {
            self.slow.insert(who.device, now);
        }
    }

    /// Notes that the service cannot be asked by the identifier of a known device.
    pub(super) fn cannot_be_asked(&mut self, who: Who) {
        if self.unaskable.len() < MOST {
            self.unaskable.insert(who.asked);
        }
    }

    /// The worth of a known device as a witness of failures, now; `None`: its failures are its own, or the service cannot be asked
    /// about it. What failed by itself long ago says nothing of what becomes of it now.
    pub(super) fn witness(&self, who: Who, now: Instant) -> Option<Witness> {
        if self.unaskable.contains(&who.asked) {
            return None;
        }
        match self.known.get(&who.asked) {
            Some(suspect) if suspect.before >= self.answers => Some(Witness::Suspect(suspect.until)),
            Some(suspect) if now.saturating_duration_since(suspect.until) <= FORGOTTEN => None,
            _ if self.is_slow(who, now) => Some(Witness::Slow),
            _ => Some(Witness::Clean),
        }
    }

    /// The worth of a known device as a witness of silence, now; `None`: the service cannot be asked about it. An error is an answer
    /// there, so a device is worse only where it was left without one.
    pub(super) fn listener(&self, who: Who, now: Instant) -> Option<Witness> {
        if self.unaskable.contains(&who.asked) {
            return None;
        }
        let unanswered = |suspect: &&Suspect| matches!(suspect.why, Unavailable::Timeout | Unavailable::Network);
        let lately = |suspect: &&Suspect| now.saturating_duration_since(suspect.until) <= FORGOTTEN;
        match self.known.get(&who.asked).filter(unanswered).filter(lately) {
            Some(suspect) => Some(Witness::Suspect(suspect.until)),
            None if self.is_slow(who, now) => Some(Witness::Slow),
            None => Some(Witness::Clean),
        }
    }

    fn is_slow(&self, who: Who, now: Instant) -> bool {
        self.slow.get(&who.device).is_some_and(|at| now.saturating_duration_since(*at) < RECENT)
    }
}

/// Identifiers that are remembered, at most: as many of known devices as of new ones.
const MOST: usize = 10_000;

/// First pause of an identifier, from its second failure in a row on; each is twice as long as the one before.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause where the service may be the cause, and may be back.
const LONGEST: Duration = Duration::from_secs(5);
/// Longest pause where the service answers others, and its answer about this identifier cannot be used.
const LONGEST_OWN: Duration = Duration::from_secs(30);
/// Age up to which a record shows that the service can be read.
const RECENT: Duration = Duration::from_secs(3600);
/// Time after which two failures have nothing to do with each other.
const FORGOTTEN: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn who(name: &str) -> Who {
        let mark = Mark::identifier(name);
        Who { asked: mark, device: mark }
    }

    /// Seconds for which an identifier is left alone after each failure, where it fails again as soon as it is asked for.
    fn pauses(suspects: &mut Suspects, why: Unavailable, times: usize) -> Vec<u64> {
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..times {
            suspects.failed(false, who("a"), why, now);
            let until = suspects.known[&who("a").asked].until;
            assert_eq!(suspects.left_alone(false, who("a"), now), (until > now).then_some(why));
            assert_eq!(suspects.left_alone(false, who("a"), until), None);
            pauses.push(until.duration_since(now).as_secs());
            now = until;
        }
        pauses
    }

    #[tokio::test(start_paused = true)]
    async fn b5_an_identifier_that_fails_is_left_alone_by_itself() {
        for (why, others, expected) in [
            (Unavailable::Protocol, false, [0, 1, 2, 4, 5, 5, 5, 5]),
            (Unavailable::Protocol, true, [0, 1, 2, 4, 8, 16, 30, 30]),
            (Unavailable::ServerError(None), true, [0, 1, 2, 4, 5, 5, 5, 5]),
        ] {
            let mut suspects = Suspects::default();
            if others {
                suspects.failed(false, who("a"), why, Instant::now());
                suspects.answered(Some(who("b")), true, Instant::now());
                assert_eq!(suspects.witness(who("a"), Instant::now()), None);
                suspects.known.get_mut(&who("a").asked).unwrap().failures = 0;
            }
            assert_eq!(pauses(&mut suspects, why, 8), expected, "{why:?} {others}");
            suspects.answered(Some(who("a")), true, Instant::now());
            assert_eq!((suspects.witness(who("a"), Instant::now()), suspects.known.len()), (Some(Witness::Clean), 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_device_towards_which_the_service_is_silent_is_left_alone_by_all_of_its_identifiers() {
        let [by_serial, by_udid] =
            ["serial", "udid"].map(|asked| Who { asked: Mark::identifier(asked), device: Mark::identifier("device") });
        let mut suspects = Suspects::default();
        let now = Instant::now();
        assert!(!suspects.failed(false, by_serial, Unavailable::Timeout, now), "it may be the service");
        assert_eq!(suspects.left_alone(false, by_udid, now), None);
        suspects.answered(Some(who("other")), true, now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            let now = Instant::now();
            assert!(suspects.failed(false, by_serial, Unavailable::Timeout, now));
            let until = now + Duration::from_secs(seconds);
            assert_eq!(
                suspects.left_alone(false, by_udid, until.checked_sub(Duration::from_nanos(1)).unwrap()),
                Some(Unavailable::Timeout)
            );
            assert_eq!(suspects.left_alone(false, by_udid, until), None, "{seconds}");
            assert_eq!(suspects.left_alone(true, by_udid, now), None, "a new one is another");
            assert_eq!(suspects.left_alone(false, who("other"), now), None);
        }
        suspects.clear(by_udid);
        assert_eq!(suspects.left_alone(false, by_udid, now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a12_an_error_is_an_answer_where_silence_is_looked_for() {
        let mut suspects = Suspects::default();
        let now = Instant::now();
        for (name, why) in [("error", Unavailable::ServerError(None)), ("silent", Unavailable::Timeout), ("cut", Unavailable::Network)] {
            suspects.failed(false, who(name), why, now);
        }
        suspects.took(who("slow"), true, now);
        suspects.cannot_be_asked(who("unaskable"));
        let listens = |suspects: &Suspects, name: &str, later| suspects.listener(who(name), now + Duration::from_secs(later));
        assert_eq!(["error", "clean"].map(|name| listens(&suspects, name, 0)), [Some(Witness::Clean); 2]);
        assert_eq!(["silent", "cut"].map(|name| listens(&suspects, name, 600)), [Some(Witness::Suspect(now)); 2]);
        assert_eq!(["silent", "cut"].map(|name| listens(&suspects, name, 601)), [Some(Witness::Clean); 2]);
        assert_eq!([3599, 3600].map(|later| listens(&suspects, "slow", later)), [Some(Witness::Slow), Some(Witness::Clean)]);
        assert_eq!(suspects.witness(who("slow"), now), Some(Witness::Slow));
        assert_eq!(listens(&suspects, "unaskable", 0), None);
        assert_eq!(suspects.witness(who("error"), now), Some(Witness::Suspect(now)));
        suspects.answered(Some(who("other")), true, now);
        assert_eq!([600, 601].map(|later| suspects.witness(who("error"), now + Duration::from_secs(later))), [None, Some(Witness::Clean)]);
    }

    #[tokio::test(start_paused = true)]
    async fn b5_a_failure_is_ones_own_once_somebody_else_was_answered() {
        let mut suspects = Suspects::default();
        let now = Instant::now();
        assert!(!suspects.failed(false, who("a"), Unavailable::Protocol, now));
        assert!(!suspects.failed(false, who("a"), Unavailable::Protocol, now));
        suspects.answered(Some(who("b")), false, Instant::now());
        assert!(!suspects.is_alone(who("a"), now), "a service that can read no record may still say that there is none");
        suspects.answered(Some(who("b")), true, Instant::now());
        assert!(suspects.is_alone(who("a"), now) && !suspects.is_alone(who("c"), now));
        assert!(suspects.failed(false, who("a"), Unavailable::Protocol, now));
        assert!(!suspects.failed(false, who("c"), Unavailable::Protocol, now), "nobody was answered after it");
        suspects.forgive();
        assert_eq!((suspects.witness(who("a"), Instant::now()), suspects.witness(who("c"), Instant::now())), (None, Some(Witness::Clean)));
        let later = now + FORGOTTEN + Duration::from_secs(60);
        assert!(!suspects.failed(false, who("a"), Unavailable::Protocol, later), "that was long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn b5_invented_identifiers_that_fail_take_bounded_memory_and_no_known_ones_place() {
        let mut suspects = Suspects::default();
        let now = Instant::now();
        for _ in 0..2 {
            suspects.failed(false, who("a"), Unavailable::Protocol, now);
        }
        for number in 0..3 * MOST {
            suspects.failed(true, who(&number.to_string()), Unavailable::Protocol, now);
        }
        assert!(suspects.new.len() <= MOST);
        assert_eq!(suspects.left_alone(false, who("a"), now), Some(Unavailable::Protocol));
    }

    #[tokio::test(start_paused = true)]
    async fn b5_whoever_is_left_alone_keeps_the_place_and_whoever_is_not_gives_it() {
        let now = Instant::now();
        let mut suspects = Suspects::default();
        for _ in 0..2 {
            for number in 0..MOST {
                suspects.failed(true, who(&number.to_string()), Unavailable::Protocol, now);
            }
        }
        assert!(!suspects.failed(true, who("new"), Unavailable::Protocol, now));
        assert_eq!((suspects.new.len(), suspects.new.contains_key(&who("new").asked)), (MOST, false));
        // One identifier fails for longer.
        suspects.failed(true, who("7"), Unavailable::Protocol, now);
        suspects.failed(true, who("new"), Unavailable::Protocol, now + FIRST);
        assert_eq!(suspects.new.len(), 2);
        assert_eq!(suspects.left_alone(true, who("7"), now + FIRST), Some(Unavailable::Protocol));
    }

    #[tokio::test(start_paused = true)]
    async fn b5_devices_that_were_slow_are_remembered_in_bounds_and_old_ones_give_way() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for number in 0..MOST {
            suspects.took(who(&number.to_string()), true, now);
        }
        for (later, expected) in [(RECENT - Duration::from_nanos(1), (MOST, Witness::Clean)), (RECENT, (1, Witness::Slow))] {
            suspects.took(who("new"), true, now + later);
            assert_eq!((suspects.slow.len(), suspects.witness(who("new"), now + later).unwrap()), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn b5_devices_that_cannot_be_asked_about_are_remembered_in_bounds() {
        let mut suspects = Suspects::default();
        for number in 0..=MOST {
            suspects.cannot_be_asked(who(&number.to_string()));
        }
        assert_eq!(suspects.unaskable.len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn b5_devices_towards_which_the_service_is_silent_are_remembered_in_bounds() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let names: Vec<_> = (0..MOST).map(|number| who(&number.to_string())).collect();
        let fail = |suspects: &mut Suspects, devices: &[Who], at| {
            for _ in 0..2 {
                for device in devices {
                    suspects.failed(false, *device, Unavailable::Timeout, at);
                }
                suspects.answered(None, true, at);
            }
        };
        fail(&mut suspects, &names, now);
        // Once their pauses are over, others fail.
        let later = now + LONGEST_OWN;
        fail(&mut suspects, &[who("new"), names[7]], later);
        assert_eq!(suspects.silent.len(), MOST);
        let by_another = |device: Who| Who { asked: Mark::identifier("another"), ..device };
        let just_after = later + FIRST;
        assert_eq!(suspects.left_alone(false, by_another(who("new")), later), None);
        assert_eq!(suspects.left_alone(false, by_another(names[7]), just_after), Some(Unavailable::Timeout), "its pause is the second");
    }

    #[tokio::test(start_paused = true)]
    async fn b5_who_fails_by_itself_does_so_lately_by_its_own_fault_and_since_a_record_was_given() {
        let now = Instant::now();
        for (why, after, expected) in [
            (Unavailable::Protocol, FORGOTTEN, true),
            (Unavailable::Protocol, FORGOTTEN + Duration::from_nanos(1), false),
            (Unavailable::Network, Duration::ZERO, false),
        ] {
            let mut suspects = Suspects::default();
            suspects.failed(false, who("a"), why, now);
            assert!(!suspects.is_alone(who("a"), now));
            suspects.answered(Some(who("b")), true, now);
            assert_eq!(suspects.is_alone(who("a"), now + after), expected, "{why:?} {after:?}");
        }
        let mut suspects = Suspects::default();
        assert!(!suspects.gives_records(now));
        suspects.answered(None, true, now);
        assert!(suspects.gives_records(now + RECENT - Duration::from_nanos(1)) && !suspects.gives_records(now + RECENT));
    }

    #[tokio::test(start_paused = true)]
    async fn b5_failures_ten_minutes_apart_are_one_and_further_apart_two() {
        for (apart, own) in [(FORGOTTEN, true), (FORGOTTEN + Duration::from_nanos(1), false)] {
            let (mut suspects, now) = (Suspects::default(), Instant::now());
            suspects.failed(false, who("a"), Unavailable::Protocol, now);
            suspects.answered(Some(who("b")), true, now);
            assert_eq!(suspects.failed(false, who("a"), Unavailable::Protocol, now + apart), own);
        }
    }
}
