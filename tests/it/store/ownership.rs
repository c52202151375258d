use stepwell::domain::ids::RunId;
use stepwell::domain::run::RunStatus;
use stepwell::store::{
    AppendOutcome, Batch, Claim, GuestDecision, NodeBeat, RunRow, RunUpdate, SharedStore,
    StoreError, Transfer,
};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_node_beats_until_it_is_buried,
    a_node_is_buried_only_while_its_beat_stands_still,
    a_node_enters_once,
    a_node_that_retires_is_forgotten_when_it_owns_nothing,
    due_runs_are_claimed_oldest_first,
    a_claim_is_a_new_fence,
    runs_that_somebody_owns_or_nobody_needs_are_not_claimed,
    two_claims_never_get_the_same_run,
    orphans_are_the_runs_of_dead_nodes_only,
    a_node_that_was_declared_dead_claims_nothing,
    a_crash_is_counted_for_every_orphan,
    deaths_of_neighbours_make_a_suspect_and_no_more,
    a_run_goes_from_its_owner_to_another_with_a_new_fence,
    nobody_gives_away_what_is_not_its_own,
    a_transfer_may_set_the_crashes,
    a_node_knows_what_it_owns,
    a_run_is_released_by_its_owner_only,
    a_released_run_is_due_with_its_message_and_without_a_crash,
);

/// The beats of all nodes but this one.
async fn others(store: &SharedStore, n: u32) -> Vec<NodeBeat> {
    let others = store.other_nodes(node(n)).await.unwrap();
    others.into_iter().map(|neighbour| neighbour.seen).collect()
}

async fn a_node_beats_until_it_is_buried(store: SharedStore) {
    assert!(!store.beat(node(1)).await.unwrap());
    store.register_node(node(1), at(0)).await.unwrap();
    store.register_node(node(2), at(0)).await.unwrap();
    let first = NodeBeat { node_id: node(1), beat: 0 };
    assert_eq!(others(&store, 2).await, [first]);
    assert!(store.beat(node(1)).await.unwrap());
    let second = NodeBeat { node_id: node(1), beat: 1 };
    assert_eq!(others(&store, 2).await, [second]);
    assert!(store.bury(second).await.unwrap());
    assert!(!store.beat(node(1)).await.unwrap());
    assert_eq!(others(&store, 2).await, []);
}

async fn a_node_is_buried_only_while_its_beat_stands_still(store: SharedStore) {
    store.register_node(node(1), at(0)).await.unwrap();
    let seen = NodeBeat { node_id: node(1), beat: 0 };
    assert!(store.beat(node(1)).await.unwrap());
    assert!(!store.bury(seen).await.unwrap());
    assert!(store.beat(node(1)).await.unwrap());
    let seen = NodeBeat { node_id: node(1), beat: 2 };
    assert!(store.bury(seen).await.unwrap());
    assert!(!store.bury(seen).await.unwrap());
    assert!(!store.bury(NodeBeat { node_id: node(9), beat: 0 }).await.unwrap());
}

async fn a_node_enters_once(store: SharedStore) {
    store.register_node(node(1), at(0)).await.unwrap();
    let again = store.register_node(node(1), at(0)).await;
    assert!(matches!(again, Err(StoreError::Rejected(_))), "{again:?}");
}

async fn a_node_that_retires_is_forgotten_when_it_owns_nothing(store: SharedStore) {
    add_agent(&store, "a").await;
    for n in [1, 2] {
        store.register_node(node(n), at(0)).await.unwrap();
    }
    create(&store, vec![driven_run(1)]).await;
    // Node 1 still owns a run, so it is kept as dead, and the run is an orphan.
    store.retire_node(node(1)).await.unwrap();
    assert!(!store.beat(node(1)).await.unwrap());
    let again = store.register_node(node(1), at(0)).await;
    assert!(matches!(again, Err(StoreError::Rejected(_))), "{again:?}");
    assert_eq!(store.claim_orphans(node(2), 10).await.unwrap().len(), 1);
    // Now it owns nothing, and goes when somebody else retires.
    store.retire_node(node(2)).await.unwrap();
    store.register_node(node(1), at(0)).await.unwrap();
}

fn ids(claims: &[Claim]) -> Vec<RunId> {
    claims.iter().map(|claim| claim.run_id).collect()
}

async fn due_runs_are_claimed_oldest_first(store: SharedStore) {
    add_agent(&store, "a").await;
    let due = |n, millis| {
        let mut new = new_run(n);
        new.row.due_at = Some(at(millis));
        new
    };
    create(&store, vec![due(1, 30), due(2, 10), due(3, 20), due(4, 40), due(5, 31)]).await;
    let claims = store.claim_due(node(1), at(31), 2).await.unwrap();
    assert_eq!(ids(&claims), [run_id(2), run_id(3)]);
    let claims = store.claim_due(node(1), at(31), 10).await.unwrap();
    assert_eq!(ids(&claims), [run_id(1), run_id(5)]);
    assert_eq!(store.claim_due(node(1), at(39), 10).await.unwrap(), []);
    assert_eq!(store.claim_due(node(1), at(40), 0).await.unwrap(), []);
    assert_eq!(ids(&store.claim_due(node(1), at(40), 10).await.unwrap()), [run_id(4)]);
}

async fn a_claim_is_a_new_fence(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![new_run(1)]).await;
    let claims = store.claim_due(node(1), at(100), 10).await.unwrap();
    let claim = Claim { run_id: run_id(1), workspace_id: HOME, rev: 1, epoch: 1 };
    assert_eq!(claims, [claim]);
    let after = row(&store, 1).await;
    assert_eq!((after.node_id, after.rev, after.epoch), (Some(node(1)), 1, 1));
    assert_eq!((after.due_at, after.crashes), (None, 0));
    let entries = vec![running(run_id(1), 2)];
    let change = || Some(update(RunStatus::Running, 2));
    assert_eq!(append_to(&store, 1, 0, entries.clone(), change()).await, AppendOutcome::Missed);
    assert_eq!(append_to(&store, 1, 1, entries, change()).await, AppendOutcome::Written);
}

async fn runs_that_somebody_owns_or_nobody_needs_are_not_claimed(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut owned = driven_run(1);
    owned.row.due_at = Some(at(0));
    let mut undue = new_run(2);
    undue.row.due_at = None;
    create(&store, vec![owned, undue, driven_run(3)]).await;
    append_to(&store, 3, 1, vec![completed(run_id(3), 2)], Some(ends(2))).await;
    visit(&store, 3, None, GuestDecision::Erase { at: at(5) }).await.unwrap();
    assert_eq!(store.claim_due(node(2), at(1_000_000), 10).await.unwrap(), []);
}

async fn two_claims_never_get_the_same_run(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, (1..=40).map(new_run).collect()).await;
    let claims = (1..=8).map(|n| store.claim_due(node(n), at(1_000), 7));
    let mut all = Vec::new();
    for claimed in futures_util::future::join_all(claims).await {
        all.extend(ids(&claimed.unwrap()));
    }
    let got = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), got);
    all.extend(ids(&store.claim_due(node(9), at(1_000), 100).await.unwrap()));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 40);
}

async fn orphans_are_the_runs_of_dead_nodes_only(store: SharedStore) {
    add_agent(&store, "a").await;
    for n in [1, 2, 3] {
        store.register_node(node(n), at(0)).await.unwrap();
    }
    let of = |n, owner: u32| {
        let mut new = driven_run(n);
        new.row.node_id = Some(node(owner));
        new
    };
    create(&store, vec![of(1, 1), of(2, 2), of(3, 2), of(4, 3), new_run(5)]).await;
    assert_eq!(store.claim_orphans(node(3), 10).await.unwrap(), []);
    assert!(store.bury(NodeBeat { node_id: node(2), beat: 0 }).await.unwrap());
    let one = store.claim_orphans(node(3), 1).await.unwrap();
    assert_eq!(ids(&one), [run_id(2)]);
    let claims = store.claim_orphans(node(3), 10).await.unwrap();
    let claim = Claim { run_id: run_id(3), workspace_id: HOME, rev: 2, epoch: 2 };
    assert_eq!(claims, [claim]);
    assert_eq!(store.claim_orphans(node(3), 10).await.unwrap(), []);
    // The zombie's fence is gone with its runs.
    let zombie = Batch {
        node_id: node(2),
        ..batch(vec![], vec![append(2, 1, vec![delta(run_id(2), 2, "late")], None)])
    };
    assert_eq!(store.flush(&zombie).await.unwrap().appends, [AppendOutcome::Missed]);
}

/// It may not have heard of it yet. What it claimed would be an orphan at once, and the run would look as
/// if it had lost one more driver.
async fn a_node_that_was_declared_dead_claims_nothing(store: SharedStore) {
    add_agent(&store, "a").await;
    for n in [1, 2] {
        store.register_node(node(n), at(0)).await.unwrap();
        assert!(store.bury(NodeBeat { node_id: node(n), beat: 0 }).await.unwrap());
    }
    store.register_node(node(3), at(0)).await.unwrap();
    create(&store, vec![driven_run(1), new_run(2)]).await;
    assert_eq!(store.claim_orphans(node(2), 10).await.unwrap(), []);
    assert_eq!(store.claim_due(node(2), at(100), 10).await.unwrap(), []);
    assert_eq!(ids(&store.claim_orphans(node(3), 10).await.unwrap()), [run_id(1)]);
    assert_eq!(ids(&store.claim_due(node(3), at(100), 10).await.unwrap()), [run_id(2)]);
    assert_eq!(row(&store, 1).await.crashes, 1);
}

async fn a_crash_is_counted_for_every_orphan(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    for n in 1..=3 {
        store.register_node(node(n), at(0)).await.unwrap();
    }
    for n in 1..=2 {
        store.bury(NodeBeat { node_id: node(n), beat: 0 }).await.unwrap();
        let claims = store.claim_orphans(node(n + 1), 10).await.unwrap();
        assert_eq!(claims.len(), 1);
        let after = row(&store, 1).await;
        assert_eq!(after.crashes, i32::try_from(n).unwrap());
        assert_eq!((after.rev, after.epoch), (claims[0].rev, claims[0].epoch));
    }
    // A committed step forgets them.
    let step = RunUpdate { steps_completed: 1, ..update(RunStatus::Running, 2) };
    let driver = Batch {
        node_id: node(3),
        ..batch(vec![], vec![append(1, 3, vec![running(run_id(1), 2)], Some(step))])
    };
    assert_eq!(store.flush(&driver).await.unwrap().appends, [AppendOutcome::Written]);
    assert_eq!(row(&store, 1).await.crashes, 0);
}

async fn deaths_of_neighbours_make_a_suspect_and_no_more(store: SharedStore) {
    add_agent(&store, "a").await;
    for (crashes, after) in [(0, 1), (1, 2), (2, 2), (3, 3)] {
        let n = 10 * u32::try_from(crashes + 1).unwrap();
        let mut new = driven_run(1);
        new.row.run_id = run_id(n);
        new.first = queued(run_id(n));
        new.row.node_id = Some(node(n));
        new.row.crashes = crashes;
        create(&store, vec![new]).await;
        for node_id in [node(n), node(n + 1)] {
            store.register_node(node_id, at(0)).await.unwrap();
        }
        assert!(store.bury(NodeBeat { node_id: node(n), beat: 0 }).await.unwrap());
        assert_eq!(ids(&store.claim_orphans(node(n + 1), 10).await.unwrap()), [run_id(n)]);
        assert_eq!(row(&store, n).await.crashes, after);
    }
}

async fn a_run_goes_from_its_owner_to_another_with_a_new_fence(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), driven_run(2)]).await;
    let before = row(&store, 1).await;
    let given = Transfer { run_id: run_id(1), from: node(1), to: node(2), crashes: None };
    let claim = Claim { run_id: run_id(1), workspace_id: HOME, rev: 2, epoch: 2 };
    assert_eq!(store.transfer(given).await.unwrap(), Some(claim));
    let after = RunRow { node_id: Some(node(2)), rev: 2, epoch: 2, ..before };
    assert_eq!(row(&store, 1).await, after);
    assert_eq!(row(&store, 2).await.node_id, Some(node(1)));
    // Who gave it away has lost it, in the middle of whatever it was writing.
    let late = vec![delta(run_id(1), 2, "late")];
    assert_eq!(append_to(&store, 1, 1, late, None).await, AppendOutcome::Missed);
    let heir = Batch {
        node_id: node(2),
        ..batch(vec![], vec![append(1, 2, vec![delta(run_id(1), 2, "next")], None)])
    };
    assert_eq!(store.flush(&heir).await.unwrap().appends, [AppendOutcome::Written]);
}

async fn nobody_gives_away_what_is_not_its_own(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), new_run(2)]).await;
    let before = (row(&store, 1).await, row(&store, 2).await);
    for (n, from) in [(1, 2), (1, 3), (2, 1), (77, 1)] {
        let given = Transfer { run_id: run_id(n), from: node(from), to: node(3), crashes: Some(3) };
        assert_eq!(store.transfer(given).await.unwrap(), None, "run {n} from node {from}");
    }
    assert_eq!((row(&store, 1).await, row(&store, 2).await), before);
    // Once: whoever asks again learns that it is done.
    let given = Transfer { run_id: run_id(1), from: node(1), to: node(3), crashes: None };
    assert!(store.transfer(given).await.unwrap().is_some());
    assert_eq!(store.transfer(given).await.unwrap(), None);
}

async fn a_transfer_may_set_the_crashes(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let given =
        |from, to, crashes| Transfer { run_id: run_id(1), from: node(from), to: node(to), crashes };
    assert!(store.transfer(given(1, 2, Some(3))).await.unwrap().is_some());
    assert_eq!(row(&store, 1).await.crashes, 3);
    assert!(store.transfer(given(2, 1, None)).await.unwrap().is_some());
    assert_eq!(row(&store, 1).await.crashes, 3);
}

async fn a_node_knows_what_it_owns(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), driven_run(2), new_run(3)]).await;
    store.claim_due(node(2), at(100), 10).await.unwrap();
    let owned = async |n| {
        let mut owned = store.owned(node(n)).await.unwrap();
        owned.sort();
        owned
    };
    assert_eq!(owned(1).await, [(run_id(1), 1), (run_id(2), 1)]);
    assert_eq!(owned(2).await, [(run_id(3), 1)]);
    assert_eq!(owned(3).await, []);
}

async fn a_run_is_released_by_its_owner_only(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let before = row(&store, 1).await;
    for (owner, run, rev) in [(2, 1, 1), (1, 1, 0), (1, 1, 2), (1, 77, 1)] {
        let done = store.release(node(owner), run_id(run), rev, at(60), None).await.unwrap();
        assert!(!done, "node {owner}, run {run}, rev {rev}");
    }
    assert_eq!(row(&store, 1).await, before);
    assert!(store.release(node(1), run_id(1), 1, at(60), None).await.unwrap());
    assert!(!store.release(node(1), run_id(1), 1, at(60), None).await.unwrap());
}

async fn a_released_run_is_due_with_its_message_and_without_a_crash(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let waits = Some("waits for the provider 😀");
    assert!(store.release(node(1), run_id(1), 1, at(60), waits).await.unwrap());
    let after = row(&store, 1).await;
    assert_eq!((after.node_id, after.due_at, after.crashes), (None, Some(at(60)), 0));
    assert_eq!(after.status_message.as_deref(), waits);
    assert_eq!(after.rev, 1);
    assert_eq!(store.claim_due(node(2), at(59), 10).await.unwrap(), []);
    assert_eq!(store.claim_due(node(2), at(60), 10).await.unwrap().len(), 1);
    assert!(store.release(node(2), run_id(1), 2, at(61), None).await.unwrap());
    assert_eq!(row(&store, 1).await.status_message, None);
}
