//! Measures the file provider: `cargo run --release -p sidecar --example file_provider [devices]`, a million unless told otherwise.
//!
//! Prints the same lines for each format. Lookups are timed from the identifier as a webhook states it to the data, twice: of
//! 1,000 devices, however many there are besides, which is what a longer list costs; and of all devices, each once, where the
//! processor's caches hold nothing of what is asked for.
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use inventory::Answer;
use inventory::file::{FileProvider, Format, Settings};
use posture::identity::{DeviceId, IdentifierKind};
// Linked for its allocator, which gives memory back.
use sidecar as _;

/// Number of devices of the small list, and of devices that are asked for again and again.
const FEW: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let many = match std::env::args().nth(1) {
        Some(devices) => devices.parse().context("devices")?,
        None => 1_000_000,
    };
    let formats = [("json", Format::Json), ("csv", Format::Csv)];
    if let (Some(wanted), Some(folder)) = (std::env::args().nth(2), std::env::args().nth(3)) {
        let (_, format) = formats.into_iter().find(|(name, _)| *name == wanted).context("the format is json or csv")?;
        return measure(Path::new(&folder), format, many);
    }
    let folder = std::env::temp_dir().join(format!("stepward-file-provider-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = formats.into_iter().try_for_each(|(name, format)| {
        // The lists are written here and not in the process that is measured: an allocator keeps for a while what was given back,
        // and it would count as spare.
        for devices in [FEW, many] {
            fs::write(folder.join(devices.to_string()), text(format, devices, ""))?;
        }
        let status = Command::new(std::env::current_exe()?).args([&many.to_string(), name]).arg(&folder).status()?;
        ensure!(status.success(), "{name} was not measured");
        Ok(())
    });
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(folder: &Path, format: Format, many: usize) -> anyhow::Result<()> {
    let settings = |devices: usize| Settings::new(folder.join(devices.to_string()), format);
    let small = FileProvider::open(&settings(FEW))?;
    let large = large(&settings(many), format, many)?;
    // The lists are asked turn about, so that whatever else the machine does slows both; the best of many counts, so that it slows
    // neither.
    let spread = |devices: usize| shuffled(FEW).map(|i| serial(i * (devices / FEW))).collect::<Vec<_>>();
    let (ask_small, ask_large) = (spread(FEW), spread(many));
    let (mut best_small, mut best_large) = (Duration::MAX, Duration::MAX);
    for _ in 0..4_000 {
        best_small = best_small.min(time(&small, &ask_small)?);
        best_large = best_large.min(time(&large, &ask_large)?);
    }
    let everyone: Vec<_> = shuffled(many).map(serial).collect();
    let mut best_everyone = Duration::MAX;
    for _ in 0..5 {
        let start = cpu()?;
        time(&large, &everyone)?;
        best_everyone = best_everyone.min(cpu()?.saturating_sub(start));
    }
    println!("lookup of 1,000 devices      of {FEW:>9}: {:6.1} ns", nanoseconds(best_small, FEW));
    println!(
        "lookup of the same number    of {many:>9}: {:6.1} ns, {:.2} times as much (budget 1.10)",
        nanoseconds(best_large, FEW),
        best_large.as_secs_f64() / best_small.as_secs_f64()
    );
    println!("lookup of each device once   of {many:>9}: {:6.1} ns\n", nanoseconds(best_everyone, many));
    Ok(())
}

fn large(settings: &Settings, format: Format, devices: usize) -> anyhow::Result<FileProvider> {
    let bytes = fs::metadata(&settings.path)?.len();
    let before = memory("VmRSS")?;
    let provider = FileProvider::open(settings)?;
    // The allocator gives back what nobody has used for ten seconds.
    std::thread::sleep(Duration::from_secs(15));
    let at_rest = memory("VmRSS")?.saturating_sub(before);
    let (mut best, mut best_cpu) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let (start, start_cpu) = (Instant::now(), cpu()?);
        drop(FileProvider::open(settings)?);
        (best, best_cpu) = (best.min(start.elapsed()), best_cpu.min(cpu()?.saturating_sub(start_cpu)));
    }
    ensure!(provider.len() == devices, "{} devices of {devices}", provider.len());
    let budget = 2 * bytes + 150 * devices as u64;
    println!("{format:?}: {devices} devices, {:.1} MB", bytes as f64 / 1e6);
    println!("load                    {:.2} s (budget 5), of which {:.2} s on a processor", best.as_secs_f64(), best_cpu.as_secs_f64());
    println!("memory at rest          {:.1} MB (budget {:.1})", at_rest as f64 / 1e6, budget as f64 / 1e6);
    fs::write(&settings.path, text(format, devices, "2"))?;
    // The kernel forgets the peak so far.
    fs::write("/proc/self/clear_refs", "5")?;
    let before = memory("VmRSS")?;
    let start = Instant::now();
    provider.reload(false)?;
    println!(
        "reload                  {:.2} s, at its peak {:.1} MB more than at rest (new devices and the file: {:.1})",
        start.elapsed().as_secs_f64(),
        memory("VmHWM")?.saturating_sub(before) as f64 / 1e6,
        (at_rest + bytes) as f64 / 1e6
    );
    Ok(provider)
}

/// Returns the time to look all of them up.
fn time(provider: &FileProvider, identifiers: &[String]) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for identifier in identifiers {
        let device = DeviceId::new(IdentifierKind::Serial, black_box(identifier)).map_err(|denial| anyhow!("{}", denial.message))?;
        let answer = black_box(provider.lookup(&device));
        ensure!(matches!(answer, Answer::Found(_)), "{identifier} is not found");
    }
    Ok(start.elapsed())
}

fn nanoseconds(time: Duration, lookups: usize) -> f64 {
    time.as_secs_f64() * 1e9 / lookups as f64
}

fn serial(device: usize) -> String {
    format!("C02{:09X}", device * 7_919)
}

/// Returns all numbers below this one, in an order without order.
fn shuffled(below: usize) -> impl Iterator<Item = usize> {
    // A prime that divides none of the lengths in use visits each once.
    (0..below).map(move |i| (i * 999_983 + 12_345) % below)
}

fn text(format: Format, devices: usize, edition: &str) -> String {
    let mut text = String::from(match format {
        Format::Json => "{\"devices\":[",
        Format::Csv => "Identifier,udid,name,username,realname,email_address,department,edition\n",
    });
    for i in 0..devices {
        let serial = serial(i);
        let _ = match format {
            Format::Json => write!(
                text,
                "{}\n{{\"identifier\":\"{serial}\",\"data\":{{\"device\":{{\"udid\":\"00008103-{i:016X}\",\"name\":\"mac-{i}\"}},\
                 \"user\":{{\"username\":\"user{i}\",\"realname\":\"Vera Nachname\",\"email_address\":\"user{i}@example.org\",\
                 \"department\":\"Engineering\"}},\"edition\":\"{edition}\"}}}}",
                if i == 0 { "" } else { "," }
            ),
            Format::Csv => {
                writeln!(text, "{serial},00008103-{i:016X},mac-{i},user{i},\"Nachname, Vera\",user{i}@example.org,Engineering,{edition}")
            }
        };
    }
    if format == Format::Json {
        text.push_str("\n]}\n");
    }
    text
}

/// Returns the time that this thread had a processor. It is counted in ticks of the scheduler: nothing for what takes
/// microseconds.
fn cpu() -> anyhow::Result<Duration> {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(schedstat.split_whitespace().next().context("no figure")?.parse()?))
}

/// Returns a field of the memory's figures in bytes, as the kernel counts them for this process.
fn memory(field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse::<u64>()? * 1024)
}
