//! Small runs, agents and batches to write.

use std::collections::BTreeMap;
use std::sync::Arc;

use stepwell::domain::agent::{Agent, AgentSettings, ManagedBy};
use stepwell::domain::event::{Entry, Event, EventType, RunEnded, RunQueued, StatusChanged};
use stepwell::domain::ids::{AgentId, NodeId, RunId, WorkspaceId};
use stepwell::domain::message::Input;
use stepwell::domain::money::Usd;
use stepwell::domain::run::{RunConfig, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::domain::usage::Usage;
use stepwell::store::{
    Append, AppendOutcome, Batch, BatchOutcome, CreateOutcome, GuestDecision, GuestOutcome,
    GuestWrite, IdempotencyKey, LogRange, NewKey, NewRun, Owner, Result, RunBody, RunRow,
    RunUpdate, SharedStore,
};
use uuid::Uuid;

pub const HOME: WorkspaceId = WorkspaceId::DEFAULT;
pub const ELSEWHERE: WorkspaceId = WorkspaceId(2);
pub const ALL: LogRange = LogRange { above: 0, below: i32::MAX, limit: 10_000, descending: false };

pub fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_795_340_613_000 + millis)
}

pub fn run_id(n: u32) -> RunId {
    RunId::from_uuid(Uuid::from_u128(0x019a_0c5e_7d2a_7000_8000_0000_0000_0000 + u128::from(n)))
}

pub fn node(n: u32) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(0xbeef_0000 + u128::from(n)))
}

pub fn agent_id(name: &str) -> AgentId {
    name.parse().unwrap()
}

pub fn agent(name: &str) -> Agent {
    let settings: AgentSettings =
        serde_json::from_str(r#"{"model":"builtin/echo","description":"says \u0000 😀"}"#).unwrap();
    Agent {
        agent_id: agent_id(name),
        settings,
        version: 1,
        managed_by: ManagedBy::Api,
        archived_at: None,
        created_at: at(1),
        updated_at: at(1),
    }
}

pub fn key(name: &str, resource: &str) -> NewKey {
    NewKey {
        key: IdempotencyKey {
            workspace_id: HOME,
            scope: "POST /v1/agents/{agent_id}/runs",
            key: name.to_owned(),
            fingerprint: [7; 32],
        },
        resource: resource.to_owned(),
        created_at: at(2),
    }
}

pub fn entry(run: RunId, seq: i32, event: &Event) -> Entry {
    event.entry(run, seq, at(i64::from(seq))).unwrap()
}

pub fn queued(run: RunId) -> Entry {
    let event = Event::RunQueued(RunQueued {
        status: RunStatus::Queued,
        agent_id: agent_id("a"),
        agent_version: 1,
        model: "builtin/echo".to_owned(),
        input: Input::Text("hello \u{0} 😀 \"quoted\" \\ \n".to_owned()),
        conversation_id: None,
        parent_run_id: None,
        forked_from_run_id: None,
        depth: 0,
    });
    entry(run, 1, &event)
}

pub fn running(run: RunId, seq: i32) -> Entry {
    entry(run, seq, &Event::RunRunning(StatusChanged { status: RunStatus::Running }))
}

pub fn cancelling(run: RunId, seq: i32) -> Entry {
    entry(run, seq, &Event::RunCancelling(StatusChanged { status: RunStatus::Cancelling }))
}

pub fn delta(run: RunId, seq: i32, text: &str) -> Entry {
    Entry::delta(EventType::MessageDelta, run, seq, at(i64::from(seq)), 1, text).unwrap()
}

pub fn completed(run: RunId, seq: i32) -> Entry {
    let event = Event::RunCompleted(RunEnded {
        status: RunStatus::Completed,
        result: None,
        error: None,
        incomplete_reason: None,
        usage: Usage::default(),
        cost_usd: None,
        steps_completed: 1,
    });
    entry(run, seq, &event)
}

/// A run that nobody owns, due at once.
pub fn new_run(n: u32) -> NewRun {
    let run = run_id(n);
    NewRun {
        row: RunRow {
            run_id: run,
            workspace_id: HOME,
            agent_id: agent_id("a"),
            agent_version: 1,
            status: RunStatus::Queued,
            node_id: None,
            rev: 0,
            epoch: 0,
            due_at: Some(at(i64::from(n))),
            crashes: 0,
            fact_seq: 1,
            steps_completed: 0,
            usage: Usage::default(),
            cost: Some(Usd::ZERO),
            children_cost: Some(Usd::ZERO),
            status_message: None,
            conversation_id: None,
            parent_run_id: None,
            root_run_id: None,
            forked_from_run_id: None,
            end_user_id: None,
            past: None,
            cost_ceiling: None,
            created_at: at(i64::from(n)),
            started_at: None,
            completed_at: None,
        },
        body: RunBody {
            model: "builtin/echo".to_owned(),
            config: RunConfig { max_steps: Some(3), ..RunConfig::default() },
            max_steps: 3,
            estimated_cost: Some(Usd::from_micros(12)),
            metadata: BTreeMap::new(),
        },
        first: queued(run),
        copied: Vec::new(),
        turn: None,
        key: None,
    }
}

/// A run that is born claimed by node 1.
pub fn driven_run(n: u32) -> NewRun {
    let mut new = new_run(n);
    new.row.node_id = Some(node(1));
    new.row.rev = 1;
    new.row.epoch = 1;
    new.row.due_at = None;
    new
}

pub fn update(status: RunStatus, fact_seq: i32) -> RunUpdate {
    RunUpdate {
        status,
        fact_seq,
        steps_completed: 0,
        usage: Usage::new(10, 3, 5, 2),
        cost: Some(Usd::from_micros(77)),
        children_cost: Some(Usd::ZERO),
        parent_run_id: None,
        status_message: Some("thinks 😀".to_owned()),
        started_at: Some(at(50)),
        completed_at: None,
        actions: None,
        spoken: None,
        owner: Owner::Keep,
    }
}

/// The update with which a run ends.
pub fn ends(fact_seq: i32) -> RunUpdate {
    RunUpdate {
        steps_completed: 1,
        status_message: None,
        completed_at: Some(at(1_000)),
        owner: Owner::Nobody { due_at: None },
        ..update(RunStatus::Completed, fact_seq)
    }
}

pub fn append(n: u32, rev: i32, entries: Vec<Entry>, update: Option<RunUpdate>) -> Append {
    Append { run_id: run_id(n), rev, entries, update }
}

pub fn batch(creates: Vec<NewRun>, appends: Vec<Append>) -> Batch {
    Batch { node_id: node(1), lane: 0, number: next_number(), at: at(9), creates, appends }
}

/// Numbers of flushes are used once.
fn next_number() -> i64 {
    static NEXT: std::sync::atomic::AtomicI64 = std::sync::atomic::AtomicI64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

pub async fn add_agent(store: &SharedStore, name: &str) {
    store.insert_agent(HOME, &agent(name), None).await.unwrap();
}

/// Creates runs of agent `a`, which must all come to be.
pub async fn create(store: &SharedStore, runs: Vec<NewRun>) {
    let expected = vec![CreateOutcome::Created; runs.len()];
    let outcome = store.flush(&batch(runs, vec![])).await.unwrap();
    assert_eq!(outcome.creates, expected);
}

/// Appends to one run, as node 1.
pub async fn append_to(
    store: &SharedStore,
    n: u32,
    rev: i32,
    entries: Vec<Entry>,
    update: Option<RunUpdate>,
) -> AppendOutcome {
    let outcome: BatchOutcome =
        store.flush(&batch(vec![], vec![append(n, rev, entries, update)])).await.unwrap();
    outcome.appends[0]
}

pub async fn row(store: &SharedStore, n: u32) -> RunRow {
    store.load_run(HOME, run_id(n)).await.unwrap().unwrap().row
}

pub async fn log(store: &SharedStore, n: u32) -> Vec<Entry> {
    store.read_log(HOME, run_id(n), ALL).await.unwrap().unwrap()
}

/// A guest of run `n` that always decides this.
pub async fn visit(
    store: &SharedStore,
    n: u32,
    key: Option<NewKey>,
    decision: GuestDecision,
) -> Result<GuestOutcome> {
    let decide = Arc::new(move |_: &stepwell::store::Locked| Ok(decision.clone()));
    store.guest(GuestWrite { workspace_id: HOME, run_id: run_id(n), key, decide }).await
}
