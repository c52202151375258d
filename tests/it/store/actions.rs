//! Open actions, the list of approvals, refused guests, and what forks begin with.

use serde_json::json;
use stepwell::domain::answer::Refusal;
use stepwell::domain::event::Entry;
use stepwell::domain::ids::{CallId, WorkspaceId};
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::{ActionType, OpenAction, RequiredAction, RunStatus};
use stepwell::store::{
    AppendOutcome, CreateOutcome, GuestDecision, GuestOutcome, NewRun, Owner, RunFilter, RunUpdate,
    SharedStore,
};
use uuid::Uuid;

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    open_actions_are_shown_with_their_run_until_they_are_closed,
    what_a_fenced_driver_asked_for_is_not_asked,
    open_actions_go_with_the_end_of_their_run,
    what_a_run_asks_is_shown_at_every_run_above_it_and_listed_once,
    approvals_of_all_runs_are_listed_in_pages,
    a_refused_guest_changes_nothing_and_binds_no_key,
    a_fork_begins_with_its_copies_and_any_version_of_its_agent,
    a_fork_with_a_key_is_made_once,
);

fn call(n: u32) -> CallId {
    CallId::from_uuid(Uuid::from_u128(0x019a_0c5e_7d2a_7000_9000_0000_0000_0000 + u128::from(n)))
}

fn open(run: u32, n: u32, action_type: ActionType) -> OpenAction {
    let action = RequiredAction {
        action_type,
        run_id: run_id(run),
        call_id: call(n),
        tool: "pay \u{0} 😀".to_owned(),
        arguments: json!({"a": ["\u{0}", 1.5]}),
        expires_at: Some(at(5_000)),
    };
    OpenAction { action, created_at: at(i64::from(n)) }
}

fn asks(seq: i32, actions: Vec<OpenAction>) -> RunUpdate {
    RunUpdate { actions: Some(actions), ..update(RunStatus::Running, seq) }
}

/// What somebody must answer, by the run itself and by the list of runs.
async fn shown(store: &SharedStore, n: u32) -> Vec<CallId> {
    let run = store.load_run(HOME, run_id(n)).await.unwrap().unwrap();
    let page = Page { limit: 100, from: From::Start, order: Order::Asc };
    let listed = store.list_runs(HOME, &RunFilter::default(), &page).await.unwrap();
    let again = listed.rows.into_iter().find(|run| run.row.run_id == run_id(n)).unwrap();
    assert_eq!(run.actions, again.actions);
    run.actions.iter().map(|action| action.call_id).collect()
}

async fn open_actions_are_shown_with_their_run_until_they_are_closed(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), driven_run(2)]).await;
    let (one, two) = (open(1, 1, ActionType::Approval), open(1, 2, ActionType::ToolResult));
    let change = asks(2, vec![two.clone(), one.clone()]);
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], Some(change)).await;
    let run = store.load_run(HOME, run_id(1)).await.unwrap().unwrap();
    assert_eq!(run.actions, [one.action, two.action.clone()], "in the order of the calls");
    assert_eq!(shown(&store, 2).await, []);
    // Without a word about them they stay.
    let change = update(RunStatus::Running, 3);
    append_to(&store, 1, 1, vec![running(run_id(1), 3)], Some(change)).await;
    assert_eq!(shown(&store, 1).await, [call(1), call(2)]);
    let decision = GuestDecision::Append {
        facts: vec![running(run_id(1), 4)],
        update: Box::new(asks(4, vec![two, open(1, 3, ActionType::ToolOutcome)])),
    };
    visit(&store, 1, None, decision).await.unwrap();
    assert_eq!(shown(&store, 1).await, [call(2), call(3)]);
    append_to(&store, 1, 2, vec![running(run_id(1), 5)], Some(asks(5, vec![]))).await;
    assert_eq!(shown(&store, 1).await, []);
}

async fn what_a_fenced_driver_asked_for_is_not_asked(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), driven_run(2)]).await;
    let ask = |n| Some(asks(2, vec![open(n, n, ActionType::Approval)]));
    let appends = vec![
        append(1, 7, vec![running(run_id(1), 2)], ask(1)),
        append(2, 1, vec![running(run_id(2), 2)], ask(2)),
    ];
    let outcome = store.flush(&batch(vec![], appends)).await.unwrap();
    assert_eq!(outcome.appends, [AppendOutcome::Missed, AppendOutcome::Written]);
    assert_eq!(shown(&store, 1).await, []);
    assert_eq!(shown(&store, 2).await, [call(2)]);
}

async fn open_actions_go_with_the_end_of_their_run(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let change = asks(2, vec![open(1, 1, ActionType::Approval)]);
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], Some(change)).await;
    assert_eq!(approvals(&store, HOME, From::Start, Order::Asc).await.0, [1]);
    let change = RunUpdate { actions: Some(vec![]), ..ends(3) };
    append_to(&store, 1, 1, vec![completed(run_id(1), 3)], Some(change)).await;
    assert_eq!(shown(&store, 1).await, []);
    assert_eq!(approvals(&store, HOME, From::Start, Order::Asc).await.0, [0_u32; 0]);
}

async fn what_a_run_asks_is_shown_at_every_run_above_it_and_listed_once(store: SharedStore) {
    add_agent(&store, "a").await;
    // 1 calls 2 and 3, and 2 calls 4; 5 has nothing to do with them.
    let below = |n: u32, parent: u32| {
        let mut new = driven_run(n);
        new.row.parent_run_id = Some(run_id(parent));
        new
    };
    let runs = vec![driven_run(1), below(2, 1), below(3, 1), below(4, 2), driven_run(5)];
    create(&store, runs).await;
    let ask = async |n: u32, seq: i32, calls: &[u32]| {
        let open = calls.iter().map(|c| open(n, *c, ActionType::Approval)).collect();
        append_to(&store, n, 1, vec![running(run_id(n), seq)], Some(asks(seq, open))).await;
    };
    // All in one flush, as runs of one node write.
    let together = [1, 3, 4, 5].map(|n| {
        let update = Some(asks(2, vec![open(n, n, ActionType::Approval)]));
        append(n, 1, vec![running(run_id(n), 2)], update)
    });
    store.flush(&batch(vec![], together.to_vec())).await.unwrap();
    let of = async |runs: [u32; 5]| {
        let mut all = Vec::new();
        for n in runs {
            all.push(shown(&store, n).await.iter().map(|id| number(*id)).collect::<Vec<_>>());
        }
        all
    };
    let all = [1, 2, 3, 4, 5];
    assert_eq!(of(all).await, [vec![1, 3, 4], vec![4], vec![3], vec![4], vec![5]]);
    let run = store.load_run(HOME, run_id(1)).await.unwrap().unwrap();
    assert_eq!(run.actions[2], open(4, 4, ActionType::Approval).action, "it names its own run");
    // What a run says about its own leaves those of the runs below it alone, and the other way round.
    ask(1, 3, &[]).await;
    ask(4, 3, &[4, 6]).await;
    assert_eq!(of(all).await, [vec![3, 4, 6], vec![4, 6], vec![3], vec![4, 6], vec![5]]);
    let listed = async || approvals(&store, HOME, From::Start, Order::Asc).await;
    assert_eq!(listed().await, (vec![3, 4, 5], true));
    let change = RunUpdate { actions: Some(vec![]), ..ends(4) };
    append_to(&store, 4, 1, vec![completed(run_id(4), 4)], Some(change)).await;
    assert_eq!(of(all).await, [vec![3], vec![], vec![3], vec![], vec![5]]);
    assert_eq!(listed().await, (vec![3, 5], false));
}

fn number(id: CallId) -> u32 {
    (1..100).find(|n| call(*n) == id).unwrap()
}

async fn approvals(
    store: &SharedStore,
    workspace_id: WorkspaceId,
    from: From<CallId>,
    order: Order,
) -> (Vec<u32>, bool) {
    let page = Page { limit: 3, from, order };
    let listed = store.list_approvals(workspace_id, &page).await.unwrap();
    (listed.rows.iter().map(|row| number(row.call_id)).collect(), listed.has_more)
}

async fn approvals_of_all_runs_are_listed_in_pages(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, (1..=7).map(driven_run).collect()).await;
    for n in 1..=7 {
        // Only approvals are listed.
        let actions =
            vec![open(n, n, ActionType::Approval), open(n, n + 50, ActionType::ToolResult)];
        append_to(&store, n, 1, vec![running(run_id(n), 2)], Some(asks(2, actions))).await;
    }
    let read = async |from, order| approvals(&store, HOME, from, order).await;
    assert_eq!(read(From::Start, Order::Desc).await, (vec![7, 6, 5], true));
    assert_eq!(read(From::After(call(5)), Order::Desc).await, (vec![4, 3, 2], true));
    assert_eq!(read(From::Before(call(5)), Order::Desc).await, (vec![7, 6], false));
    assert_eq!(read(From::After(call(4)), Order::Asc).await, (vec![5, 6, 7], false));
    assert_eq!(approvals(&store, ELSEWHERE, From::Start, Order::Asc).await.0, [0_u32; 0]);
    let page = Page { limit: 1, from: From::Start, order: Order::Asc };
    let first = store.list_approvals(HOME, &page).await.unwrap().rows.remove(0);
    let asked = open(1, 1, ActionType::Approval);
    assert_eq!((first.agent_id, first.created_at), (agent_id("a"), asked.created_at));
    assert_eq!((first.tool, first.arguments), (asked.action.tool, asked.action.arguments));
    assert_eq!((first.run_id, first.expires_at), (run_id(1), asked.action.expires_at));
}

async fn a_refused_guest_changes_nothing_and_binds_no_key(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let before = row(&store, 1).await;
    let new = key("k", "x");
    let refused = GuestDecision::Refuse(Refusal::NoSuchCall);
    let outcome = visit(&store, 1, Some(new.clone()), refused).await.unwrap();
    assert_eq!(outcome, GuestOutcome::Refused(Refusal::NoSuchCall));
    assert_eq!(row(&store, 1).await, before);
    assert_eq!(store.find_key(&new.key).await.unwrap(), None);
}

/// A fork of run 1, of another version of the agent than the current one.
fn fork(n: u32) -> NewRun {
    let mut new = new_run(n);
    new.row.agent_version = 7;
    new.row.forked_from_run_id = Some(run_id(1));
    new.row.fact_seq = 3;
    new.row.steps_completed = 1;
    new.copied = vec![running(run_id(n), 2), running(run_id(n), 3)];
    new
}

async fn a_fork_begins_with_its_copies_and_any_version_of_its_agent(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    // Beside an ordinary creation, an append, and one that only says that it is a fork of an agent
    // that is gone.
    let mut gone = fork(4);
    gone.row.agent_id = agent_id("nobody");
    let appends = vec![append(1, 1, vec![delta(run_id(1), 2, "a")], None)];
    let outcome = store.flush(&batch(vec![fork(2), new_run(3), gone], appends)).await.unwrap();
    let expected = [CreateOutcome::Created, CreateOutcome::Created, CreateOutcome::AgentMoved];
    assert_eq!((outcome.creates.as_slice(), outcome.appends.len()), (&expected[..], 1));
    let seqs = |log: Vec<Entry>| log.iter().map(|entry| entry.seq).collect::<Vec<_>>();
    assert_eq!(seqs(log(&store, 2).await), [1, 2, 3]);
    assert_eq!(seqs(log(&store, 3).await), [1]);
    let forked = row(&store, 2).await;
    assert_eq!((forked.agent_version, forked.steps_completed), (7, 1));
    assert_eq!(forked.forked_from_run_id, Some(run_id(1)));
    // Whoever claims it goes on behind the copies.
    store.claim_due(node(2), at(9_999), 10).await.unwrap();
    let run = store.load_driveable(node(2), run_id(2)).await.unwrap().unwrap();
    assert_eq!((run.record.last_seq, run.facts.len()), (3, 3));
    let next = append(2, run.record.row.rev, vec![running(run_id(2), 4)], None);
    let next = stepwell::store::Append {
        update: Some(RunUpdate { owner: Owner::Keep, ..update(RunStatus::Running, 4) }),
        ..next
    };
    let write = stepwell::store::Batch { node_id: node(2), ..batch(vec![], vec![next]) };
    let outcome = store.flush(&write).await.unwrap();
    assert_eq!(outcome.appends, [AppendOutcome::Written]);
    assert_eq!(seqs(log(&store, 2).await), [1, 2, 3, 4]);
}

async fn a_fork_with_a_key_is_made_once(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let keyed = |n: u32| NewRun { key: Some(key("fork", &run_id(n).to_string())), ..fork(n) };
    create(&store, vec![keyed(2)]).await;
    let outcome = store.flush(&batch(vec![keyed(3)], vec![])).await.unwrap();
    assert!(
        matches!(&outcome.creates[0], CreateOutcome::KeyTaken(row) if row.resource == run_id(2).to_string())
    );
    assert_eq!(store.load_run(HOME, run_id(3)).await.unwrap(), None);
    assert_eq!(store.read_facts(HOME, run_id(3), 0).await.unwrap(), []);
}
