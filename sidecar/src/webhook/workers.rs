//! Workers of Envoy, told apart by what their filters say of themselves, and which of them live.

use std::collections::BTreeMap;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;

use proto::v1::Report;
use tokio::time::{Instant, Sleep};

use super::refusals::Refusals;
use super::seats::Holder;
use engine::metrics::{FilterMetrics, Metrics};

/// Filter VMs with a stream, by who holds it and by the number that they call themselves: no process can speak for another one's
/// VMs, and no certificate for those of another. There are no more than streams.
#[derive(Debug, Default)]
pub(super) struct Workers {
    vms: Mutex<BTreeMap<(Holder, u64), Worker>>,
    refusals: Refusals,
}

/// State of one filter VM.
#[derive(Debug, Default)]
struct Worker {
    /// Number of its open streams.
    streams: usize,
    /// Number of its streams on which nothing is said any more.
    silent: usize,
    /// Whether the VM is that of Envoy's main thread, which never sees a request.
    main: bool,
    /// Requests that wait in the VM, and their bytes, by its last report.
    waiting: (u64, u64),
}

/// Count of one stream among the streams and workers, until it is dropped.
pub(super) struct Presence {
    metrics: Arc<Metrics>,
    workers: Arc<Workers>,
    holder: Holder,
    /// Number of the VM at the other end, once its filter has said it.
    vm: Option<u64>,
    /// Watch for silence, from the first report on: a filter that reports says something every few seconds.
    pulse: Option<Pulse>,
    silent: bool,
}

struct Pulse {
    until: Pin<Box<Sleep>>,
    heard: bool,
}

/// Silence after which a filter that has reported once has died; it may take up to twice as long to be noticed. Filters report
/// every five seconds.
const SILENCE: Duration = Duration::from_secs(15);

impl Workers {
    fn change(&self, metrics: &FilterMetrics, vm: &(Holder, u64), change: impl FnOnce(&mut Worker)) {
        let mut workers = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = workers.entry(vm.clone()).or_default();
        change(worker);
        if worker.streams == 0 {
            workers.remove(vm);
        }
        let living = || workers.values().filter(|worker| worker.silent < worker.streams);
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let sum = |of: fn(&Worker) -> u64| number(living().map(of).fold(0, u64::saturating_add));
        let (before, now) = (metrics.workers.get(), i64::try_from(living().filter(|worker| !worker.main).count()).unwrap_or(i64::MAX));
        metrics.workers.set(now);
        if is_last(before, now) {
            tracing::warn!("no worker of Envoy is attached any more: this service answers no webhook until one is");
        }
        metrics.waiting.set(sum(|worker| worker.waiting.0));
        metrics.waiting_bytes.set(sum(|worker| worker.waiting.1));
    }
}

/// Returns whether the last worker has gone between these two numbers of workers.
const fn is_last(before: i64, now: i64) -> bool {
    before > 0 && now == 0
}

impl Presence {
    pub(super) fn new(metrics: Arc<Metrics>, workers: Arc<Workers>, holder: Holder) -> Self {
        metrics.filter.streams.inc();
        Self { metrics, workers, holder, vm: None, pulse: None, silent: false }
    }

    /// Returns whether the filter has said which VM it is.
    pub(super) const fn is_named(&self) -> bool {
        self.vm.is_some()
    }

    /// Records which VM the filter is, and whether it is that of the main thread.
    pub(super) fn name(&mut self, vm: u64, main: bool) {
        self.forget();
        self.vm = Some(vm);
        self.change(|worker| {
            worker.streams += 1;
            worker.main = main;
        });
    }

    /// Records that a message came.
    pub(super) fn heard(&mut self) {
        if let Some(pulse) = &mut self.pulse {
            pulse.heard = true;
        }
        if std::mem::take(&mut self.silent) {
            self.change(|worker| worker.silent = worker.silent.saturating_sub(1));
        }
    }

    /// Takes a report: its counts, its refusals for the log, and the requests that wait.
    pub(super) fn report(&mut self, report: &Report) {
        self.metrics.filter.add(report);
        self.workers.refusals.log(report, Instant::now());
        self.pulse.get_or_insert_with(|| Pulse { until: Box::pin(tokio::time::sleep(SILENCE)), heard: true });
        self.change(|worker| worker.waiting = (report.waiting, report.waiting_bytes));
    }

    /// Returns the VM that has just been found silent, if the filter said which it is.
    pub(super) fn poll_silence(&mut self, context: &mut Context<'_>) -> Option<u64> {
        let pulse = self.pulse.as_mut()?;
        let mut over = false;
        while pulse.until.as_mut().poll(context).is_ready() {
            over = !std::mem::take(&mut pulse.heard);
            pulse.until.as_mut().reset(Instant::now() + SILENCE);
        }
        if !over || self.silent {
            return None;
        }
        self.silent = true;
        self.change(|worker| {
            worker.silent += 1;
            if !worker.main {
                self.metrics.filter.silent.inc();
            }
        });
        self.vm
    }

    fn change(&self, change: impl FnOnce(&mut Worker)) {
        if let Some(vm) = self.vm {
            self.workers.change(&self.metrics.filter, &(self.holder.clone(), vm), change);
        }
    }

    fn forget(&mut self) {
        let silent = usize::from(std::mem::take(&mut self.silent));
        self.change(|worker| {
            worker.streams = worker.streams.saturating_sub(1);
            worker.silent = worker.silent.saturating_sub(silent);
        });
        self.vm = None;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.forget();
        self.metrics.filter.streams.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn holder(pid: i32) -> Holder {
        Holder::Process(Some(7), Some(pid))
    }

    #[test]
    fn the_last_worker_goes_once() {
        for (before, now, last) in [(2, 1, false), (2, 0, true), (1, 0, true), (1, 1, false), (0, 0, false), (0, 1, false)] {
            assert_eq!(is_last(before, now), last, "{before} {now}");
        }
        let stand = Stand::new();
        let unnamed = Presence::new(Arc::clone(&stand.metrics), Arc::clone(&stand.workers), holder(1));
        assert!(!unnamed.is_named() && stand.stream(1, 1, false).is_named());
    }

    /// Workers of one service, and what it shows of them: how many, requests that wait, their bytes, and how many fell silent.
    struct Stand {
        metrics: Arc<Metrics>,
        workers: Arc<Workers>,
    }

    impl Stand {
        fn new() -> Self {
            Self { metrics: Arc::default(), workers: Arc::default() }
        }

        fn stream(&self, pid: i32, vm: u64, main: bool) -> Presence {
            let mut presence = Presence::new(Arc::clone(&self.metrics), Arc::clone(&self.workers), holder(pid));
            presence.name(vm, main);
            presence
        }

        fn shown(&self) -> (i64, i64, i64, u64) {
            let filter = &self.metrics.filter;
            (filter.workers.get(), filter.waiting.get(), filter.waiting_bytes.get(), filter.silent.get())
        }
    }

    fn report(waiting: u64) -> Report {
        Report { waiting, waiting_bytes: waiting * 100, ..Report::default() }
    }

    fn poll(presence: &mut Presence) -> Option<u64> {
        presence.poll_silence(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn e3_envoys_main_thread_is_no_worker_and_one_with_two_streams_is_one() {
        let stand = Stand::new();
        let main = stand.stream(1, 1, true);
        let (one, again, other) = (stand.stream(1, 2, false), stand.stream(1, 2, false), stand.stream(1, 3, false));
        assert_eq!(stand.shown(), (2, 0, 0, 0));
        drop(one);
        assert_eq!(stand.shown().0, 2);
        drop((again, other));
        assert_eq!((stand.shown().0, stand.metrics.filter.streams.get()), (0, 1));
        drop(main);
        assert!(stand.workers.vms.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn e3_what_waits_is_the_sum_of_what_each_worker_last_said_and_ends_with_it() {
        let stand = Stand::new();
        let (mut one, mut other) = (stand.stream(1, 2, false), stand.stream(1, 3, false));
        one.report(&report(9));
        one.report(&report(2));
        other.report(&report(5));
        assert_eq!(stand.shown(), (2, 7, 700, 0));
        drop(one);
        assert_eq!(stand.shown(), (1, 5, 500, 0));
        other.report(&report(u64::MAX / 100));
        drop(other);
        assert_eq!(stand.shown(), (0, 0, 0, 0));
    }

    #[tokio::test]
    async fn e3_another_process_says_nothing_of_this_ones_workers() {
        let stand = Stand::new();
        let mut worker = stand.stream(1, 2, false);
        worker.report(&report(1));
        let mut stranger = stand.stream(2, 2, true);
        stranger.report(&report(50));
        assert_eq!(stand.shown().0, 1, "it hides no worker by its name");
        drop(stranger);
        assert_eq!(stand.shown(), (1, 1, 100, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn e3_a_worker_that_says_nothing_any_more_is_no_worker_until_it_speaks_again() {
        let stand = Stand::new();
        let (mut dead, mut lives) = (stand.stream(1, 2, false), stand.stream(1, 3, false));
        let (mut main, mut old) = (stand.stream(1, 1, true), stand.stream(1, 4, false));
        for presence in [&mut dead, &mut lives, &mut main] {
            presence.report(&report(3));
        }
        for second in 1..=60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            if second % 5 == 0 {
                lives.heard();
                lives.report(&report(3));
            }
            let found: Vec<_> = [&mut dead, &mut lives, &mut main, &mut old].into_iter().filter_map(poll).collect();
            // The dead filter was heard of in the first 15 s, and not in the next ones. Filters of an older release do not report.
            assert_eq!(found, if second == 30 { vec![2, 1] } else { Vec::new() }, "after {second} s");
            assert_eq!(stand.shown().0, if second < 30 { 3 } else { 2 }, "after {second} s");
        }
        assert_eq!(stand.shown(), (2, 3, 300, 1));
        dead.heard();
        assert_eq!(stand.shown(), (3, 6, 600, 1));
        // A stream that ends silent leaves nothing behind.
        tokio::time::advance(SILENCE * 2).await;
        assert_eq!(poll(&mut dead), None, "it was heard of since");
        tokio::time::advance(SILENCE).await;
        assert_eq!(poll(&mut dead), Some(2));
        drop((dead, lives, main, old));
        assert_eq!(stand.shown(), (0, 0, 0, 2));
        assert!(stand.workers.vms.lock().unwrap().is_empty());
    }
}
