//! Measures what a cache takes: `cargo run --release -p sidecar --example cache_memory [--devices N] [--flood N]`.
//!
//! A list of a million devices fills the cache, as `[provider.<name>.sync]` does. What the process then holds more than before,
//! less the records themselves as the cache encodes them (postcard, without a name for any field), is what the cache costs for
//! each device. Then ten million identifiers that nobody has are asked for, under the limits that are the default, and the
//! devices that were in use before must still need no call.
//!
//! Prints a line for each bound, in JSON: `budget`, `measured`, `holds`. Exits with 1 where one does not hold.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use async_trait::async_trait;
use clap::Parser;
use engine::cache::{Cache, Lifetimes, Limits, Schedule, Settings, Swept, Terms, Wanted};
use inventory::{Answer, Finding, Inventory, Listed, Listing, Question, Source, Unavailable, Way};
use posture::identity::{DeviceId, IdentifierKind};
use posture::record::{Compliance, Fact, Field, Fields, Form, Group, Record, User};
use posture::time::UnixTime;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

#[derive(Clone, Debug, Parser)]
struct Args {
    /// Devices in the cache
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    devices: u64,
    /// Lookups of identifiers that nobody has
    #[arg(long, default_value_t = 10_000_000)]
    flood: u64,
    /// Devices in use
    #[arg(long, default_value_t = 10_000)]
    hot: u64,
    /// Webhooks ask by UDID too, so that each device is in the cache twice
    #[arg(long)]
    udid: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let held = runtime.block_on(measure(&args))?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn measure(args: &Args) -> anyhow::Result<bool> {
    let inventory = Arc::new(Fleet { devices: args.devices, calls: AtomicU64::new(0) });
    let (cache, kinds) = (cache(args, &inventory), kinds(args));
    let encoded = encoded_size(args.devices)?;
    let empty = memory()?;
    let Swept { seen, .. } = cache.sweep(true).await?;
    let keys = args.devices * kinds.len() as u64;
    ensure!(seen == args.devices && cache.len() == keys, "{} keys of {keys}, {seen} devices of {}", cache.len(), args.devices);
    let full = memory()?;
    let bound = kinds.len() as f64 * EACH;
    let by = kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" and ");
    let each = (full.saturating_sub(empty) as f64 - encoded as f64) / args.devices as f64;
    let encoded = encoded as f64 / args.devices as f64;
    let mut held = row(
        &format!("cache of {} devices, asked for by {by}: memory beyond the encoded record ≤ {bound:.0} B each", args.devices),
        &format!("{each:.0} B (encoded record {encoded:.0} B)"),
        each <= bound,
    );
    let hot = args.hot.min(args.devices);
    served(&cache, hot).await?;
    let began = Instant::now();
    flood(&cache, args.flood).await?;
    let took = began.elapsed();
    let guesses = inventory.calls();
    // The budget of the first minute, and of each minute that the flood took.
    let most = u64::from(limits().unknown_per_minute) * (2 + took.as_secs() / 60);
    let grown = memory()?.saturating_sub(full) as f64 / 1e6;
    held &= row(
        &format!("flood of {} unknown identifiers: memory grows by ≤ {MOST_GROWN} MB", args.flood),
        &format!("{grown:.1} MB ({:.2} µs a lookup)", took.as_secs_f64() * 1e6 / args.flood.max(1) as f64),
        grown <= MOST_GROWN,
    );
    held &= row(&format!("the flood costs ≤ {most} calls"), &format!("{guesses}"), guesses <= most);
    let without = served(&cache, hot).await?;
    let calls = inventory.calls() - guesses;
    held &= row(
        &format!("{hot} devices in use need no call after the flood"),
        &format!("{without} served, {calls} calls"),
        without == hot && calls == 0,
    );
    Ok(held)
}

fn cache(args: &Args, inventory: &Arc<Fleet>) -> Arc<Cache> {
    let kinds = kinds(args);
    let most = args.devices * kinds.len() as u64;
    let lifetimes = Lifetimes { max_entries: most.max(Lifetimes::default().max_entries), ..Lifetimes::default() };
    let settings = Settings { cache: lifetimes, limits: limits(), connections: 10, sync: Some(Schedule::default()) };
    let inventory: Arc<dyn Inventory> = Arc::<Fleet>::clone(inventory);
    let cache = Arc::new(Cache::new("fleet", settings, inventory, Arc::default(), Handle::current()));
    cache.want(Wanted { fields: Fields::of(&[Field::Managed, Field::Groups, Field::UserEmail]), kinds });
    cache
}

/// Returns the kinds of identifiers that devices are asked for by: the serial number always.
fn kinds(args: &Args) -> Vec<IdentifierKind> {
    [IdentifierKind::Serial].into_iter().chain(args.udid.then_some(IdentifierKind::Udid)).collect()
}

fn limits() -> Limits {
    Limits::default()
}

/// Returns how many of the first devices are served without a call.
async fn served(cache: &Arc<Cache>, devices: u64) -> anyhow::Result<u64> {
    let mut without = 0;
    for device in 0..devices {
        let looked = cache.lookup(&question(&serial(device))?, Terms::default()).await;
        without += u64::from(matches!(looked.answer, Answer::Found(_)) && looked.source == Source::Cached);
    }
    Ok(without)
}

/// Asks for unknown identifiers that look as the others do, by several tasks at once, as webhooks come.
async fn flood(cache: &Arc<Cache>, lookups: u64) -> anyhow::Result<()> {
    let task = |first: u64| {
        let cache = Arc::clone(cache);
        async move {
            for number in (first..lookups).step_by(TASKS) {
                let looked = cache.lookup(&question(&guess(number))?, Terms::default()).await;
                let refused = matches!(looked.answer, Answer::NotFound | Answer::Unavailable(Unavailable::OutOfBudget));
                ensure!(refused, "an identifier that nobody has was answered with {:?}", looked.answer);
            }
            Ok(())
        }
    };
    let tasks: Vec<_> = (0..TASKS as u64).map(|first| tokio::spawn(task(first))).collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn question(serial: &str) -> anyhow::Result<Question> {
    let device = DeviceId::new(IdentifierKind::Serial, serial).map_err(|denial| anyhow!("{}", denial.message))?;
    let need = Fields::of(&[Field::Managed, Field::Groups]);
    Ok(Question { device, need, hint: None, deadline: Instant::now() + Duration::from_millis(3400), way: Way::Webhook })
}

/// An inventory that makes up its records when it is asked, and so takes no memory itself.
#[derive(Debug)]
struct Fleet {
    devices: u64,
    calls: AtomicU64,
}

impl Fleet {
    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Inventory for Fleet {
    fn fields(&self) -> Fields {
        record(0).known()
    }

    fn asks(&self, _: IdentifierKind) -> bool {
        true
    }

    async fn lookup(&self, _: &Question) -> Answer {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Answer::NotFound
    }

    fn listing(&self) -> Listing {
        Listing::Whole
    }

    async fn list(&self, _: Option<UnixTime>, _: Fields, pages: mpsc::Sender<Vec<Record>>) -> Result<Listed, Unavailable> {
        let mut next = 0;
        while next < self.devices {
            let end = (next + PAGE).min(self.devices);
            if pages.send((next..end).map(record).collect()).await.is_err() {
                return Ok(Listed { complete: false });
            }
            next = end;
        }
        Ok(Listed { complete: true })
    }

    async fn probe(&self, _: Instant) -> Vec<Finding> {
        Vec::new()
    }
}

/// Returns what a device management tells of a laptop and of who has it.
fn record(device: u64) -> Record {
    let text = |text: String| Fact::Value(text);
    let at = |ago: u64| Fact::Value(LAST_NIGHT.saturating_sub(Duration::from_secs(ago)));
    let group = |number: u64| Group {
        id: (100 + number).to_string(),
        name: format!("{} Macs", NAMES.iter().cycle().nth(usize::try_from(number % 8).unwrap_or_default()).unwrap_or(&"All")),
    };
    Record {
        provider_id: (10_000 + device).to_string(),
        form: Fact::Value(Form::Computer),
        serial: text(serial(device)),
        udid: text(format!("00008103-{device:016X}")),
        name: text(format!("mac-{device}")),
        platform: text("Mac".to_owned()),
        os_version: text("15.4.1".to_owned()),
        os_build: text("24E263".to_owned()),
        model: text("Mac15,3".to_owned()),
        managed: Fact::Value(true),
        supervised: Fact::Value(true),
        compliance: Fact::Value(Compliance::Compliant),
        groups: Fact::Value((device..device + 5).map(group).collect()),
        lost: Fact::Value(false),
        encrypted: Fact::Value(true),
        user: User {
            id: text(format!("user{device}")),
            name: text("Vera Nachname".to_owned()),
            email: text(format!("user{device}@example.org")),
            department: text("Engineering".to_owned()),
            ..User::none()
        },
        enrolled_at: at(device % 1_000_000),
        last_seen: at(device % 86_400),
        inventory_at: at(device % 86_400),
        ..Record::default()
    }
}

fn serial(device: u64) -> String {
    format!("C02{:09X}", device * 7_919)
}

/// Returns an identifier that no device has, of the form of a serial number: those begin with C.
fn guess(number: u64) -> String {
    // The finalizer of splitmix64 gives each number one of its own, in an order without order.
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    format!("G{:016X}", mixed ^ (mixed >> 31))
}

/// Returns the bytes of all records together, as the cache encodes them.
fn encoded_size(devices: u64) -> anyhow::Result<u64> {
    (0..devices).map(|device| Ok(postcard::to_allocvec(&record(device))?.len() as u64)).sum()
}

fn row(budget: &str, measured: &str, holds: bool) -> bool {
    println!("{}", json!({ "budget": budget, "measured": measured, "holds": holds }));
    holds
}

/// Returns the bytes that the kernel counts as resident for this process.
fn memory() -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("no such field")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse::<u64>()? * 1024)
}

/// Time of the last contact: 25 November 2026, in nanoseconds of the epoch.
const LAST_NIGHT: UnixTime = UnixTime::from_nanos(1_795_564_800_000_000_000);

const NAMES: [&str; 8] = ["Compliant", "Engineering", "Berlin", "Encrypted", "Managed", "Beta", "Design", "Leased"];

/// Number of records in a page, as Jamf's have.
const PAGE: u64 = 512;

/// Number of tasks that ask at once.
const TASKS: usize = 16;

/// Budget for each identifier that a device is asked for by, in bytes.
const EACH: f64 = 500.0;

/// Budget for the flood, in MB: what a hundred thousand identifiers take that are remembered as missing, were the budget to let so
/// many through.
const MOST_GROWN: f64 = 50.0;
