use stepwell::domain::run::RunStatus;
use stepwell::domain::usage::Usage;
use stepwell::store::{
    AppendOutcome, Batch, GuestDecision, Owner, RunUpdate, SharedStore, StoreError,
};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    facts_and_deltas_of_an_append_are_one_log,
    an_append_changes_the_row_as_its_update_says,
    deltas_alone_leave_the_row_alone,
    a_fenced_writer_cannot_append,
    an_owner_whose_claim_went_cannot_append,
    a_missed_append_does_not_fail_its_batch,
    one_row_that_cannot_be_fails_the_whole_batch,
    a_run_may_be_created_and_go_on_in_one_batch,
    a_driver_that_parks_lets_go_and_says_when,
    crashes_are_forgotten_when_a_step_is_over,
    texts_come_back_to_the_byte,
    a_batch_that_is_in_is_resolved_to_what_it_did,
    a_batch_that_is_not_in_is_resolved_to_nothing,
);

async fn start(store: &SharedStore) {
    add_agent(store, "a").await;
    create(store, vec![driven_run(1), driven_run(2)]).await;
}

async fn facts_and_deltas_of_an_append_are_one_log(store: SharedStore) {
    start(&store).await;
    let run = run_id(1);
    let entries = vec![running(run, 2), delta(run, 3, "a"), running(run, 4), delta(run, 5, "b")];
    let update = Some(update(RunStatus::Running, 4));
    assert_eq!(append_to(&store, 1, 1, entries.clone(), update).await, AppendOutcome::Written);
    let mut whole = vec![queued(run)];
    whole.extend(entries);
    assert_eq!(log(&store, 1).await, whole);
    let facts = store.read_facts(HOME, run, 0).await.unwrap();
    assert_eq!(facts.iter().map(|f| f.seq).collect::<Vec<_>>(), [1, 2, 4]);
    assert_eq!(store.load_run(HOME, run).await.unwrap().unwrap().last_seq, 5);
    assert_eq!(log(&store, 2).await.len(), 1);
}

async fn an_append_changes_the_row_as_its_update_says(store: SharedStore) {
    start(&store).await;
    let before = row(&store, 1).await;
    let change = update(RunStatus::Running, 2);
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], Some(change.clone())).await;
    let mut expected = before.clone();
    expected.status = RunStatus::Running;
    expected.fact_seq = 2;
    expected.usage = Usage::new(10, 3, 5, 2);
    expected.cost = change.cost;
    expected.status_message = change.status_message;
    expected.started_at = change.started_at;
    assert_eq!(row(&store, 1).await, expected);
    // What is none in the update is none in the row.
    let nothing = RunUpdate {
        cost: None,
        status_message: None,
        started_at: None,
        ..update(RunStatus::Running, 3)
    };
    append_to(&store, 1, 1, vec![running(run_id(1), 3)], Some(nothing)).await;
    let after = row(&store, 1).await;
    assert_eq!((after.cost, after.status_message, after.started_at), (None, None, None));
    assert_eq!(row(&store, 2).await, before_of(2));
}

fn before_of(n: u32) -> stepwell::store::RunRow {
    driven_run(n).row
}

async fn deltas_alone_leave_the_row_alone(store: SharedStore) {
    start(&store).await;
    let before = row(&store, 1).await;
    let entries = vec![delta(run_id(1), 2, "a"), delta(run_id(1), 3, "b")];
    assert_eq!(append_to(&store, 1, 1, entries, None).await, AppendOutcome::Written);
    assert_eq!(row(&store, 1).await, before);
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap().unwrap().last_seq, 3);
}

async fn a_fenced_writer_cannot_append(store: SharedStore) {
    start(&store).await;
    let before = row(&store, 1).await;
    let entries = vec![running(run_id(1), 2), delta(run_id(1), 3, "x")];
    let change = || Some(update(RunStatus::Running, 2));
    for rev in [0, 2] {
        let outcome = append_to(&store, 1, rev, entries.clone(), change()).await;
        assert_eq!(outcome, AppendOutcome::Missed);
    }
    // The right fence in the wrong hands.
    let stranger =
        Batch { node_id: node(2), ..batch(vec![], vec![append(1, 1, entries.clone(), change())]) };
    assert_eq!(store.flush(&stranger).await.unwrap().appends, [AppendOutcome::Missed]);
    // A run that is not there.
    assert_eq!(append_to(&store, 77, 1, entries, change()).await, AppendOutcome::Missed);
    assert_eq!(row(&store, 1).await, before);
    assert_eq!(log(&store, 1).await, [queued(run_id(1))]);
}

async fn an_owner_whose_claim_went_cannot_append(store: SharedStore) {
    start(&store).await;
    assert!(store.release(node(1), run_id(1), 1, at(60), None).await.unwrap());
    let claims = store.claim_due(node(2), at(100), 10).await.unwrap();
    assert_eq!(claims.len(), 1);
    let outcome = append_to(&store, 1, 1, vec![delta(run_id(1), 2, "late")], None).await;
    assert_eq!(outcome, AppendOutcome::Missed);
    let new_owner = Batch {
        node_id: node(2),
        ..batch(vec![], vec![append(1, claims[0].rev, vec![delta(run_id(1), 2, "new")], None)])
    };
    assert_eq!(store.flush(&new_owner).await.unwrap().appends, [AppendOutcome::Written]);
    assert_eq!(log(&store, 1).await, [queued(run_id(1)), delta(run_id(1), 2, "new")]);
}

async fn a_missed_append_does_not_fail_its_batch(store: SharedStore) {
    start(&store).await;
    let appends = vec![
        append(1, 5, vec![running(run_id(1), 2)], Some(update(RunStatus::Running, 2))),
        append(2, 1, vec![running(run_id(2), 2)], Some(update(RunStatus::Running, 2))),
    ];
    let outcome = store.flush(&batch(vec![new_run(3)], appends)).await.unwrap();
    assert_eq!(outcome.appends, [AppendOutcome::Missed, AppendOutcome::Written]);
    assert_eq!(outcome.creates.len(), 1);
    assert_eq!(log(&store, 1).await.len(), 1);
    assert_eq!(log(&store, 2).await, [queued(run_id(2)), running(run_id(2), 2)]);
    assert_eq!(log(&store, 3).await, [queued(run_id(3))]);
}

async fn one_row_that_cannot_be_fails_the_whole_batch(store: SharedStore) {
    start(&store).await;
    // A seq exists once: this one is taken by `run.queued`.
    let appends = vec![
        append(1, 1, vec![running(run_id(1), 1)], Some(update(RunStatus::Running, 1))),
        append(2, 1, vec![delta(run_id(2), 2, "good")], None),
    ];
    let refused = store.flush(&batch(vec![new_run(3)], appends.clone())).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    assert_eq!(log(&store, 2).await.len(), 1);
    assert_eq!(store.load_run(HOME, run_id(3)).await.unwrap(), None);
    assert_eq!(row(&store, 1).await, before_of(1));
    // Bisected, the good half goes in.
    let outcome = store.flush(&batch(vec![new_run(3)], appends[1..].to_vec())).await.unwrap();
    assert_eq!(outcome.appends, [AppendOutcome::Written]);
}

async fn a_run_may_be_created_and_go_on_in_one_batch(store: SharedStore) {
    add_agent(&store, "a").await;
    let appends = vec![
        append(1, 1, vec![running(run_id(1), 2)], Some(update(RunStatus::Running, 2))),
        append(2, 0, vec![running(run_id(2), 2)], Some(update(RunStatus::Running, 2))),
    ];
    let creates = vec![driven_run(1), new_run(2)];
    let outcome = store.flush(&batch(creates, appends)).await.unwrap();
    // The second one is nobody's, so nobody can drive it.
    assert_eq!(outcome.appends, [AppendOutcome::Written, AppendOutcome::Missed]);
    assert_eq!(log(&store, 1).await, [queued(run_id(1)), running(run_id(1), 2)]);
    assert_eq!(row(&store, 1).await.status, RunStatus::Running);
    assert_eq!(row(&store, 2).await, new_run(2).row);
}

async fn a_driver_that_parks_lets_go_and_says_when(store: SharedStore) {
    start(&store).await;
    let parks = |due_at| RunUpdate {
        owner: Owner::Nobody { due_at },
        ..update(RunStatus::RequiresAction, 2)
    };
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], Some(parks(Some(at(500))))).await;
    append_to(&store, 2, 1, vec![running(run_id(2), 2)], Some(parks(None))).await;
    let (first, second) = (row(&store, 1).await, row(&store, 2).await);
    assert_eq!((first.node_id, first.due_at, first.rev), (None, Some(at(500)), 1));
    assert_eq!((second.node_id, second.due_at), (None, None));
    // It was let go: the old fence opens nothing any more.
    let outcome = append_to(&store, 1, 1, vec![delta(run_id(1), 3, "x")], None).await;
    assert_eq!(outcome, AppendOutcome::Missed);
    let claims = store.claim_due(node(2), at(500), 10).await.unwrap();
    assert_eq!(claims.iter().map(|c| c.run_id).collect::<Vec<_>>(), [run_id(1)]);
}

async fn crashes_are_forgotten_when_a_step_is_over(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut crashed = driven_run(1);
    crashed.row.crashes = 2;
    create(&store, vec![crashed]).await;
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], Some(update(RunStatus::Running, 2))).await;
    assert_eq!(row(&store, 1).await.crashes, 2);
    let step = RunUpdate { steps_completed: 1, ..update(RunStatus::Running, 3) };
    append_to(&store, 1, 1, vec![running(run_id(1), 3)], Some(step)).await;
    assert_eq!(row(&store, 1).await.crashes, 0);
}

async fn texts_come_back_to_the_byte(store: SharedStore) {
    start(&store).await;
    let long = "long 😀 ".repeat(40_000);
    let texts =
        ["", "\u{0}", "a\u{0}b", "😀", "\"\\/\u{8}\u{c}\n\r\t", "\u{fffd}\u{10ffff}", &long];
    let entries: Vec<_> = (2..).zip(texts).map(|(seq, text)| delta(run_id(1), seq, text)).collect();
    append_to(&store, 1, 1, entries.clone(), None).await;
    assert_eq!(log(&store, 1).await[1..], entries);
    let driveable = store.load_driveable(node(1), run_id(1)).await.unwrap().unwrap();
    let bytes: usize = log(&store, 1).await.iter().map(|entry| entry.data.len()).sum();
    assert_eq!(driveable.log_bytes, bytes as u64);
}

async fn a_batch_that_is_in_is_resolved_to_what_it_did(store: SharedStore) {
    start(&store).await;
    let mut stale = new_run(4);
    stale.row.agent_version = 9;
    let mut keyed = new_run(5);
    keyed.key = Some(key("k", "the run of the key"));
    let mut late = new_run(6);
    late.key = Some(key("k", "another run"));
    let appends = vec![
        append(1, 1, vec![running(run_id(1), 2), delta(run_id(1), 3, "x")], None),
        append(2, 9, vec![running(run_id(2), 2)], None),
    ];
    let written = batch(vec![new_run(3), stale, keyed, late], appends);
    let outcome = store.flush(&written).await.unwrap();
    assert_eq!(store.resolve(&written).await.unwrap(), Some(outcome.clone()));
    // It stays so when somebody else has written since.
    let decision = GuestDecision::Append {
        facts: vec![cancelling(run_id(1), 4)],
        update: Box::new(update(RunStatus::Cancelling, 4)),
    };
    visit(&store, 1, None, decision).await.unwrap();
    assert_eq!(store.resolve(&written).await.unwrap(), Some(outcome));
}

async fn a_batch_that_is_not_in_is_resolved_to_nothing(store: SharedStore) {
    start(&store).await;
    let lost = batch(vec![new_run(3)], vec![append(1, 1, vec![delta(run_id(1), 2, "x")], None)]);
    assert_eq!(store.resolve(&lost).await.unwrap(), None);
    assert_eq!(log(&store, 1).await.len(), 1);
    // Its bytes may go in under another number.
    let again = Batch { number: lost.number + 1_000_000, ..lost };
    let outcome = store.flush(&again).await.unwrap();
    assert_eq!(outcome.appends, [AppendOutcome::Written]);
}
