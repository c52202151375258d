//! What one flush of the journal costs on each database, through the [`Store`](stepwell::store::Store):
//! deltas of 64 runs, and 64 creations. `iter_custom` leaves making the batches out of the time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use stepwell::clock::Clock;
use stepwell::domain::agent::{Agent, ManagedBy};
use stepwell::domain::ids::{NodeId, RunId, WorkspaceId};
use stepwell::domain::run::{RunConfig, RunStatus};
use stepwell::domain::usage::Usage;
use stepwell::store::{
    Append, AppendOutcome, Batch, BatchOutcome, CreateOutcome, NewRun, OpenOptions, RunBody,
    RunRow, SharedStore, open,
};
use tokio::runtime::Runtime;

use crate::postgres;
use crate::texts::{at, delta, queued};

/// Runs in a batch.
const RUNS: usize = 64;
/// Deltas of each.
const DELTAS: i32 = 10;

/// A node that writes.
struct Writer {
    store: SharedStore,
    node_id: NodeId,
    clock: Clock,
    number: i64,
}

impl Writer {
    async fn new(url: &str) -> Self {
        let store = open(url, OpenOptions::default()).await.unwrap();
        let clock = Clock::system();
        let agent = Agent {
            agent_id: "bench".parse().unwrap(),
            settings: serde_json::from_str(r#"{"model":"bench/bench"}"#).unwrap(),
            version: 1,
            managed_by: ManagedBy::Api,
            archived_at: None,
            created_at: at(1),
            updated_at: at(1),
        };
        store.insert_agent(WorkspaceId::DEFAULT, &agent, None).await.unwrap();
        store.prepare_days().await.unwrap();
        let node_id = NodeId::from_uuid(clock.uuid());
        store.register_node(node_id, clock.now()).await.unwrap();
        Self { store, node_id, clock, number: 0 }
    }

    /// A run that is born claimed by this node.
    fn run(&self) -> NewRun {
        let run_id = self.clock.run_id();
        NewRun {
            row: RunRow {
                run_id,
                workspace_id: WorkspaceId::DEFAULT,
                agent_id: "bench".parse().unwrap(),
                agent_version: 1,
                status: RunStatus::Queued,
                node_id: Some(self.node_id),
                rev: 1,
                epoch: 1,
                due_at: None,
                crashes: 0,
                fact_seq: 1,
                steps_completed: 0,
                usage: Usage::default(),
                cost: None,
                children_cost: None,
                status_message: None,
                conversation_id: None,
                parent_run_id: None,
                root_run_id: None,
                forked_from_run_id: None,
                end_user_id: None,
                past: None,
                cost_ceiling: None,
                created_at: at(1),
                started_at: None,
                completed_at: None,
            },
            body: RunBody {
                model: "bench/bench".to_owned(),
                config: RunConfig::default(),
                max_steps: 20,
                estimated_cost: None,
                metadata: BTreeMap::new(),
            },
            first: queued().entry(run_id, 1, at(1)).unwrap(),
            copied: Vec::new(),
            turn: None,
            key: None,
        }
    }

    fn runs(&self) -> Vec<NewRun> {
        (0..RUNS).map(|_| self.run()).collect()
    }

    fn batch(&mut self, creates: Vec<NewRun>, appends: Vec<Append>) -> Batch {
        self.number += 1;
        let (node_id, number) = (self.node_id, self.number);
        Batch { node_id, lane: 0, number, at: self.clock.now(), creates, appends }
    }

    /// Only the flush counts.
    async fn timed(&self, batch: &Batch) -> Duration {
        let began = Instant::now();
        let BatchOutcome { creates, appends, .. } = self.store.flush(batch).await.unwrap();
        let took = began.elapsed();
        assert!(creates.iter().all(|outcome| *outcome == CreateOutcome::Created));
        assert!(appends.iter().all(|outcome| *outcome == AppendOutcome::Written));
        took
    }

    async fn creations(&mut self, times: u64) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            let batch = self.batch(self.runs(), Vec::new());
            took += self.timed(&batch).await;
        }
        took
    }

    async fn deltas(&mut self, times: u64) -> Duration {
        let runs = self.runs();
        let run_ids: Vec<RunId> = runs.iter().map(|run| run.row.run_id).collect();
        let batch = self.batch(runs, Vec::new());
        self.timed(&batch).await;
        let (mut took, mut seq) = (Duration::ZERO, 1);
        for _ in 0..times {
            let append = |run_id: &RunId| Append {
                run_id: *run_id,
                rev: 1,
                entries: (1..=DELTAS).map(|n| delta(*run_id, seq + n)).collect(),
                update: None,
            };
            let appends = run_ids.iter().map(append).collect();
            let batch = self.batch(Vec::new(), appends);
            took += self.timed(&batch).await;
            seq += DELTAS;
        }
        took
    }
}

/// A folder that goes when this is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Made when it is used first: criterion skips what its filter leaves out, and then nobody needs a cluster.
async fn writer_on(name: &str, sqlite: &str) -> Writer {
    match name {
        "sqlite" => Writer::new(sqlite).await,
        _ => Writer::new(&postgres::empty_database().await).await,
    }
}

pub fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let folder =
        Folder(std::env::temp_dir().join(format!("stepwell-micro-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let sqlite = format!("sqlite://{}", folder.0.join("stepwell.db").display());
    let mut group = criterion.benchmark_group("flush");
    group.sample_size(20);
    for name in ["sqlite", "postgres"] {
        let mut writer = None;
        group.throughput(Throughput::Elements(RUNS as u64 * DELTAS as u64));
        group.bench_function(format!("{name}, 64 runs x 10 deltas"), |b| {
            b.iter_custom(|times| {
                let writer =
                    writer.get_or_insert_with(|| runtime.block_on(writer_on(name, &sqlite)));
                runtime.block_on(writer.deltas(times))
            });
        });
        group.throughput(Throughput::Elements(RUNS as u64));
        group.bench_function(format!("{name}, 64 creations"), |b| {
            b.iter_custom(|times| {
                let writer =
                    writer.get_or_insert_with(|| runtime.block_on(writer_on(name, &sqlite)));
                runtime.block_on(writer.creations(times))
            });
        });
        if let Some(writer) = writer {
            runtime.block_on(writer.store.close());
        }
    }
    group.finish();
}
