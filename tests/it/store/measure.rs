//! Figures, printed when asked for: `cargo test --release --test it measure -- --ignored --nocapture`.
//! Nothing is asserted about time: other people use the machine too.

use std::sync::Arc;
use std::time::Instant;

use stepwell::domain::run::RunStatus;
use stepwell::store::sqlite::Options;
use stepwell::store::{Batch, Owner, RunUpdate, SharedStore};

use super::fixtures::*;
use crate::support::databases::{Directory, open_sqlite};

const WORDS: &str = "a few merged tokens of a model's answer, as they wait for one flush together";

/// Processor milliseconds of this process (user and system).
fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0.0))
        .collect();
    // utime and stime, in ticks of 10 ms.
    (fields[11] + fields[12]) * 10.0
}

/// The events of a run of one step: 1 + 5 facts and one merged delta.
async fn whole_runs(store: &SharedStore, rounds: u32, at_once: u32) -> (u32, u32) {
    let mut flushes = 0;
    for round in 0..rounds {
        let runs: Vec<u32> = (0..at_once).map(|i| round * at_once + i).collect();
        let creates = runs.iter().map(|n| driven_run(*n)).collect();
        let begun = runs
            .iter()
            .map(|n| {
                let id = run_id(*n);
                let facts = vec![running(id, 2), running(id, 3)];
                append(*n, 1, facts, Some(update(RunStatus::Running, 3)))
            })
            .collect();
        store.flush(&batch(creates, begun)).await.unwrap();
        let ended = runs
            .iter()
            .map(|n| {
                let id = run_id(*n);
                let entries =
                    vec![delta(id, 4, WORDS), running(id, 5), running(id, 6), completed(id, 7)];
                append(*n, 1, entries, Some(ends(7)))
            })
            .collect();
        store.flush(&batch(vec![], ended)).await.unwrap();
        flushes += 2;
    }
    (rounds * at_once, flushes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn whole_runs_a_second() {
    for page_size in [4096, 1024, 4096, 1024] {
        for at_once in [16, 64] {
            let directory = Directory::new();
            let options = Options { page_size, ..Options::default() };
            let store: SharedStore = Arc::new(open_sqlite(&directory, options).await);
            add_agent(&store, "a").await;
            let (cpu, began) = (cpu_ms(), Instant::now());
            let (runs, flushes) = whole_runs(&store, 6_400 / at_once, at_once).await;
            let (cpu, took) = (cpu_ms() - cpu, began.elapsed());
            let wal = directory.wal_bytes();
            store.close().await;
            let file = std::fs::metadata(directory.file()).unwrap().len();
            println!(
                "page {page_size}, {at_once} at once: {:.0} runs/s, {:.0} flushes/s, {:.3} ms cpu \
                 a run, log {:.1} MiB, file {:.1} KiB a run",
                f64::from(runs) / took.as_secs_f64(),
                f64::from(flushes) / took.as_secs_f64(),
                cpu / f64::from(runs),
                wal as f64 / 1_048_576.0,
                file as f64 / 1024.0 / f64::from(runs),
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn delta_rows_a_second() {
    for page_size in [4096, 1024] {
        for rows in [100_u32, 500, 1_000] {
            let directory = Directory::new();
            let options = Options { page_size, ..Options::default() };
            let store: SharedStore = Arc::new(open_sqlite(&directory, options).await);
            add_agent(&store, "a").await;
            let runs = rows.min(64);
            create(&store, (0..runs).map(driven_run).collect()).await;
            let flushes = 60_000 / rows;
            let mut seq = 2;
            let batches: Vec<Batch> = (0..flushes)
                .map(|_| {
                    let each = rows.div_ceil(runs);
                    let appends = (0..runs)
                        .map(|n| {
                            let entries =
                                (0..each).map(|i| delta(run_id(n), seq + i as i32, WORDS));
                            append(n, 1, entries.collect(), None)
                        })
                        .collect();
                    seq += each as i32;
                    batch(vec![], appends)
                })
                .collect();
            let written: usize =
                batches.iter().flat_map(|b| &b.appends).map(|a| a.entries.len()).sum();
            let (cpu, began) = (cpu_ms(), Instant::now());
            for batch in &batches {
                store.flush(batch).await.unwrap();
            }
            let (cpu, took) = (cpu_ms() - cpu, began.elapsed());
            println!(
                "page {page_size}, {} rows a flush: {:.0} rows/s, {:.1} us cpu a row, log {:.1} MiB",
                written / batches.len(),
                written as f64 / took.as_secs_f64(),
                cpu * 1000.0 / written as f64,
                directory.wal_bytes() as f64 / 1_048_576.0,
            );
            store.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn the_log_under_load_with_readers() {
    let directory = Directory::new();
    let store: SharedStore = Arc::new(open_sqlite(&directory, Options::default()).await);
    add_agent(&store, "a").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let readers = (0..4_u32).map(|n| {
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut reads = 0_u64;
            while !stop.is_cancelled() {
                // Until the run is there the answer is none, which is a read as well.
                let _ = store.read_log(HOME, run_id(n), ALL).await.unwrap();
                reads += 1;
            }
            reads
        }
    });
    let began = Instant::now();
    let write = async {
        let (runs, _) = whole_runs(&store, 200, 64).await;
        stop.cancel();
        runs
    };
    let (runs, reads) = tokio::join!(write, futures_util::future::join_all(readers));
    println!(
        "{:.0} runs/s beside {:.0} reads/s: log {:.1} MiB",
        f64::from(runs) / began.elapsed().as_secs_f64(),
        reads.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64(),
        directory.wal_bytes() as f64 / 1_048_576.0,
    );
    store.close().await;
}

/// The row that a park leaves, so that claims are measured on what they meet.
fn parked(fact_seq: i32) -> RunUpdate {
    RunUpdate {
        owner: Owner::Nobody { due_at: Some(at(1)) },
        ..update(RunStatus::Queued, fact_seq)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn claims_and_reads_a_second() {
    let directory = Directory::new();
    let store: SharedStore = Arc::new(open_sqlite(&directory, Options::default()).await);
    add_agent(&store, "a").await;
    create(&store, (0..2_000).map(driven_run).collect()).await;
    let appends =
        (0..2_000).map(|n| append(n, 1, vec![running(run_id(n), 2)], Some(parked(2)))).collect();
    store.flush(&batch(vec![], appends)).await.unwrap();
    let began = Instant::now();
    for _ in 0..125 {
        assert_eq!(store.claim_due(node(2), at(9), 16).await.unwrap().len(), 16);
    }
    println!("{:.0} claims/s in sixteens", 2_000.0 / began.elapsed().as_secs_f64());
    let (cpu, began) = (cpu_ms(), Instant::now());
    for n in 0..2_000 {
        store.load_run(HOME, run_id(n)).await.unwrap();
    }
    println!(
        "{:.0} load_run/s one after the other, {:.3} ms cpu each",
        2_000.0 / began.elapsed().as_secs_f64(),
        (cpu_ms() - cpu) / 2_000.0
    );
    store.close().await;
}
