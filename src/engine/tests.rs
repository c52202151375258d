//! Engines on a real database, with what no server can be made to do from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::process::Command;

use crate::clock::Clock;
use crate::domain::agent::{Agent, ManagedBy};
use crate::domain::egress::Destinations;
use crate::domain::event::{Event, RunQueued};
use crate::domain::ids::{NodeId, RunId, WorkspaceId};
use crate::domain::limits;
use crate::domain::message::Input;
use crate::domain::model::{Catalogue, ModelAnswer, ModelRequest};
use crate::domain::money::Usd;
use crate::domain::retention::Retention;
use crate::domain::retry::ModelFailure;
use crate::domain::run::{RunConfig, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::usage::Usage;
use crate::egress::{Gate, Secrets};
use crate::log::Log;
use crate::models::{Model, Models, Show};
use crate::shutdown::Tasks;
use crate::store::sqlite::{Options, SqliteStore};
use crate::store::{Batch, NewRun, RunBody, RunRecord, RunRow, SharedStore};
use crate::tools::Tools;

use super::{ChildCommand, Engine, Parts};

const HOME: WorkspaceId = WorkspaceId::DEFAULT;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database with agents `echo` and `panics`, at a time that stands still: what is put off stays so.
struct Stage {
    store: SharedStore,
    clock: Clock,
    directory: std::path::PathBuf,
}

/// An engine at work.
struct Running {
    engine: Arc<Engine>,
    log: Log,
    work: Tasks,
    journal: Tasks,
}

struct Panics;

#[async_trait]
impl Model for Panics {
    async fn call(&self, _: &ModelRequest, _: &mut dyn Show) -> Result<ModelAnswer, ModelFailure> {
        panic!("on purpose")
    }
}

impl Stage {
    async fn set() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_795_340_613_000));
        let directory = std::env::temp_dir().join(format!("stepwell-engine-{}", clock.uuid()));
        std::fs::create_dir(&directory).unwrap();
        let store = SqliteStore::open(directory.join("db"), Options::default()).await.unwrap();
        store.migrate().await.unwrap();
        let stage = Self { store: Arc::new(store), clock, directory };
        stage.add_agent("echo", "builtin/echo").await;
        stage.add_agent("panics", "panics/always").await;
        stage
    }

    async fn add_agent(&self, name: &str, model: &str) {
        let settings = serde_json::json!({ "model": model });
        let agent = Agent {
            agent_id: name.parse().unwrap(),
            settings: serde_json::from_value(settings).unwrap(),
            version: 1,
            managed_by: ManagedBy::Api,
            archived_at: None,
            created_at: self.clock.now(),
            updated_at: self.clock.now(),
        };
        self.store.insert_agent(HOME, &agent, None).await.unwrap();
    }

    /// A run that is due and has lost so many drivers.
    async fn add_run(&self, agent: &str, crashes: i32) -> RunId {
        let (run_id, now) = (self.clock.run_id(), self.clock.now());
        let queued = Event::RunQueued(RunQueued {
            status: RunStatus::Queued,
            agent_id: agent.parse().unwrap(),
            agent_version: 1,
            model: String::new(),
            input: Input::Text("hello".to_owned()),
            conversation_id: None,
            parent_run_id: None,
            forked_from_run_id: None,
            depth: 0,
        });
        let row = RunRow {
            run_id,
            workspace_id: HOME,
            agent_id: agent.parse().unwrap(),
            agent_version: 1,
            status: RunStatus::Queued,
            node_id: None,
            rev: 0,
            epoch: 0,
            due_at: Some(now),
            crashes,
            fact_seq: 1,
            steps_completed: 0,
            usage: Usage::default(),
            cost: None,
            children_cost: Some(Usd::ZERO),
            status_message: None,
            conversation_id: None,
            parent_run_id: None,
            root_run_id: None,
            forked_from_run_id: None,
            end_user_id: None,
            past: None,
            cost_ceiling: None,
            created_at: now,
            started_at: None,
            completed_at: None,
        };
        let body = RunBody {
            model: String::new(),
            config: RunConfig::default(),
            max_steps: 20,
            estimated_cost: None,
            metadata: BTreeMap::new(),
        };
        let first = queued.entry(run_id, 1, now).unwrap();
        let batch = Batch {
            node_id: NodeId::from_uuid(self.clock.uuid()),
            lane: 0,
            number: 1,
            at: now,
            creates: vec![NewRun { row, body, first, copied: Vec::new(), turn: None, key: None }],
            appends: Vec::new(),
        };
        self.store.flush(&batch).await.unwrap();
        run_id
    }

    async fn start(&self, slots: usize, child: Option<ChildCommand>) -> Running {
        let node_id = NodeId::from_uuid(self.clock.uuid());
        let (log, handovers) = Log::new(self.store.clone(), self.clock.clone(), node_id, slots);
        let (work, journal) = (Tasks::new(), Tasks::new());
        log.start(&work, &journal);
        let engine = Engine::new(Parts {
            log: log.clone(),
            models: Arc::new(Models::only("panics", Arc::new(Panics))),
            catalogue: Arc::new(Catalogue::default()),
            tools: Tools::new(
                self.clock.clone(),
                Gate::new(Destinations::default()),
                Secrets::default(),
                Tasks::new(),
            ),
            slots,
            child,
            retention: Retention { run_days: 30, delta_days: 30 },
        });
        engine.start(handovers, &work).await.unwrap();
        Running { engine, log, work, journal }
    }

    async fn run(&self, run_id: RunId) -> RunRecord {
        self.store.load_run(HOME, run_id).await.unwrap().unwrap()
    }

    /// Resolves when nobody owns the run and it is put off.
    async fn put_off(&self, run_id: RunId) -> RunRecord {
        let put_off = async {
            loop {
                let run = self.run(run_id).await;
                if run.row.node_id.is_none() && run.row.due_at > Some(self.clock.now()) {
                    return run;
                }
                // A release wakes nobody.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, put_off).await.expect("the run is put off")
    }

    async fn close(self, running: Running) {
        running.engine.drain().await;
        running.work.stop();
        running.work.finish().await;
        running.journal.stop();
        running.journal.finish().await;
        self.store.close().await;
        std::fs::remove_dir_all(self.directory).unwrap();
    }
}

impl Running {
    async fn ended(&self, run_id: RunId) -> RunRecord {
        self.log.settled(HOME, run_id, PATIENCE).await.unwrap().unwrap()
    }
}

/// Children that are this program without arguments, and how often one was started.
fn children(program: &'static str) -> (Option<ChildCommand>, Arc<AtomicUsize>) {
    let started = Arc::new(AtomicUsize::new(0));
    let counted = started.clone();
    let command: ChildCommand = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Command::new(program)
    });
    (Some(command), started)
}

fn error_code(run: &RunRecord) -> String {
    let (event, _) = run.newest_fact.as_ref().unwrap().read().unwrap();
    let Event::RunFailed(end) = event else { panic!("{event:?}") };
    serde_json::to_value(end.error.unwrap().code).unwrap().as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_model_that_panics_fails_its_run_and_no_other() {
    let stage = Stage::set().await;
    let (bad, good) = (stage.add_run("panics", 0).await, stage.add_run("echo", 0).await);
    let running = stage.start(2, children("false").0).await;
    let run = running.ended(bad).await;
    assert_eq!((run.row.status, error_code(&run).as_str()), (RunStatus::Failed, "internal"));
    assert_eq!(running.ended(good).await.row.status, RunStatus::Completed);
    stage.close(running).await;
}

#[tokio::test]
async fn a_child_that_never_had_its_run_convicts_nobody() {
    // It cannot be started; it dies; it goes.
    for program in ["/nowhere/stepwell", "false", "true"] {
        let stage = Stage::set().await;
        let suspect = stage.add_run("echo", limits::SUSPECT).await;
        let (command, started) = children(program);
        let running = stage.start(1, command).await;
        let run = stage.put_off(suspect).await;
        assert_eq!((run.row.crashes, run.last_seq), (limits::SUSPECT, 1), "{program}");
        assert_eq!(started.load(Ordering::Relaxed), 1, "{program}");
        stage.close(running).await;
    }
}

#[tokio::test]
async fn a_convicted_run_is_ended_by_whoever_claims_it() {
    let stage = Stage::set().await;
    let convict = stage.add_run("echo", limits::CONVICTED).await;
    let (command, started) = children("false");
    let running = stage.start(1, command).await;
    let run = running.ended(convict).await;
    assert_eq!((run.row.status, error_code(&run).as_str()), (RunStatus::Failed, "poisoned"));
    assert_eq!(run.row.steps_completed, 0);
    assert_eq!(started.load(Ordering::Relaxed), 0);
    stage.close(running).await;
}

#[tokio::test]
async fn suspects_take_no_slot_from_innocents_and_wait_in_a_bounded_number() {
    let stage = Stage::set().await;
    let mut suspects = Vec::new();
    for _ in 0..40 {
        suspects.push(stage.add_run("echo", limits::SUSPECT).await);
    }
    let innocent = stage.add_run("echo", 0).await;
    // `cat` lives until its input ends, and never takes its run over.
    let (command, started) = children("cat");
    let running = stage.start(1, command).await;
    assert_eq!(running.ended(innocent).await.row.status, RunStatus::Completed);
    // 4 are in children, 32 wait, and the last 4 are left for later.
    for run_id in &suspects[36..] {
        stage.put_off(*run_id).await;
    }
    assert_eq!(started.load(Ordering::Relaxed), 4);
    let store = stage.store.clone();
    let node_id = running.log.journal.node_id();
    assert_eq!(store.owned(node_id).await.unwrap().len(), 36);
    // They are given back when the server stops, without a crash.
    running.engine.drain().await;
    assert_eq!(store.owned(node_id).await.unwrap(), []);
    for run_id in suspects {
        let run = stage.run(run_id).await;
        assert_eq!((run.row.crashes, run.last_seq), (limits::SUSPECT, 1));
    }
    assert_eq!(started.load(Ordering::Relaxed), 4);
    stage.close(running).await;
}
