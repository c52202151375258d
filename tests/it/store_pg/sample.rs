//! Agents, runs and events to write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use stepwell::clock::Clock;
use stepwell::domain::agent::{Agent, ManagedBy};
use stepwell::domain::event::{Entry, Event, EventType, StatusChanged};
use stepwell::domain::ids::{CallId, NodeId, RunId, WorkspaceId};
use stepwell::domain::money::Usd;
use stepwell::domain::run::{ActionType, OpenAction, RequiredAction, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::domain::usage::Usage;
use stepwell::store::{
    Append, Batch, CreateOutcome, IdempotencyKey, NewKey, NewRun, Owner, RunBody, RunRow,
    RunUpdate, Store, StoreError, Written,
};

pub const WS: WorkspaceId = WorkspaceId::DEFAULT;
pub const NOW: Timestamp = Timestamp::from_millis(1_795_340_613_042);

pub fn node() -> NodeId {
    NodeId::from_uuid(Clock::system().uuid())
}

pub fn agent(name: &str, version: i32) -> Agent {
    Agent {
        agent_id: name.parse().expect("an agent id"),
        settings: serde_json::from_value(serde_json::json!({"model": "builtin/echo"}))
            .expect("settings"),
        version,
        managed_by: ManagedBy::Api,
        archived_at: None,
        created_at: NOW,
        updated_at: NOW,
    }
}

/// Enters the agent `a` in version 1.
pub async fn with_agent(store: &dyn Store) {
    let done = store.insert_agent(WS, &agent("a", 1), None).await.expect("an agent");
    assert_eq!(done, Written::Done(true));
}

pub fn run(owner: Option<NodeId>) -> NewRun {
    let run_id = Clock::system().run_id();
    NewRun {
        row: RunRow {
            run_id,
            workspace_id: WS,
            agent_id: "a".parse().expect("an agent id"),
            agent_version: 1,
            status: RunStatus::Queued,
            node_id: owner,
            rev: 1,
            epoch: 1,
            due_at: owner.is_none().then_some(NOW),
            crashes: 0,
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
            created_at: NOW,
            started_at: None,
            completed_at: None,
        },
        body: RunBody {
            model: "builtin/echo".to_owned(),
            config: serde_json::from_value(serde_json::json!({})).expect("a config"),
            max_steps: 20,
            estimated_cost: None,
            metadata: BTreeMap::new(),
        },
        // The store does not read events: any fact will do.
        first: fact(run_id, 1),
        copied: Vec::new(),
        turn: None,
        key: None,
    }
}

pub fn key(name: &str, create: &NewRun) -> NewKey {
    NewKey {
        key: IdempotencyKey {
            workspace_id: WS,
            scope: "POST /v1/agents/{agent_id}/runs",
            key: name.to_owned(),
            fingerprint: [7; 32],
        },
        resource: create.row.run_id.to_string(),
        created_at: NOW,
    }
}

pub fn fact(run_id: RunId, seq: i32) -> Entry {
    Event::RunRunning(StatusChanged { status: RunStatus::Running })
        .entry(run_id, seq, NOW)
        .expect("JSON")
}

pub fn delta(run_id: RunId, seq: i32) -> Entry {
    Entry::delta(EventType::MessageDelta, run_id, seq, NOW, 1, "word \0 ").expect("JSON")
}

pub fn update(fact_seq: i32) -> RunUpdate {
    RunUpdate {
        status: RunStatus::Running,
        fact_seq,
        steps_completed: 0,
        usage: Usage::new(10, 0, 20, 0),
        cost: None,
        children_cost: Some(Usd::ZERO),
        parent_run_id: None,
        status_message: Some("Working".to_owned()),
        started_at: Some(NOW),
        completed_at: None,
        actions: None,
        spoken: None,
        owner: Owner::Keep,
    }
}

/// One fact with its row.
pub fn facts(run_id: RunId, seq: i32) -> Append {
    Append { run_id, rev: 1, entries: vec![fact(run_id, seq)], update: Some(update(seq)) }
}

/// One fact, with which the run begins to ask for an approval.
pub fn asking(run_id: RunId, seq: i32) -> Append {
    let action = RequiredAction {
        action_type: ActionType::Approval,
        run_id,
        call_id: CallId::from_uuid(Clock::system().uuid()),
        tool: "pay".to_owned(),
        arguments: serde_json::json!({}),
        expires_at: None,
    };
    let open = OpenAction { action, created_at: NOW };
    let update = RunUpdate { actions: Some(vec![open]), ..update(seq) };
    Append { update: Some(update), ..facts(run_id, seq) }
}

/// Deltas with these seqs.
pub fn deltas(run_id: RunId, seqs: std::ops::Range<i32>) -> Append {
    Append { run_id, rev: 1, entries: seqs.map(|s| delta(run_id, s)).collect(), update: None }
}

/// A batch under a number of its own.
pub fn batch(node_id: NodeId, creates: Vec<NewRun>, appends: Vec<Append>) -> Batch {
    static NUMBER: AtomicI64 = AtomicI64::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Batch { node_id, lane: 0, number, at: NOW, creates, appends }
}

/// Asks again as long as the answer is that it cannot be just now: on a busy machine a neighbour may hold a
/// lock for longer than anybody waits for one. That is no deadlock, which the database counts by itself.
pub async fn at_last<T, F>(mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    for _ in 0..MOST_TRIES {
        match ask().await {
            Ok(answer) => return answer,
            Err(StoreError::Unavailable(error)) => println!("not now: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("it cannot be, {MOST_TRIES} times")
}

/// How often something is asked for: each time, two seconds pass before it is refused.
pub const MOST_TRIES: usize = 20;

/// A run that this node drives.
pub async fn driven(store: &dyn Store, node_id: NodeId) -> RunId {
    let create = run(Some(node_id));
    let run_id = create.row.run_id;
    let done = store.flush(&batch(node_id, vec![create], vec![])).await.expect("a flush");
    assert_eq!(done.creates, [CreateOutcome::Created]);
    run_id
}

/// The seqs of a run's log.
pub async fn seqs(store: &dyn Store, run_id: RunId) -> Vec<i32> {
    let range =
        stepwell::store::LogRange { above: 0, below: i32::MAX, limit: 1000, descending: false };
    let log = store.read_log(WS, run_id, range).await.expect("a page").expect("a run");
    log.iter().map(|entry| entry.seq).collect()
}
