//! A store on a PostgreSQL server beside one in a SQLite file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use store::scripted::Cluster;
use store::{Settings, Store, Wanted};

use crate::cost::{Cost, median};
use crate::releases::Both;
use crate::report::Row;

/// Most CPU of the sidecar for a webhook with a store on a server, as a factor of that with a file.
const MOST: f64 = 1.3;

/// Longest 99th percentile with a store on a server.
const SLOWEST: Duration = Duration::from_millis(8);

/// The load of each round: requests a second, and their number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) rate: u32,
    pub(crate) count: usize,
}

/// The costs of a webhook with either store, and their rows in the table.
pub(crate) struct Measured {
    pub(crate) rows: [Row; 3],
    pub(crate) costs: [Vec<Cost>; 2],
}

/// Measures an allowed webhook with either store, in turn. Each round has processes of its own.
pub(crate) async fn webhooks(wasm: Option<&Path>, rounds: usize, load: Load, mistakes: &mut Vec<String>) -> anyhow::Result<Measured> {
    let cluster = Cluster::start(&[]).await.context("start a PostgreSQL server: tools/setup postgres")?;
    cluster.run("postgres", "create database stepward").await?;
    let both = Both::of_stores(wasm, &cluster.url("stepward"))?;
    let (mut costs, mut slowest) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 1..=rounds {
        eprintln!("bench: a store on PostgreSQL beside one on SQLite, round {round} of {rounds}");
        let mut running = both.start(round % 2 == 0).await?;
        // These requests warm V8 and the caches up, and are not counted.
        running.ask(load.rate, load.count.min(2_000), mistakes).await?;
        let _ = running.slowest();
        let of_both = running.ask(load.rate, load.count, mistakes).await?;
        for (costs, cost) in costs.iter_mut().zip(of_both) {
            costs.push(cost);
        }
        for (slowest, of_one) in slowest.iter_mut().zip(running.slowest()) {
            slowest.push(of_one.as_secs_f64() * 1e3);
        }
    }
    Ok(Measured { rows: rows(&costs, &slowest), costs })
}

fn rows([file, server]: &[Vec<Cost>; 2], slowest: &[Vec<f64>; 2]) -> [Row; 3] {
    let ratio = |cost: fn(&Cost) -> f64| median(file.iter().zip(server).map(|(file, server)| cost(server) / cost(file)));
    let each = |cost: fn(&Cost) -> f64| [file, server].map(|costs| median(costs.iter().map(cost)));
    let (sidecar, [of_file, of_server]) = (ratio(|cost| cost.service), each(|cost| cost.service));
    let both = ratio(|cost| cost.both());
    let [slow_file, slow_server] = slowest.each_ref().map(|slowest| median(slowest.iter().copied()));
    [
        Row::new(
            format!("CPU of the sidecar for an allowed webhook with a store on PostgreSQL ≤ {MOST:.1} × that with one on SQLite"),
            format!("{sidecar:.2} × ({of_server:.0} µs, {of_file:.0} µs)"),
            sidecar <= MOST,
        ),
        Row::figure("… Envoy and sidecar", format!("{both:.2} ×")),
        Row::new(
            format!("99th percentile of an allowed webhook with a store on PostgreSQL ≤ {} ms", SLOWEST.as_millis()),
            format!("{slow_server:.2} ms; on SQLite {slow_file:.2} ms"),
            slow_server <= SLOWEST.as_secs_f64() * 1e3,
        ),
    ]
}

/// Lists the decisions of one device among ten million, on both backends.
pub(crate) async fn decisions() -> anyhow::Result<Vec<Row>> {
    let (folder, cluster) = (tempfile::tempdir()?, Cluster::start(&["max_wal_size=16GB"]).await?);
    let file = Settings { path: Some(folder.path().join("stepward.db")), max_decisions: 100_000_000, ..Settings::none() };
    let server = Settings { server: Some(cluster.named("postgres")?), max_decisions: 100_000_000, ..Settings::none() };
    let mut rows = Vec::new();
    for (name, settings) in [("SQLite", file), ("PostgreSQL", server)] {
        eprintln!("bench: writing ten million decisions on {name}");
        let store = Store::open(&settings, Arc::<AtomicU64>::default()).await?;
        if settings.server.is_some() {
            cluster.run("postgres", POSTGRES).await?;
        } else {
            store::scripted::run(&store, SQLITE).await?;
        }
        let mut longest = Duration::ZERO;
        for number in [0_u32, 1, 4_999, 9_999] {
            let wanted = Wanted { device: Some(format!("DEVICE{number}")), limit: 100, ..Wanted::default() };
            let began = Instant::now();
            let found = store.decisions(&wanted).await?;
            longest = longest.max(began.elapsed());
            anyhow::ensure!(found.len() == 100, "{name}: {} decisions of DEVICE{number}", found.len());
        }
        rows.push(Row::new(
            format!("the last 100 decisions of one device among ten million on {name} ≤ 50 ms"),
            format!("{:.1} ms", longest.as_secs_f64() * 1e3),
            longest <= Duration::from_millis(50),
        ));
        store.close().await;
    }
    Ok(rows)
}

/// A thousand decisions of each of ten thousand devices, in turn. Ids are of the form that the store makes, and ordered by time.
const POSTGRES: &str = "insert into stepward.decisions (id, device, webhook, decision, code, inputs, caller, caller_digest, record)
    select '01K' || lpad(number::text, 23, '0'), 'DEVICE' || number % 10000, 'one', 'allow', 'allowed', repeat('ab', 32),
        'dns:ca.example.org', null, '{\"decision\":\"allow\",\"device\":{\"identifier\":\"DEVICE\",\"kind\":\"serial\",\"trust\":\"attested\"}}'
    from generate_series(1, 10000000) as number; analyze stepward.decisions";

const SQLITE: &str = "insert into decisions (id, device, webhook, decision, code, record)
    with recursive numbers (number) as (select 1 union all select number + 1 from numbers where number < 10000000)
    select '01K' || printf('%023d', number), 'DEVICE' || number % 10000, 'one', 'allow', 'allowed',
        '{\"decision\":\"allow\",\"device\":{\"identifier\":\"DEVICE\",\"kind\":\"serial\",\"trust\":\"attested\"}}'
    from numbers";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecar_alone_is_bounded_by_the_median_of_the_rounds_and_so_is_the_slowest() {
        let costs = |service: [f64; 3]| service.map(|service| Cost { envoy: 100.0, service, generator: 1.0 }).to_vec();
        let of = |server: [f64; 3], slow: f64| rows(&[costs([100.0; 3]), costs(server)], &[vec![1.0; 3], vec![slow; 3]]);
        let [cpu, both, slowest] = of([129.0, 130.0, 900.0], 8.0);
        assert_eq!((cpu.measured.as_str(), cpu.holds), ("1.30 × (130 µs, 100 µs)", Some(true)));
        assert_eq!((both.measured.as_str(), both.holds), ("1.15 ×", None));
        assert_eq!((slowest.measured.as_str(), slowest.holds), ("8.00 ms; on SQLite 1.00 ms", Some(true)));
        let [cpu, _, slowest] = of([131.0, 131.0, 900.0], 8.1);
        assert_eq!((cpu.holds, slowest.holds), (Some(false), Some(false)));
    }
}
