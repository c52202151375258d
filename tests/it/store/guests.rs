use std::sync::{Arc, Mutex};

use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::RunStatus;
use stepwell::store::{
    AppendOutcome, CreateOutcome, GuestDecision, GuestOutcome, GuestWrite, KeyRow, Locked, Owner,
    RunFilter, RunUpdate, SharedStore, StoreError,
};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_guest_raises_rev_and_the_driver_is_behind,
    a_guest_sees_the_row_all_facts_and_the_newest_seq,
    a_guest_that_decides_nothing_changes_nothing_but_binds_its_key,
    a_guest_whose_key_is_taken_changes_nothing,
    a_guest_of_a_run_that_is_not_there_binds_no_key,
    a_decision_that_cannot_be_made_changes_nothing,
    facts_of_a_guest_must_follow_the_log,
    a_guest_makes_an_unowned_run_due_and_leaves_an_owned_one,
    a_guest_may_end_a_run_that_nobody_drives,
    guests_come_one_after_the_other,
    an_erased_run_is_gone_but_its_id_is_not_free,
    an_erased_run_keeps_its_key_and_is_no_label_any_more,
);

async fn start(store: &SharedStore) {
    add_agent(store, "a").await;
    create(store, vec![driven_run(1), new_run(2)]).await;
}

/// Asks to cancel, behind the events up to `seq`.
fn cancel(n: u32, seq: i32) -> GuestDecision {
    GuestDecision::Append {
        facts: vec![cancelling(run_id(n), seq + 1)],
        update: Box::new(update(RunStatus::Cancelling, seq + 1)),
    }
}

async fn a_guest_raises_rev_and_the_driver_is_behind(store: SharedStore) {
    start(&store).await;
    append_to(&store, 1, 1, vec![delta(run_id(1), 2, "a")], None).await;
    let outcome = visit(&store, 1, None, cancel(1, 2)).await.unwrap();
    let facts = vec![cancelling(run_id(1), 3)];
    assert_eq!(
        outcome,
        GuestOutcome::Done { node_id: Some(node(1)), appended: facts, promoted: false }
    );
    let after = row(&store, 1).await;
    assert_eq!((after.rev, after.node_id), (2, Some(node(1))));
    assert_eq!((after.status, after.fact_seq), (RunStatus::Cancelling, 3));
    let late = append_to(&store, 1, 1, vec![delta(run_id(1), 3, "b")], None).await;
    assert_eq!(late, AppendOutcome::Missed);
    // Having read again, the driver goes on behind it.
    let next = append_to(&store, 1, 2, vec![delta(run_id(1), 4, "b")], None).await;
    assert_eq!(next, AppendOutcome::Written);
    let seqs: Vec<_> = log(&store, 1).await.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
}

async fn a_guest_sees_the_row_all_facts_and_the_newest_seq(store: SharedStore) {
    start(&store).await;
    let entries = vec![running(run_id(1), 2), delta(run_id(1), 3, "a"), delta(run_id(1), 4, "b")];
    append_to(&store, 1, 1, entries, Some(update(RunStatus::Running, 2))).await;
    type Seen = (RunStatus, i32, Vec<i32>);
    let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
    let note = Arc::clone(&seen);
    let decide = Arc::new(move |locked: &Locked| {
        let facts = locked.facts.iter().map(|f| f.seq).collect();
        *note.lock().unwrap() = Some((locked.record.row.status, locked.record.last_seq, facts));
        Ok(GuestDecision::Nothing)
    });
    let write = GuestWrite { workspace_id: HOME, run_id: run_id(1), key: None, decide };
    store.guest(write).await.unwrap();
    let seen = seen.lock().unwrap().take();
    assert_eq!(seen, Some((RunStatus::Running, 4, vec![1, 2])));
}

async fn a_guest_that_decides_nothing_changes_nothing_but_binds_its_key(store: SharedStore) {
    start(&store).await;
    let before = row(&store, 1).await;
    let new = key("k", "seen");
    let outcome = visit(&store, 1, Some(new.clone()), GuestDecision::Nothing).await.unwrap();
    assert_eq!(
        outcome,
        GuestOutcome::Done { node_id: Some(node(1)), appended: vec![], promoted: false }
    );
    assert_eq!(row(&store, 1).await, before);
    let bound = store.find_key(&new.key).await.unwrap().unwrap();
    assert_eq!(bound.resource, "seen");
}

async fn a_guest_whose_key_is_taken_changes_nothing(store: SharedStore) {
    start(&store).await;
    visit(&store, 1, Some(key("k", "first")), cancel(1, 1)).await.unwrap();
    let before = row(&store, 1).await;
    let again = visit(&store, 1, Some(key("k", "second")), cancel(1, 2)).await.unwrap();
    let first = KeyRow { fingerprint: [7; 32], resource: "first".to_owned() };
    assert_eq!(again, GuestOutcome::KeyTaken(first.clone()));
    assert_eq!(row(&store, 1).await, before);
    // The key is looked at first: a replay of what deleted a run finds it, and no run.
    let absent = visit(&store, 77, Some(key("k", "third")), GuestDecision::Nothing).await;
    assert_eq!(absent.unwrap(), GuestOutcome::KeyTaken(first));
}

async fn a_guest_of_a_run_that_is_not_there_binds_no_key(store: SharedStore) {
    start(&store).await;
    let absent = visit(&store, 77, Some(key("k", "x")), GuestDecision::Nothing).await.unwrap();
    assert_eq!(absent, GuestOutcome::Absent);
    let decide = Arc::new(|_: &Locked| Ok(GuestDecision::Nothing));
    let foreign =
        GuestWrite { workspace_id: ELSEWHERE, run_id: run_id(1), key: Some(key("k", "x")), decide };
    assert_eq!(store.guest(foreign).await.unwrap(), GuestOutcome::Absent);
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), None);
}

async fn a_decision_that_cannot_be_made_changes_nothing(store: SharedStore) {
    start(&store).await;
    let before = row(&store, 1).await;
    let decide = Arc::new(|_: &Locked| Err("an event of tomorrow".to_owned()));
    let write =
        GuestWrite { workspace_id: HOME, run_id: run_id(1), key: Some(key("k", "x")), decide };
    let failed = store.guest(write).await;
    assert!(matches!(&failed, Err(StoreError::Corrupt(why)) if why == "an event of tomorrow"));
    assert_eq!(row(&store, 1).await, before);
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), None);
    // The store goes on.
    visit(&store, 1, None, cancel(1, 1)).await.unwrap();
}

async fn facts_of_a_guest_must_follow_the_log(store: SharedStore) {
    start(&store).await;
    append_to(&store, 1, 1, vec![delta(run_id(1), 2, "a")], None).await;
    // Upon the delta, and with a gap.
    for last in [1, 3] {
        let failed = visit(&store, 1, Some(key("k", "x")), cancel(1, last)).await;
        assert!(matches!(failed, Err(StoreError::Corrupt(_))), "{failed:?}");
    }
    assert_eq!(log(&store, 1).await.len(), 2);
    assert_eq!(row(&store, 1).await.rev, 1);
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), None);
}

async fn a_guest_makes_an_unowned_run_due_and_leaves_an_owned_one(store: SharedStore) {
    start(&store).await;
    for n in [1, 2] {
        let decision = GuestDecision::Append {
            facts: vec![running(run_id(n), 2)],
            update: Box::new(RunUpdate {
                owner: Owner::DueIfUnowned(at(300)),
                ..update(RunStatus::Queued, 2)
            }),
        };
        visit(&store, n, None, decision).await.unwrap();
    }
    let (owned, unowned) = (row(&store, 1).await, row(&store, 2).await);
    assert_eq!((owned.node_id, owned.due_at), (Some(node(1)), None));
    assert_eq!((unowned.node_id, unowned.due_at), (None, Some(at(300))));
    let keeps = GuestDecision::Append {
        facts: vec![running(run_id(2), 3)],
        update: Box::new(update(RunStatus::Queued, 3)),
    };
    visit(&store, 2, None, keeps).await.unwrap();
    assert_eq!(row(&store, 2).await.due_at, Some(at(300)));
}

async fn a_guest_may_end_a_run_that_nobody_drives(store: SharedStore) {
    start(&store).await;
    let decision =
        GuestDecision::Append { facts: vec![completed(run_id(2), 2)], update: Box::new(ends(2)) };
    let outcome = visit(&store, 2, None, decision).await.unwrap();
    assert!(matches!(outcome, GuestOutcome::Done { node_id: None, .. }));
    let after = store.load_run(HOME, run_id(2)).await.unwrap().unwrap();
    assert_eq!((after.row.status, after.row.due_at), (RunStatus::Completed, None));
    assert_eq!(after.newest_fact, Some(completed(run_id(2), 2)));
    assert_eq!(store.claim_due(node(2), at(9_999), 10).await.unwrap(), []);
}

async fn guests_come_one_after_the_other(store: SharedStore) {
    start(&store).await;
    let write = || {
        let decide = Arc::new(|locked: &Locked| {
            let seq = locked.record.last_seq + 1;
            Ok(GuestDecision::Append {
                facts: vec![cancelling(run_id(1), seq)],
                update: Box::new(update(RunStatus::Running, seq)),
            })
        });
        GuestWrite { workspace_id: HOME, run_id: run_id(1), key: None, decide }
    };
    let all = futures_util::future::join_all((0..16).map(|_| store.guest(write()))).await;
    assert!(all.iter().all(|outcome| matches!(outcome, Ok(GuestOutcome::Done { .. }))), "{all:?}");
    let seqs: Vec<_> = log(&store, 1).await.iter().map(|e| e.seq).collect();
    assert_eq!(seqs, (1..=17).collect::<Vec<_>>());
    assert_eq!(row(&store, 1).await.rev, 17);
}

async fn an_erased_run_is_gone_but_its_id_is_not_free(store: SharedStore) {
    start(&store).await;
    let entries = vec![delta(run_id(1), 2, "a"), completed(run_id(1), 3)];
    append_to(&store, 1, 1, entries, Some(ends(3))).await;
    let erased = visit(&store, 1, None, GuestDecision::Erase { at: at(7) }).await.unwrap();
    assert_eq!(erased, GuestOutcome::Done { node_id: None, appended: vec![], promoted: false });
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
    assert_eq!(store.read_log(HOME, run_id(1), ALL).await.unwrap(), None);
    assert_eq!(store.read_facts(HOME, run_id(1), 0).await.unwrap(), []);
    assert_eq!(store.heads(&[run_id(1)]).await.unwrap(), []);
    let page = Page { limit: 10, from: From::Start, order: Order::Asc };
    let listed = store.list_runs(HOME, &RunFilter::default(), &page).await.unwrap();
    assert_eq!(listed.rows.iter().map(|r| r.row.run_id).collect::<Vec<_>>(), [run_id(2)]);
    let again = visit(&store, 1, None, GuestDecision::Erase { at: at(8) }).await.unwrap();
    assert_eq!(again, GuestOutcome::Absent);
    let reused = store.flush(&batch(vec![new_run(1)], vec![])).await;
    assert!(matches!(reused, Err(StoreError::Rejected(_))), "{reused:?}");
}

async fn an_erased_run_keeps_its_key_and_is_no_label_any_more(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut new = driven_run(1);
    new.body.metadata.insert("team".to_owned(), "red".to_owned());
    new.key = Some(key("k", "run 1"));
    create(&store, vec![new]).await;
    append_to(&store, 1, 1, vec![completed(run_id(1), 2)], Some(ends(2))).await;
    let bound = key("erase", "run 1");
    let erase = GuestDecision::Erase { at: at(7) };
    visit(&store, 1, Some(bound.clone()), erase).await.unwrap();
    let filter =
        RunFilter { metadata: vec![("team".to_owned(), "red".to_owned())], ..RunFilter::default() };
    let page = Page { limit: 10, from: From::Start, order: Order::Asc };
    assert_eq!(store.list_runs(HOME, &filter, &page).await.unwrap().rows, []);
    assert!(store.find_key(&bound.key).await.unwrap().is_some());
    // The key of its creation still stands for it: there is never a second one.
    let mut twin = new_run(2);
    twin.key = Some(key("k", "run 2"));
    let outcome = store.flush(&batch(vec![twin], vec![])).await.unwrap();
    assert!(matches!(&outcome.creates[0], CreateOutcome::KeyTaken(row) if row.resource == "run 1"));
}
