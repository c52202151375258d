//! Children leave signals, and parents are roused by them; they go with their parents.

use stepwell::domain::ids::RunId;
use stepwell::domain::limits;
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::RunStatus;
use stepwell::store::{
    Below, CreateOutcome, GuestDecision, NewRun, Owner, Roused, RunFilter, RunUpdate, SharedStore,
};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_child_that_comes_to_rest_rouses_its_parent_once,
    a_child_that_goes_on_after_a_pause_rouses_its_parent,
    a_child_that_works_leaves_its_parent_alone,
    guests_of_a_child_rouse_its_parent_as_its_driver_does,
    a_driven_parent_is_told_by_its_fence_and_one_that_waits_is_due,
    a_parent_that_has_ended_is_left_alone,
    signals_are_taken_a_few_at_a_time_and_by_one_node_each,
    children_are_listed_by_their_parent,
    what_children_cost_is_kept_with_the_run,
    what_is_below_a_run_goes_in_slices_the_deepest_first,
    nothing_below_a_run_goes_while_one_of_them_has_not_ended,
    what_is_below_an_erased_run_is_still_found,
    a_family_grows_no_larger_than_it_may,
);

/// A run that run `parent` called, born claimed by node 1.
fn child(n: u32, parent: u32) -> NewRun {
    let mut new = driven_run(n);
    new.row.parent_run_id = Some(run_id(parent));
    new
}

/// Says what a child's driver says: of whom its parent is.
fn of_child(parent: u32, update: RunUpdate) -> RunUpdate {
    RunUpdate { parent_run_id: Some(run_id(parent)), ..update }
}

/// Run 1 waits unowned for its children 2 and 3, which node 1 drives.
async fn start(store: &SharedStore) {
    add_agent(store, "a").await;
    let mut parent = new_run(1);
    parent.row.due_at = Some(at(1_000_000));
    create(store, vec![parent, child(2, 1), child(3, 1)]).await;
    assert_eq!(rouse(store).await, []);
}

async fn end(store: &SharedStore, n: u32, parent: u32) {
    let seq = store.load_run(HOME, run_id(n)).await.unwrap().unwrap().last_seq + 1;
    let update = Some(of_child(parent, ends(seq)));
    append_to(store, n, 1, vec![completed(run_id(n), seq)], update).await;
}

async fn rouse(store: &SharedStore) -> Vec<RunId> {
    store.rouse_parents(at(500), 100).await.unwrap().run_ids
}

async fn a_child_that_comes_to_rest_rouses_its_parent_once(store: SharedStore) {
    start(&store).await;
    end(&store, 2, 1).await;
    end(&store, 3, 1).await;
    let before = row(&store, 1).await;
    let roused = store.rouse_parents(at(500), 100).await.unwrap();
    assert_eq!(roused, Roused { signals: 2, run_ids: vec![run_id(1)] });
    let after = row(&store, 1).await;
    assert_eq!((after.due_at, after.rev), (Some(at(500)), before.rev + 1));
    assert_eq!(rouse(&store).await, []);
    assert_eq!(row(&store, 1).await, after);
}

async fn a_child_that_goes_on_after_a_pause_rouses_its_parent(store: SharedStore) {
    start(&store).await;
    let parks = RunUpdate { owner: Owner::Keep, ..update(RunStatus::RequiresAction, 2) };
    let entries = vec![running(run_id(2), 2)];
    append_to(&store, 2, 1, entries, Some(of_child(1, parks))).await;
    assert_eq!(rouse(&store).await, [run_id(1)]);
    let goes_on = of_child(1, update(RunStatus::Running, 3));
    append_to(&store, 2, 1, vec![running(run_id(2), 3)], Some(goes_on)).await;
    assert_eq!(rouse(&store).await, [run_id(1)]);
}

async fn a_child_that_works_leaves_its_parent_alone(store: SharedStore) {
    start(&store).await;
    append_to(&store, 2, 1, vec![delta(run_id(2), 2, "a")], None).await;
    let works = of_child(1, update(RunStatus::Running, 3));
    append_to(&store, 2, 1, vec![running(run_id(2), 3)], Some(works)).await;
    // What has lost its fence writes nothing, and signals nothing.
    append_to(&store, 3, 7, vec![completed(run_id(3), 2)], Some(of_child(1, ends(2)))).await;
    assert_eq!(rouse(&store).await, []);
}

async fn guests_of_a_child_rouse_its_parent_as_its_driver_does(store: SharedStore) {
    start(&store).await;
    let cancels = |status, seq| GuestDecision::Append {
        facts: vec![cancelling(run_id(2), seq)],
        update: Box::new(of_child(1, update(status, seq))),
    };
    visit(&store, 2, None, cancels(RunStatus::Running, 2)).await.unwrap();
    assert_eq!(rouse(&store).await, []);
    visit(&store, 2, None, cancels(RunStatus::RequiresAction, 3)).await.unwrap();
    assert_eq!(rouse(&store).await, [run_id(1)]);
    visit(&store, 2, None, cancels(RunStatus::Queued, 4)).await.unwrap();
    assert_eq!(rouse(&store).await, [run_id(1)]);
    let ended = GuestDecision::Append {
        facts: vec![completed(run_id(2), 5)],
        update: Box::new(of_child(1, ends(5))),
    };
    visit(&store, 2, None, ended).await.unwrap();
    assert_eq!(rouse(&store).await, [run_id(1)]);
    visit(&store, 2, None, GuestDecision::Erase { at: at(7) }).await.unwrap();
    assert_eq!(rouse(&store).await, []);
}

async fn a_driven_parent_is_told_by_its_fence_and_one_that_waits_is_due(store: SharedStore) {
    start(&store).await;
    create(&store, vec![driven_run(4), child(5, 4)]).await;
    end(&store, 5, 4).await;
    end(&store, 2, 1).await;
    assert_eq!(rouse(&store).await, [run_id(1), run_id(4)]);
    let driven = row(&store, 4).await;
    assert_eq!((driven.node_id, driven.due_at, driven.rev), (Some(node(1)), None, 2));
    let late = append_to(&store, 4, 1, vec![running(run_id(4), 2)], None).await;
    assert_eq!(late, stepwell::store::AppendOutcome::Missed, "its driver looks first");
    let claims = store.claim_due(node(2), at(500), 10).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.run_id).collect::<Vec<_>>(), [run_id(1)]);
}

async fn a_parent_that_has_ended_is_left_alone(store: SharedStore) {
    start(&store).await;
    let decision =
        GuestDecision::Append { facts: vec![completed(run_id(1), 2)], update: Box::new(ends(2)) };
    visit(&store, 1, None, decision).await.unwrap();
    end(&store, 2, 1).await;
    let before = row(&store, 1).await;
    let roused = store.rouse_parents(at(500), 100).await.unwrap();
    assert_eq!(roused, Roused { signals: 1, run_ids: vec![] });
    assert_eq!(row(&store, 1).await, before);
}

async fn signals_are_taken_a_few_at_a_time_and_by_one_node_each(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut runs = Vec::new();
    for n in 1..=20 {
        let mut parent = new_run(n);
        parent.row.due_at = None;
        runs.extend([parent, child(100 + n, n)]);
    }
    create(&store, runs).await;
    for n in 1..=20 {
        end(&store, 100 + n, n).await;
    }
    let some = store.rouse_parents(at(500), 3).await.unwrap();
    assert_eq!(some, Roused { signals: 3, run_ids: vec![run_id(1), run_id(2), run_id(3)] });
    let rest = (0..20).map(|_| store.rouse_parents(at(500), 4));
    let mut all: Vec<RunId> = Vec::new();
    for roused in futures_util::future::join_all(rest).await {
        all.extend(roused.unwrap().run_ids);
    }
    all.sort_unstable();
    assert_eq!(all, (4..=20).map(run_id).collect::<Vec<_>>(), "each once");
}

async fn children_are_listed_by_their_parent(store: SharedStore) {
    start(&store).await;
    create(&store, vec![new_run(4), child(5, 4), child(6, 1)]).await;
    for (order, expected) in [(Order::Asc, [2, 3, 6]), (Order::Desc, [6, 3, 2])] {
        let filter = RunFilter { parent_run_id: Some(run_id(1)), ..RunFilter::default() };
        let page = Page { limit: 10, from: From::Start, order };
        let listed = store.list_runs(HOME, &filter, &page).await.unwrap();
        let ids: Vec<_> = listed.rows.iter().map(|record| record.row.run_id).collect();
        assert_eq!(ids, expected.map(run_id));
        let page = Page { limit: 2, from: From::After(run_id(3)), order };
        let next = store.list_runs(HOME, &filter, &page).await.unwrap();
        assert_eq!(next.rows.len(), 1);
        assert!(store.list_runs(ELSEWHERE, &filter, &page).await.unwrap().rows.is_empty());
    }
}

async fn what_children_cost_is_kept_with_the_run(store: SharedStore) {
    use stepwell::domain::money::Usd;
    start(&store).await;
    assert_eq!(row(&store, 2).await.children_cost, Some(Usd::ZERO));
    let with = |cost, seq| {
        let update = update(RunStatus::Running, seq);
        of_child(1, RunUpdate { children_cost: cost, ..update })
    };
    let cost = Some(Usd::from_micros(123));
    append_to(&store, 2, 1, vec![running(run_id(2), 2)], Some(with(cost, 2))).await;
    let spent = row(&store, 2).await;
    assert_eq!((spent.children_cost, spent.tree_cost()), (cost, Some(Usd::from_micros(200))));
    let decision = GuestDecision::Append {
        facts: vec![cancelling(run_id(2), 3)],
        update: Box::new(with(None, 3)),
    };
    visit(&store, 2, None, decision).await.unwrap();
    let spent = row(&store, 2).await;
    assert_eq!((spent.children_cost, spent.tree_cost()), (None, None));
}

async fn is_there(store: &SharedStore, n: u32) -> bool {
    store.load_run(HOME, run_id(n)).await.unwrap().is_some()
}

async fn what_is_below_a_run_goes_in_slices_the_deepest_first(store: SharedStore) {
    add_agent(&store, "a").await;
    // 14 children, and one below each.
    create(&store, vec![new_run(1), new_run(99)]).await;
    create(&store, (2..=15).map(|n| child(n, 1)).collect()).await;
    create(&store, (2..=15).map(|n| child(100 + n, n)).collect()).await;
    for n in 2..=15 {
        end(&store, 100 + n, n).await;
        end(&store, n, 1).await;
    }
    let elsewhere = store.erase_below(ELSEWHERE, run_id(1), at(900)).await.unwrap();
    assert_eq!(elsewhere, Below { erased: vec![], alive: None, more: false });
    let erase = async || store.erase_below(HOME, run_id(1), at(900)).await.unwrap();
    let (first, second) = (erase().await, erase().await);
    assert_eq!((first.erased.len(), first.alive, first.more), (20, None, true));
    assert!((2..=15).all(|n| first.erased.contains(&run_id(100 + n))), "{first:?}");
    assert_eq!((second.erased.len(), second.alive, second.more), (8, None, false));
    for n in 2..=15 {
        assert!(!is_there(&store, n).await && !is_there(&store, 100 + n).await);
        assert!(store.read_facts(HOME, run_id(n), 0).await.unwrap().is_empty());
    }
    assert!(is_there(&store, 1).await && is_there(&store, 99).await);
    assert_eq!(erase().await, elsewhere);
}

async fn nothing_below_a_run_goes_while_one_of_them_has_not_ended(store: SharedStore) {
    start(&store).await;
    create(&store, vec![child(4, 2), child(5, 3)]).await;
    for (n, parent) in [(2, 1), (3, 1), (4, 2)] {
        end(&store, n, parent).await;
    }
    let below = store.erase_below(HOME, run_id(1), at(900)).await.unwrap();
    assert_eq!(below, Below { erased: vec![], alive: Some(run_id(5)), more: false });
    for n in 2..=5 {
        assert!(is_there(&store, n).await, "run {n}");
    }
}

async fn what_is_below_an_erased_run_is_still_found(store: SharedStore) {
    start(&store).await;
    create(&store, vec![child(4, 2)]).await;
    end(&store, 2, 1).await;
    end(&store, 3, 1).await;
    end(&store, 4, 2).await;
    visit(&store, 2, None, GuestDecision::Erase { at: at(800) }).await.unwrap();
    let mut below = store.erase_below(HOME, run_id(1), at(900)).await.unwrap();
    below.erased.sort_unstable();
    assert_eq!((below.erased, below.more), (vec![run_id(3), run_id(4)], false));
    assert!(!is_there(&store, 4).await);
}

async fn a_family_grows_no_larger_than_it_may(store: SharedStore) {
    add_agent(&store, "a").await;
    let below = |n: u32, root: u32| {
        let mut new = child(n, root);
        new.row.root_run_id = Some(run_id(root));
        new
    };
    create(&store, vec![driven_run(1), driven_run(2)]).await;
    let most = u32::try_from(limits::MAX_FAMILY).unwrap();
    // The one at the top is one of them; one more has room.
    create(&store, (3..=most).map(|n| below(n, 1)).collect()).await;
    let more: Vec<_> = [1, 2, 1, 2].iter().zip(5_000..).map(|(top, n)| below(n, *top)).collect();
    let plain = new_run(6_000);
    let moved = {
        let mut new = below(6_001, 2);
        new.row.agent_version = 7;
        new
    };
    let outcome = store.flush(&batch([more, vec![plain, moved]].concat(), vec![])).await.unwrap();
    let there = CreateOutcome::Created;
    assert_eq!(
        outcome.creates,
        [
            there.clone(),
            there.clone(),
            CreateOutcome::FamilyFull,
            there.clone(),
            there,
            CreateOutcome::AgentMoved
        ]
    );
    let full = store.flush(&batch(vec![below(7_000, 1)], vec![])).await.unwrap();
    assert_eq!(full.creates, [CreateOutcome::FamilyFull]);
    assert_eq!(store.load_run(HOME, run_id(7_000)).await.unwrap(), None);
}
