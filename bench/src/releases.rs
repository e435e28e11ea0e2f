//! This release beside another one: each has an Envoy, a sidecar and a folder of its own, and a configuration without
//! anything that one of the two may not know.
//!
//! The same webhooks go to both in turn, in short slices. The CPU of a round is what a release used from its beginning to its
//! end, including the slices of the other: work that a release puts off, such as rows of its store, is its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::client::Http;
use e2e::deployment::{Deployment, Plan};
use e2e::webhook::Registered;

use crate::cost::{Cost, check, median};
use crate::cpu::{Usage, used};
use crate::load::{Outcome, Pool, run};
use crate::place::{KEYS, decided, listed, webhook};
use crate::report::Row;
use crate::signer::{Signer, Wanted};

/// Slices of each release in a round. Other load on the machine slows the slices of both alike.
const SLICES: usize = 8;

/// Most CPU of an allowed webhook, as a factor of the other release's.
const MOST: f64 = 1.03;

/// Names of the releases in a table.
pub(crate) const NAMES: [&str; 2] = ["this release", "other release"];

/// Names of one release with its two stores in a table.
pub(crate) const STORES: [&str; 2] = ["on SQLite", "on PostgreSQL"];

/// The plans of this release and of another one.
pub(crate) struct Both {
    webhook: Registered,
    plans: [Plan; 2],
    names: [&'static str; 2],
}

/// Both releases, running.
pub(crate) struct Running {
    both: [Release; 2],
    /// The signer; `None` while a load has it.
    signer: Option<Signer>,
}

/// A running release.
struct Release {
    name: &'static str,
    deployment: Deployment,
    pool: Pool,
    latencies: Vec<Duration>,
}

impl Both {
    /// Makes the plans of one release with stores of its own: a SQLite file, and this database on a server.
    pub(crate) fn of_stores(wasm: Option<&Path>, url: &str) -> anyhow::Result<Self> {
        let webhook = webhook();
        let mut plans = [listed(&webhook, KEYS), listed(&webhook, &format!("{KEYS}url = \"{url}\"\n"))];
        if let Some(wasm) = wasm {
            for plan in &mut plans {
                plan.wasm = wasm.canonicalize()?;
            }
        }
        Ok(Self { webhook, plans, names: STORES })
    }

    /// Makes the plans. `wasm` is this release's filter if it is not the one in `dist/`; `folder` has the other release.
    pub(crate) fn new(wasm: Option<&Path>, folder: &Path) -> anyhow::Result<Self> {
        let built = |name: &str| -> anyhow::Result<PathBuf> {
            let path = folder.join(name);
            path.canonicalize().with_context(|| format!("{}: `tools/build` leaves it there", path.display()))
        };
        let webhook = webhook();
        let mut ours = listed(&webhook, KEYS);
        let (stepward, filter) = (built("stepward")?, built("stepward_filter.wasm")?);
        // A release without this setting keeps keys anyway.
        let store = if unknown(&stepward, KEYS)?.is_empty() { KEYS } else { "" };
        let theirs = Plan { stepward, wasm: filter, ..listed(&webhook, store) };
        if let Some(wasm) = wasm {
            ours.wasm = wasm.canonicalize()?;
        }
        Ok(Self { webhook, plans: [ours, theirs], names: NAMES })
    }

    /// Starts both. One of two processes of the same build may use a tenth more than the other as long as they run.
    pub(crate) async fn start(&self, other_first: bool) -> anyhow::Result<Running> {
        let ([our_plan, their_plan], [our_name, their_name]) = (&self.plans, self.names);
        let (ours, theirs) = (Release::start(our_name, our_plan.clone()), Release::start(their_name, their_plan.clone()));
        let both = if other_first {
            let theirs = theirs.await?;
            [ours.await?, theirs]
        } else {
            [ours.await?, theirs.await?]
        };
        Ok(Running { both, signer: Some(Signer::new(&self.webhook)?) })
    }
}

impl Release {
    async fn start(name: &'static str, plan: Plan) -> anyhow::Result<Self> {
        let deployment = Deployment::start(plan).await;
        let pool = Pool::open(&deployment.client(Http::Two)).await?;
        Ok(Self { name, deployment, pool, latencies: Vec::new() })
    }

    fn processes(&mut self) -> [u32; 2] {
        [self.deployment.envoy.id(), self.deployment.sidecar().id()]
    }
}

impl Running {
    /// Sends `count` allowed webhooks to each release, at `rate` a second, and returns the cost of each.
    pub(crate) async fn ask(&mut self, rate: u32, count: usize, mistakes: &mut Vec<String>) -> anyhow::Result<[Cost; 2]> {
        let slice = count.div_ceil(SLICES);
        let mut usages = Vec::new();
        for release in &mut self.both {
            usages.push((decided(&release.deployment).await, Usage::start(&release.processes())?));
        }
        let mut generator = [0.0; 2];
        for turn in turns() {
            let (Some(release), Some(spent)) = (self.both.get_mut(turn), generator.get_mut(turn)) else { continue };
            let own = used(std::process::id())?;
            let signer = self.signer.take().context("a load failed")?;
            let (outcome, back) = run(&release.pool, signer, Wanted::Allowed, rate, slice).await?;
            self.signer = Some(back);
            check(release.name, &outcome, mistakes);
            release.latencies.extend(outcome.latencies);
            *spent += used(std::process::id())?.saturating_sub(own).as_secs_f64();
        }
        let sent = (slice * SLICES) as f64;
        let mut costs = [Cost::default(); 2];
        // All stopwatches are stopped before anything else is asked.
        let stopped: Vec<_> = usages.iter().map(|(_, usage)| usage.stop()).collect::<anyhow::Result<_>>()?;
        for (((release, (before, _)), (used, own)), cost) in
            self.both.iter().zip(&usages).zip(stopped.into_iter().zip(generator)).zip(&mut costs)
        {
            let asked = decided(&release.deployment).await - before;
            if (asked - sent).abs() > 0.5 {
                mistakes.push(format!("{}: the sidecar was asked {asked} times for {sent}", release.name));
            }
            let [envoy, service] = used.try_into().ok().context("two processes")?;
            let [envoy, service, generator] = [envoy.as_secs_f64(), service.as_secs_f64(), own].map(|seconds| seconds * 1e6 / sent);
            *cost = Cost { envoy, service, generator };
        }
        Ok(costs)
    }
}

impl Running {
    /// The 99th percentile of all latencies since this was asked last, of each.
    pub(crate) fn slowest(&mut self) -> [Duration; 2] {
        self.both.each_mut().map(|release| {
            let mut latencies = std::mem::take(&mut release.latencies);
            latencies.sort_unstable();
            Outcome::quantile(&latencies, 0.99)
        })
    }
}

/// The keys in lines of a configuration that a release does not know: its `check-config` names them.
fn unknown<'l>(stepward: &Path, lines: &'l str) -> anyhow::Result<Vec<&'l str>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("stepward.toml");
    std::fs::write(&file, lines)?;
    let output = Command::new(stepward).arg("check-config").arg("--config").arg(&file).output().context("start the release")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // Missing settings are named too, so a release that prints nothing has not checked.
    ensure!(!said.is_empty(), "{} check-config says nothing of {lines:?}", stepward.display());
    Ok(lines.lines().filter_map(|line| Some(line.split_once('=')?.0.trim())).filter(|key| said.contains(key)).collect())
}

/// The release that is asked in each slice of a round. Each comes first in as many pairs as the other.
fn turns() -> impl Iterator<Item = usize> {
    (0..SLICES).flat_map(|pair| if pair % 2 == 0 { [0, 1] } else { [1, 0] })
}

/// The results of all rounds. `other` is the folder of the other release.
pub(crate) fn rows(other: &Path, ours: &[Cost], theirs: &[Cost]) -> [Row; 2] {
    let measured = |cost: fn(&Cost) -> f64| {
        let ratios: Vec<_> = ours.iter().zip(theirs).map(|(ours, theirs)| cost(ours) / cost(theirs)).collect();
        let [low, high] = [ratios.iter().copied().fold(f64::INFINITY, f64::min), ratios.iter().copied().fold(0.0, f64::max)];
        let ratio = median(ratios.into_iter());
        let [ours, theirs] = [ours, theirs].map(|costs| median(costs.iter().map(cost)));
        (ratio, format!("{ratio:.3} × ({low:.2} to {high:.2}; {ours:.0} µs, {theirs:.0} µs)"))
    };
    let ((both, of_both), (_, of_the_sidecar)) = (measured(|cost| cost.both()), measured(|cost| cost.service));
    let other = other.display();
    [
        Row::new(
            format!("CPU of an allowed webhook, Envoy and sidecar ≤ {MOST:.2} × that of the release in {other}"),
            of_both,
            both <= MOST,
        ),
        Row::figure("… the sidecar alone", of_the_sidecar),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(of: &[(f64, f64)]) -> Vec<Cost> {
        of.iter().map(|(envoy, service)| Cost { envoy: *envoy, service: *service, generator: 100.0 }).collect()
    }

    #[test]
    fn each_release_is_asked_as_often_and_as_often_first() {
        let turns: Vec<_> = turns().collect();
        for release in [0, 1] {
            assert_eq!(turns.iter().filter(|turn| **turn == release).count(), SLICES);
            assert_eq!(turns.chunks(2).filter(|pair| pair.first() == Some(&release)).count(), SLICES / 2);
        }
        assert!(turns.windows(3).all(|three| three.iter().any(|turn| Some(turn) != three.first())), "no long stretch of one");
    }

    #[test]
    fn the_bound_is_on_envoy_and_sidecar_together_by_the_median_of_the_rounds() {
        let theirs = costs(&[(300.0, 100.0), (600.0, 200.0), (300.0, 100.0)]);
        // Ratios of both together: 1.02, 1.03 and 1.50; of the sidecar alone: 1.08, 1.12 and 3.00.
        let [both, sidecar] = rows(Path::new("old"), &costs(&[(300.0, 108.0), (600.0, 224.0), (300.0, 300.0)]), &theirs);
        assert_eq!(both.budget, "CPU of an allowed webhook, Envoy and sidecar ≤ 1.03 × that of the release in old");
        assert_eq!((both.measured.as_str(), both.holds), ("1.030 × (1.02 to 1.50; 600 µs, 400 µs)", Some(true)));
        assert_eq!((sidecar.measured.as_str(), sidecar.holds), ("1.120 × (1.08 to 3.00; 224 µs, 100 µs)", None));

        let [both, _] = rows(Path::new("old"), &costs(&[(300.0, 108.0), (600.0, 232.0), (300.0, 300.0)]), &theirs);
        assert_eq!(both.holds, Some(false), "{}", both.measured);
    }
}
