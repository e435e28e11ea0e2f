//! The measurements of Stepward beside Envoy's own filters: `make bench`. `bench/README.md` has the method and results.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints a table and says how far it is")]
#![allow(clippy::large_futures, reason = "there are few of them")]

mod cost;
mod cpu;
mod floor;
mod load;
mod lookup;
mod place;
mod releases;
mod report;
mod servers;
mod signer;
mod stores;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cost::{Cost, check, median};
use crate::cpu::Usage;
use crate::load::{Outcome, Pool};
use crate::lookup::{Call, Of};
use crate::place::{Listener, Place};
use crate::releases::Both;
use crate::report::{Row, table};
use crate::signer::{Signer, Wanted};

/// Measure Stepward beside Envoy's own filters
///
/// Exits with 0 where every reply was the right one, whatever the figures: a busy machine is no mistake of Stepward's.
#[derive(Clone, Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Internal>,
    /// Rounds of all scenarios
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Seconds of each scenario in a round
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Requests a second while CPU is measured
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Minutes of the latency run
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Most requests a second in the latency run
    #[arg(long, default_value_t = 2_000)]
    highest_rate: u32,
    /// Measure this filter instead of dist/stepward_filter.wasm
    #[arg(long)]
    wasm: Option<PathBuf>,
    /// Measure another filter too, on a listener of its own in the same Envoy; may be given several times
    #[arg(long)]
    beside: Vec<PathBuf>,
    /// Measure an allowed webhook with the release in this folder too: `stepward` and `stepward_filter.wasm`, as its `tools/build`
    /// left them in dist/
    #[arg(long, value_name = "DIR", required_if_eq("only", "releases"))]
    beside_release: Option<PathBuf>,
    /// Measure this part, and nothing else; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Measure the CPU of the scenarios whose name contains this text, and of no others; may be given several times
    #[arg(long)]
    scenario: Vec<String>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Commands that the benchmark gives itself.
#[derive(Clone, Debug, Subcommand)]
enum Internal {
    /// Serve what Stepward is measured against
    #[command(hide = true)]
    Serve {
        /// The socket
        socket: PathBuf,
    },
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// CPU of each scenario's requests.
    Cpu,
    /// An allowed webhook beside the release of `--beside-release`.
    Releases,
    /// An allowed webhook with a store on a PostgreSQL server, beside one in a SQLite file.
    Stores,
    /// Listing the decisions of one device among ten million, on both; ten minutes and 10 GB of disk, so it has to be named.
    Decisions,
    /// The latency run.
    Latency,
    /// `PostureService.Lookup` and `Check`.
    Lookup,
    /// The module's size, and the idle sidecar's memory.
    Sizes,
    /// Judging one device.
    Policy,
    /// The file provider with a million devices.
    Files,
    /// The cache with a million devices, and under ten million lookups of identifiers that nobody has.
    Memory,
}

impl Args {
    fn measures(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The scenarios to measure, with those of other filters at the end.
    fn scenarios(&self) -> Vec<Scenario> {
        let others = self.beside.iter().enumerate().flat_map(|(number, path)| {
            let file = path.file_stem().unwrap_or_default().to_string_lossy();
            [("allowed", Wanted::Allowed), ("forged", Wanted::Forged)].map(|(name, wanted)| Scenario {
                name: format!("{file}, {name}").into(),
                listener: Listener::Other(number),
                wanted,
            })
        });
        let wanted = |name: &str| self.scenario.is_empty() || self.scenario.iter().any(|part| name.contains(part.as_str()));
        SCENARIOS.into_iter().chain(others).filter(|scenario| wanted(&scenario.name)).collect()
    }
}

/// One kind of request to one listener.
#[derive(Clone, Debug)]
struct Scenario {
    name: Cow<'static, str>,
    listener: Listener,
    wanted: Wanted,
}

const SCENARIOS: [Scenario; 10] = [
    Scenario { name: Cow::Borrowed("direct_response"), listener: Listener::Direct, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("buffer, direct"), listener: Listener::Buffered, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("bare filter"), listener: Listener::Floor, wanted: Wanted::Forged },
    Scenario { name: Cow::Borrowed("ext_authz"), listener: Listener::ExtAuthz, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("ext_authz, sidecar"), listener: Listener::ExtAuthzSidecar, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("guard, allowing"), listener: Listener::GuardAllowing, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("guard, sidecar"), listener: Listener::Guard, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("Stepward, allowed"), listener: Listener::Stepward, wanted: Wanted::Allowed },
    Scenario { name: Cow::Borrowed("Stepward, forged"), listener: Listener::Stepward, wanted: Wanted::Forged },
    Scenario { name: Cow::Borrowed("Stepward, denied"), listener: Listener::Stepward, wanted: Wanted::Denied },
];

/// All results.
#[derive(Debug, Default, Serialize)]
struct Report {
    requests_per_second: u32,
    scenarios: Vec<(String, Vec<Cost>)>,
    rows: Vec<Row>,
    /// Lost or wrong replies, and questions that should not have been asked.
    mistakes: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    e2e::client::crypto();
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(Internal::Serve { socket }) = &args.command {
        // A runtime with as many threads as the sidecar has.
        tokio::runtime::Runtime::new()?.block_on(servers::serve(socket))?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = runtime.block_on(measure(&args))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    for mistake in &report.mistakes {
        eprintln!("bench: error: {mistake}");
    }
    Ok(if report.mistakes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report { requests_per_second: args.rate, ..Report::default() };
    if [Part::Cpu, Part::Latency, Part::Lookup, Part::Sizes].into_iter().any(|part| args.measures(part)) {
        eprintln!("bench: starting Envoy, the sidecar, and the server that allows everything");
        let mut place = Place::start(args.wasm.as_deref(), &args.beside).await?;
        let mut signer = Signer::new(&place.webhook)?;
        if args.measures(Part::Cpu) {
            signer = cpu_of_requests(args, &mut place, signer, &mut report).await?;
        }
        if args.measures(Part::Latency) {
            latency(args, &place, signer, &mut report).await?;
        }
        if args.measures(Part::Lookup) {
            lookups(&mut place, &mut report).await?;
        }
        if args.measures(Part::Sizes) {
            sizes(&place, &mut report)?;
        }
    }
    if let Some(folder) = args.beside_release.as_deref().filter(|_| args.measures(Part::Releases)) {
        releases(args, folder, &mut report).await?;
    }
    if args.measures(Part::Stores) {
        let load = stores::Load { rate: args.rate, count: usize::try_from(args.rate * args.seconds)? };
        let measured = stores::webhooks(args.wasm.as_deref(), args.rounds, load, &mut report.mistakes).await?;
        report.rows.extend(measured.rows);
        report.scenarios.extend(releases::STORES.map(str::to_owned).into_iter().zip(measured.costs));
    }
    if args.only.contains(&Part::Decisions) {
        report.rows.extend(stores::decisions().await?);
    }
    if args.measures(Part::Policy) {
        eprintln!("bench: policies");
        rows(&example("posture", &["--features", "policy"], "policy_cost")?, &mut report)?;
    }
    if args.measures(Part::Files) {
        eprintln!("bench: the file provider with a million devices");
        report.rows.extend(file_provider_rows(&example("sidecar", &[], "file_provider")?)?);
    }
    if args.measures(Part::Memory) {
        eprintln!("bench: the cache with a million devices");
        rows(&example("sidecar", &[], "cache_memory")?, &mut report)?;
    }
    Ok(report)
}

/// Measures the CPU of requests. The scenarios take turns, so that other load on the machine slows all of them.
async fn cpu_of_requests(args: &Args, place: &mut Place, mut signer: Signer, report: &mut Report) -> anyhow::Result<Signer> {
    let count = usize::try_from(args.rate * args.seconds)?;
    let processes = place.processes();
    let scenarios = args.scenarios();
    let mut pools = Vec::new();
    for scenario in &scenarios {
        pools.push(Pool::open(&place.client(scenario.listener)).await?);
        report.scenarios.push((scenario.name.to_string(), Vec::new()));
    }
    for round in 0..=args.rounds {
        // The first round warms V8 and the caches up, and is not counted.
        let count = if round == 0 { count.min(2_000) } else { count };
        eprintln!("bench: {}", if round == 0 { "warming up".to_owned() } else { format!("round {round} of {}", args.rounds) });
        for ((scenario, pool), (_, costs)) in scenarios.iter().zip(&pools).zip(&mut report.scenarios) {
            let decided = place.decided().await;
            let (usage, own) = (Usage::start(&processes)?, cpu::used(std::process::id())?);
            let (outcome, back) = load::run(pool, signer, scenario.wanted, args.rate, count).await?;
            signer = back;
            let own = cpu::used(std::process::id())?.saturating_sub(own);
            let [envoy, sidecar, server] = usage.stop()?.try_into().ok().context("three processes")?;
            let asked = place.decided().await - decided;
            check(&scenario.name, &outcome, &mut report.mistakes);
            let expected = if scenario.listener.asks_the_sidecar() && scenario.wanted != Wanted::Forged { count } else { 0 };
            if (asked - expected as f64).abs() > 0.5 {
                report.mistakes.push(format!("{}: the sidecar was asked {asked} times for {expected}", scenario.name));
            }
            let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
            let service = if scenario.listener.asks_the_server() { server } else { sidecar };
            if round > 0 {
                costs.push(Cost { envoy: each(envoy), service: each(service), generator: each(own) });
            }
        }
    }
    judge(report);
    Ok(signer)
}

/// Measures this release and the one in the folder, which take turns. Each round has processes of its own.
async fn releases(args: &Args, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let both = Both::new(args.wasm.as_deref(), folder)?;
    let count = usize::try_from(args.rate * args.seconds)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        eprintln!("bench: this release and the one in {}, round {round} of {}", folder.display(), args.rounds);
        let mut running = both.start(round % 2 == 0).await?;
        // These requests warm V8 and the caches up, and are not counted.
        running.ask(args.rate, count.min(2_000), &mut report.mistakes).await?;
        let [our, their] = running.ask(args.rate, count, &mut report.mistakes).await?;
        ours.push(our);
        theirs.push(their);
    }
    report.rows.extend(releases::rows(folder, &ours, &theirs));
    report.scenarios.extend(releases::NAMES.map(str::to_owned).into_iter().zip([ours, theirs]));
    Ok(())
}

fn judge(report: &mut Report) {
    let of = |name: &str| report.scenarios.iter().find(|(known, _)| *known == name).map(|(_, costs)| costs.as_slice()).unwrap_or_default();
    let (direct, ext_authz) = (of("direct_response"), of("ext_authz"));
    let (allowed, forged) = (of("Stepward, allowed"), of("Stepward, forged"));
    let against = |ours: &[Cost], theirs: &[Cost]| median(ours.iter().zip(theirs).map(|(ours, theirs)| ours.both() / theirs.both()));
    let envoy = |ours: &[Cost], theirs: &[Cost]| median(ours.iter().zip(theirs).map(|(ours, theirs)| ours.envoy / theirs.envoy));
    let both = |costs: &[Cost]| median(costs.iter().map(|cost| cost.both()));
    let alone = |costs: &[Cost]| median(costs.iter().map(|cost| cost.envoy));
    let bound = |most: Option<f64>| most.map_or_else(|| ", beside".to_owned(), |most| format!(" ≤ {most:.2} ×"));
    let mut rows = Vec::new();
    for (name, costs, most) in [
        ("ext_authz asking the same sidecar", of("ext_authz, sidecar"), Some(0.9)),
        ("ext_authz asking a server that allows everything and records nothing", ext_authz, None),
    ] {
        let ratio = against(allowed, costs);
        if ratio.is_finite() {
            rows.push(Row {
                budget: format!("CPU of an allowed webhook, with ten checks and its record{} {name}", bound(most)),
                measured: format!("{ratio:.2} × ({:.0} µs, {:.0} µs)", both(allowed), both(costs)),
                holds: most.map(|most| ratio <= most),
            });
        }
    }
    for (name, costs) in [
        ("direct_response, and the sidecar sees none", direct),
        ("a bare filter, which waits for the body, reads nothing and answers", of("bare filter")),
    ] {
        let ratio = envoy(forged, costs);
        if ratio.is_finite() {
            rows.push(Row::figure(
                format!("CPU of a forged webhook, beside {name}"),
                format!("{ratio:.2} × ({:.0} µs, {:.0} µs)", alone(forged), alone(costs)),
            ));
        }
    }
    let ratio = against(forged, allowed);
    if ratio.is_finite() {
        rows.push(Row::new(
            "CPU of a forged webhook ≤ 0.55 × an allowed one",
            format!("{ratio:.2} × ({:.0} µs, {:.0} µs)", both(forged), both(allowed)),
            ratio <= 0.55,
        ));
    }
    let guard = of("guard, sidecar");
    for (name, costs) in [("nobody is asked", direct), ("a server is asked that allows everything", of("guard, allowing"))] {
        let ratio = against(guard, costs);
        if ratio.is_finite() {
            rows.push(Row::figure(
                format!("CPU of a request that ext_authz lets through by Stepward, beside one where {name}"),
                format!("{ratio:.2} × ({:.0} µs, {:.0} µs)", both(guard), both(costs)),
            ));
        }
    }
    report.rows.extend(rows);
}

/// Largest delay of requests at the 99th percentile; a larger one is a fault of the machine, not of Stepward.
const LATE: Duration = Duration::from_millis(2);

async fn latency(args: &Args, place: &Place, mut signer: Signer, report: &mut Report) -> anyhow::Result<()> {
    let pool = Pool::open(&place.client(Listener::Stepward)).await?;
    let mut rate = args.highest_rate;
    loop {
        let (outcome, back) = load::run(&pool, signer, Wanted::Allowed, rate, usize::try_from(rate * 3)?).await?;
        signer = back;
        check("latency", &outcome, &mut report.mistakes);
        let late = Outcome::quantile(&outcome.lateness, 0.99);
        eprintln!("bench: at {rate}/s the 99th percentile leaves {late:.0?} late");
        if late <= LATE || rate <= 250 {
            break;
        }
        rate /= 2;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of requests")]
    let count = (f64::from(rate) * args.minutes * 60.0) as usize;
    eprintln!("bench: latency at {rate}/s for {} minutes", args.minutes);
    let own = cpu::used(std::process::id())?;
    let (outcome, _) = load::run(&pool, signer, Wanted::Allowed, rate, count).await?;
    let own = cpu::used(std::process::id())?.saturating_sub(own).as_secs_f64() * 1e6 / count as f64;
    check("latency", &outcome, &mut report.mistakes);
    let at = |quantile| Outcome::quantile(&outcome.latencies, quantile).as_secs_f64() * 1e3;
    let (half, most, late) = (at(0.5), at(0.99), Outcome::quantile(&outcome.lateness, 0.99).as_secs_f64() * 1e3);
    report.rows.push(Row::new(
        format!("{count} webhooks at {rate}/s: none lost, p50 ≤ 1 ms, p99 ≤ 8 ms"),
        format!(
            "{} lost, p50 {half:.2} ms, p99 {most:.2} ms (99 % left within {late:.2} ms; generator {own:.0} µs each)",
            outcome.lost + outcome.wrong
        ),
        outcome.lost + outcome.wrong == 0 && half <= 1.0 && most <= 8.0,
    ));
    Ok(())
}

async fn lookups(place: &mut Place, report: &mut Report) -> anyhow::Result<()> {
    const CALLS: usize = 16_000;
    let (sidecar, server) = (place.deployment.sidecar().id(), place.server.id());
    let ours = lookup::connect(&place.deployment.path("run/query.sock")).await?;
    let empty = lookup::connect(&place.deployment.path("run/authz.sock")).await?;
    let asked = place.management.server.lookups().len();
    for (call, name, least) in [(Call::Lookup, "Lookup", 0.7), (Call::Check, "Check with ten checks", 0.4)] {
        eprintln!("bench: {name} beside an empty method");
        let mut costs = Vec::new();
        for round in 0..=5 {
            let theirs = lookup::per_call(server, &empty, call, Of::Empty, CALLS).await?;
            let pair = (theirs, lookup::per_call(sidecar, &ours, call, Of::Sidecar, CALLS).await?);
            if round > 0 {
                costs.push(pair);
            }
        }
        let ratio = median(costs.iter().map(|(empty, ours)| empty.as_secs_f64() / ours.as_secs_f64()));
        let [empty, ours] =
            [median(costs.iter().map(|cost| cost.0.as_secs_f64() * 1e6)), median(costs.iter().map(|cost| cost.1.as_secs_f64() * 1e6))];
        report.rows.push(Row::new(
            format!("PostureService.{name}, cached ≥ {least:.2} × as many as an empty tonic method, for equal CPU"),
            format!("{ratio:.2} × ({ours:.1} µs, {empty:.1} µs)"),
            ratio >= least,
        ));
    }
    let asked = place.management.server.lookups().len() - asked;
    if asked > 0 {
        report.mistakes.push(format!("the device management was asked {asked} times for what is cached"));
    }
    Ok(())
}

fn sizes(place: &Place, report: &mut Report) -> anyhow::Result<()> {
    let wasm = std::fs::metadata(e2e::tools::filter())?.len();
    report.rows.push(Row::new("wasm module ≤ 400 KB", format!("{:.0} KB", wasm as f64 / 1e3), wasm <= 400_000));
    let idle = place.idle_memory;
    report.rows.push(Row::new("sidecar idle ≤ 40 MiB", format!("{:.1} MiB", idle as f64 / f64::from(1 << 20)), idle <= 40 << 20));
    Ok(())
}

/// Adds the rows that a measurement printed, one in each line.
fn rows(text: &str, report: &mut Report) -> anyhow::Result<()> {
    for line in text.lines() {
        report.rows.push(serde_json::from_str(line).with_context(|| format!("this is no row: {line}"))?);
    }
    Ok(())
}

/// Runs a package's own measurement in a process of its own, and returns its output.
fn example(package: &str, features: &[&str], name: &str) -> anyhow::Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--release", "-p", package, "--example", name])
        .args(features)
        .current_dir(e2e::tools::root())
        .output()
        .context("start cargo")?;
    // A measurement with a broken bound prints it, and exits with 1.
    ensure!(
        output.status.success() || output.status.code() == Some(1) && !output.stdout.is_empty(),
        "{name} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn file_provider_rows(text: &str) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut format = "";
    for line in text.lines() {
        let figures: Vec<f64> = line
            .split([' ', '(', ')', ','])
            .filter(|word| !word.is_empty())
            .filter_map(|word| word.trim_end_matches(':').parse().ok())
            .collect();
        let mut row = |budget: &str, unit: &str, measured: Option<&f64>, bound: Option<&f64>| {
            let (measured, bound) = measured.zip(bound).with_context(|| format!("no figures in `{line}`"))?;
            rows.push(Row::new(
                format!("file provider, {format}: {budget} ≤ {bound}{unit}"),
                format!("{measured}{unit}"),
                measured <= bound,
            ));
            anyhow::Ok(())
        };
        if let Some((name, _)) = line.split_once(": ").filter(|(name, _)| ["Json", "Csv"].contains(name)) {
            format = name;
        } else if line.starts_with("load ") {
            row("load of a million devices", " s", figures.first(), figures.get(1))?;
        } else if line.starts_with("memory at rest") {
            row("memory at rest", " MB", figures.first(), figures.last())?;
        } else if line.starts_with("lookup of the same number") {
            let mut last = figures.iter().rev();
            let bound = last.next();
            row("lookup of a million beside of 1,000", " ×", last.next(), bound)?;
        }
    }
    ensure!(rows.len() == 6, "the file provider's measurement printed:\n{text}");
    Ok(rows)
}

fn print(report: &Report) {
    println!("CPU for one request at {}/s, median of the rounds (lowest to highest), in µs\n", report.requests_per_second);
    println!("| scenario           | Envoy              | sidecar or server  | both  | generator |");
    println!("|--------------------|--------------------|--------------------|-------|-----------|");
    for (name, costs) in &report.scenarios {
        let figure = |cost: fn(&Cost) -> f64| {
            let low = costs.iter().map(cost).fold(f64::INFINITY, f64::min);
            let high = costs.iter().map(cost).fold(0.0, f64::max);
            format!("{:5.1} ({low:.1} to {high:.1})", median(costs.iter().map(cost)))
        };
        let alone = |cost: fn(&Cost) -> f64| median(costs.iter().map(cost));
        println!(
            "| {name:18} | {:18} | {:18} | {:5.1} | {:9.1} |",
            figure(|cost| cost.envoy),
            figure(|cost| cost.service),
            alone(|cost| cost.both()),
            alone(|cost| cost.generator)
        );
    }
    println!("\n{}", table(&report.rows));
}
