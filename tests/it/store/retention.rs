use std::time::Duration;

use stepwell::clock::Clock;
use stepwell::domain::ids::RunId;
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::RunStatus;
use stepwell::domain::time::Timestamp;
use stepwell::store::{
    AppendOutcome, CreateOutcome, GuestDecision, KeySweep, NewKey, NewRun, NodeBeat, OLDEST, Owner,
    RunFilter, RunSweep, RunUpdate, SharedStore, StoreError, Swept, SweptDeltas,
};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    an_old_run_goes_with_everything_of_it,
    a_run_that_ended_lately_stays,
    a_run_that_has_not_ended_keeps_its_log_whatever_its_age,
    an_erased_run_keeps_its_row_until_it_is_old,
    a_long_log_goes_in_slices_and_nobody_reads_what_is_left,
    a_sweep_that_is_cut_off_after_every_slice_comes_to_its_end,
    runs_that_stay_are_walked_once_a_sweep,
    old_keys_go_and_others_stay,
    a_key_outlives_its_run_by_a_day,
    keys_that_stay_do_not_stop_a_sweep,
    old_deltas_go_and_facts_stay,
    the_newest_delta_of_a_run_that_goes_on_stays,
    dead_nodes_that_own_nothing_are_forgotten,
    an_empty_database_has_nothing_old,
);

/// Sweeps runs that ended before `at(millis)` to the end. Returns how many went, and in how many slices.
async fn sweep_runs(store: &SharedStore, millis: i64) -> (u64, u32) {
    let (mut gone, mut slices, mut after) = (0, 0, OLDEST);
    loop {
        let swept = store.sweep_runs(old_runs(after, millis)).await.unwrap();
        gone += swept.gone;
        slices += 1;
        match swept.more {
            Some(more) => after = more,
            None => return (gone, slices),
        }
    }
}

fn old_runs(after: RunId, millis: i64) -> RunSweep {
    RunSweep { after, ended_before: at(millis), now: at(1_000_000) }
}

/// Ends run `n`, which node 1 drives, with its event `seq` at `at(millis)`.
async fn end(store: &SharedStore, n: u32, seq: i32, millis: i64) {
    let update = RunUpdate { completed_at: Some(at(millis)), ..ends(seq) };
    let done = append_to(store, n, 1, vec![completed(run_id(n), seq)], Some(update)).await;
    assert_eq!(done, AppendOutcome::Written);
}

/// Whether the id of run `n` is free: then the run comes to be, and its log is new.
async fn is_free(store: &SharedStore, n: u32) -> bool {
    match store.flush(&batch(vec![new_run(n)], vec![])).await {
        Ok(outcome) => {
            assert_eq!(outcome.creates, [CreateOutcome::Created]);
            assert_eq!(log(store, n).await, [queued(run_id(n))], "nothing of the old log is left");
            true
        }
        Err(StoreError::Rejected(_)) => false,
        Err(error) => panic!("{error:?}"),
    }
}

fn labelled(n: u32) -> NewRun {
    let mut new = driven_run(n);
    new.body.metadata.insert("team".to_owned(), "red 😀".to_owned());
    new
}

async fn of_team(store: &SharedStore) -> Vec<RunId> {
    let metadata = vec![("team".to_owned(), "red 😀".to_owned())];
    let filter = RunFilter { metadata, ..RunFilter::default() };
    let page = Page { limit: 10, from: From::Start, order: Order::Asc };
    let listed = store.list_runs(HOME, &filter, &page).await.unwrap();
    listed.rows.iter().map(|record| record.row.run_id).collect()
}

async fn an_old_run_goes_with_everything_of_it(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![labelled(1), labelled(2)]).await;
    let words = vec![delta(run_id(1), 2, "a"), delta(run_id(1), 3, "b")];
    append_to(&store, 1, 1, words, None).await;
    end(&store, 1, 4, 1_000).await;
    assert_eq!(sweep_runs(&store, 1_001).await, (1, 1));
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
    assert_eq!(store.read_log(HOME, run_id(1), ALL).await.unwrap(), None);
    assert_eq!(store.read_facts(HOME, run_id(1), 0).await.unwrap(), []);
    assert_eq!(store.heads(&[run_id(1)]).await.unwrap(), []);
    assert_eq!(of_team(&store).await, [run_id(2)]);
    assert!(is_free(&store, 1).await);
    // The new run has no label of the old one.
    assert_eq!(of_team(&store).await, [run_id(2)]);
    assert_eq!(log(&store, 2).await, [queued(run_id(2))]);
}

async fn a_run_that_ended_lately_stays(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, (1..=3).map(driven_run).collect()).await;
    for (n, millis) in [(1, 999), (2, 1_000), (3, 1_001)] {
        end(&store, n, 2, millis).await;
    }
    assert_eq!(sweep_runs(&store, 1_000).await.0, 1);
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
    for n in [2, 3] {
        assert_eq!(log(&store, n).await.len(), 2);
    }
}

async fn a_run_that_has_not_ended_keeps_its_log_whatever_its_age(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![new_run(1), driven_run(2), driven_run(3)]).await;
    append_to(&store, 2, 1, vec![delta(run_id(2), 2, "a")], None).await;
    let parked =
        RunUpdate { owner: Owner::Nobody { due_at: None }, ..update(RunStatus::RequiresAction, 2) };
    append_to(&store, 3, 1, vec![running(run_id(3), 2)], Some(parked)).await;
    let before = [log(&store, 1).await, log(&store, 2).await, log(&store, 3).await];
    let forty_days = 40 * 24 * 3_600_000;
    assert_eq!(sweep_runs(&store, forty_days).await.0, 0);
    assert_eq!([log(&store, 1).await, log(&store, 2).await, log(&store, 3).await], before);
}

async fn an_erased_run_keeps_its_row_until_it_is_old(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    end(&store, 1, 2, 1_000).await;
    visit(&store, 1, None, GuestDecision::Erase { at: at(1_001) }).await.unwrap();
    assert_eq!(sweep_runs(&store, 1_000).await.0, 0);
    assert!(!is_free(&store, 1).await);
    assert_eq!(sweep_runs(&store, 1_001).await.0, 1);
    assert!(is_free(&store, 1).await);
}

/// A log that no slice has room for.
const LONG: i32 = 5_000;

async fn long_run(store: &SharedStore, n: u32) {
    create(store, vec![labelled(n)]).await;
    let words = (2..LONG).map(|seq| match seq % 10 {
        0 => running(run_id(n), seq),
        _ => delta(run_id(n), seq, "word"),
    });
    let (entries, facts) = (words.collect(), update(RunStatus::Running, LONG - 10));
    append_to(store, n, 1, entries, Some(facts)).await;
    end(store, n, LONG, 1_000).await;
}

async fn a_long_log_goes_in_slices_and_nobody_reads_what_is_left(store: SharedStore) {
    add_agent(&store, "a").await;
    long_run(&store, 1).await;
    let first = store.sweep_runs(old_runs(OLDEST, 1_001)).await.unwrap();
    assert_eq!(first.gone, 0);
    assert_eq!(first.more, Some(OLDEST));
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
    assert_eq!(store.read_log(HOME, run_id(1), ALL).await.unwrap(), None);
    assert_eq!(store.read_facts(HOME, run_id(1), 0).await.unwrap(), []);
    assert_eq!(store.heads(&[run_id(1)]).await.unwrap(), []);
    assert_eq!(of_team(&store).await, []);
    assert!(!is_free(&store, 1).await);
    let (gone, slices) = sweep_runs(&store, 1_001).await;
    assert_eq!(gone, 1);
    assert!(slices >= 2, "{slices} slices");
    assert!(is_free(&store, 1).await);
}

async fn a_sweep_that_is_cut_off_after_every_slice_comes_to_its_end(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, (10..20).map(driven_run).collect()).await;
    for n in 10..20 {
        end(&store, n, 2, 1_000).await;
    }
    long_run(&store, 1).await;
    long_run(&store, 30).await;
    let (mut gone, mut slices) = (0, 0);
    while gone < 12 {
        // Always from the beginning, as after a crash.
        gone += store.sweep_runs(old_runs(OLDEST, 1_001)).await.unwrap().gone;
        slices += 1;
        assert!(slices < 200, "it does not come to an end");
    }
    assert!(slices >= 6, "{slices} slices");
    for n in (10..20).chain([1, 30]) {
        assert!(is_free(&store, n).await, "run {n}");
    }
}

async fn runs_that_stay_are_walked_once_a_sweep(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, (1..=1_200).map(new_run).collect()).await;
    create(&store, vec![driven_run(1_300), driven_run(1_301)]).await;
    end(&store, 1_300, 2, 1_000).await;
    let (gone, slices) = sweep_runs(&store, 1_001).await;
    assert_eq!(gone, 1);
    assert!(slices <= 1_202 / 200 + 2, "{slices} slices");
    assert_eq!(log(&store, 1_200).await, [queued(run_id(1_200))]);
}

/// Sweeps keys that were bound before `at(bound)` and whose runs ended before `at(ended)`.
async fn sweep_keys(store: &SharedStore, bound: i64, ended: i64) -> u64 {
    let mut sweep = KeySweep { after: None, bound_before: at(bound), ended_before: at(ended) };
    let mut gone = 0;
    loop {
        let swept = store.sweep_keys(sweep).await.unwrap();
        gone += swept.gone;
        match swept.more {
            Some(more) => assert!(sweep.after.replace(more).is_none_or(|before| before < more)),
            None => return gone,
        }
    }
}

fn bound_at(name: &str, resource: &str, millis: i64) -> NewKey {
    NewKey { created_at: at(millis), ..key(name, resource) }
}

async fn has_key(store: &SharedStore, name: &str) -> bool {
    store.find_key(&key(name, "").key).await.unwrap().is_some()
}

async fn old_keys_go_and_others_stay(store: SharedStore) {
    // What looks like a run's id may be an agent's, or of a run that is gone.
    let names = ["a", "run_a", "run_0123456789abcdef0123456789abcdef"];
    for (name, millis) in names.into_iter().zip([10, 11, 12]) {
        let bound = bound_at(name, name, millis);
        store.insert_agent(HOME, &agent(name), Some(&bound)).await.unwrap();
    }
    assert_eq!(sweep_keys(&store, 11, 1_000).await, 1);
    assert!(!has_key(&store, "a").await);
    assert!(has_key(&store, "run_a").await);
    assert_eq!(sweep_keys(&store, 13, 1_000).await, 2);
    assert!(!has_key(&store, "run_a").await);
    assert!(!has_key(&store, names[2]).await);
}

async fn a_key_outlives_its_run_by_a_day(store: SharedStore) {
    add_agent(&store, "a").await;
    let keyed = |n: u32| {
        let bound = bound_at(&format!("k{n}"), &run_id(n).to_string(), i64::from(n));
        NewRun { key: Some(bound), ..driven_run(n) }
    };
    create(&store, (1..=4).map(keyed).collect()).await;
    end(&store, 1, 2, 1_000).await;
    end(&store, 2, 2, 2_000).await;
    end(&store, 4, 2, 500).await;
    visit(&store, 4, None, GuestDecision::Erase { at: at(501) }).await.unwrap();
    assert_eq!(sweep_keys(&store, 100, 500).await, 0);
    assert_eq!(sweep_keys(&store, 100, 1_001).await, 2);
    let mut left = Vec::new();
    for name in ["k1", "k2", "k3", "k4"] {
        if has_key(&store, name).await {
            left.push(name);
        }
    }
    assert_eq!(left, ["k2", "k3"]);
    // When its row is gone, it ended long ago.
    assert_eq!(sweep_runs(&store, 2_001).await.0, 3);
    assert_eq!(sweep_keys(&store, 100, 1_001).await, 1);
    assert!(has_key(&store, "k3").await, "it has not ended");
}

async fn keys_that_stay_do_not_stop_a_sweep(store: SharedStore) {
    add_agent(&store, "a").await;
    // More than a slice, all bound in one of two milliseconds.
    let keyed = |n: u32| {
        let bound = bound_at(&format!("k{n}"), &run_id(n).to_string(), i64::from(n / 600));
        NewRun { key: Some(bound), ..driven_run(n) }
    };
    for first in [0_u32, 400, 800] {
        create(&store, (first..first + 400).map(keyed).collect()).await;
    }
    end(&store, 1_199, 2, 10).await;
    assert_eq!(sweep_keys(&store, 100, 1_000).await, 1);
    assert!(!has_key(&store, "k1199").await);
    assert!(has_key(&store, "k0").await && has_key(&store, "k1198").await);
}

/// Later than everything that a test writes, whoever's clock it is written by.
fn later() -> Timestamp {
    Clock::system().now().plus(Duration::from_secs(2 * 24 * 3600))
}

async fn sweep_deltas(store: &SharedStore, written_before: Timestamp) {
    let mut after = None;
    loop {
        after = store.sweep_deltas(after, written_before).await.unwrap().more;
        if after.is_none() {
            return;
        }
    }
}

fn seqs(log: &[stepwell::domain::event::Entry]) -> Vec<i32> {
    log.iter().map(|entry| entry.seq).collect()
}

async fn old_deltas_go_and_facts_stay(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1), driven_run(2)]).await;
    let text = |n: u32, seqs: std::ops::Range<i32>| -> Vec<_> {
        seqs.map(|seq| delta(run_id(n), seq, "word")).collect()
    };
    let mut entries = text(1, 2..500);
    entries.push(running(run_id(1), 500));
    append_to(&store, 1, 1, entries, Some(update(RunStatus::Running, 500))).await;
    append_to(&store, 2, 1, text(2, 2..4), None).await;
    end(&store, 2, 4, 1_000).await;
    assert_eq!(store.deltas_gone_before().await.unwrap(), Timestamp::from_millis(0));
    let long_ago = Timestamp::from_millis(0);
    sweep_deltas(&store, long_ago).await;
    assert_eq!(log(&store, 1).await.len(), 500);
    assert_eq!(store.deltas_gone_before().await.unwrap(), long_ago);

    sweep_deltas(&store, later()).await;
    assert_eq!(seqs(&log(&store, 1).await), [1, 500]);
    assert_eq!(seqs(&log(&store, 2).await), [1, 4]);
    let gone_before = store.deltas_gone_before().await.unwrap();
    assert!(gone_before > at(9) && gone_before <= later(), "{gone_before}");
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap().unwrap().last_seq, 500);
    // New ones can be written.
    append_to(&store, 1, 1, text(1, 501..503), None).await;
    assert_eq!(seqs(&log(&store, 1).await), [1, 500, 501, 502]);
}

async fn the_newest_delta_of_a_run_that_goes_on_stays(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let words = vec![delta(run_id(1), 2, "a"), delta(run_id(1), 3, "b")];
    append_to(&store, 1, 1, words, None).await;
    // Its node dies here, and for so long nobody takes the run over.
    sweep_deltas(&store, later()).await;
    let driven = store.load_driveable(node(1), run_id(1)).await.unwrap().unwrap();
    assert_eq!(driven.record.last_seq, 3, "no seq is given twice");
    let on = update(RunStatus::Running, 4);
    append_to(&store, 1, 1, vec![running(run_id(1), 4)], Some(on)).await;
    sweep_deltas(&store, later()).await;
    assert_eq!(seqs(&log(&store, 1).await), [1, 4]);
}

async fn dead_nodes_that_own_nothing_are_forgotten(store: SharedStore) {
    add_agent(&store, "a").await;
    for n in [1, 2, 3] {
        store.register_node(node(n), at(0)).await.unwrap();
    }
    create(&store, vec![driven_run(1)]).await;
    for n in [1, 2] {
        assert!(store.bury(NodeBeat { node_id: node(n), beat: 0 }).await.unwrap());
    }
    assert_eq!(store.sweep_nodes(at(0)).await.unwrap().more, None);
    // Node 1 still owns a run, and node 3 lives.
    for (n, is_known) in [(1, true), (2, false), (3, true)] {
        assert_eq!(store.register_node(node(n), at(0)).await.is_err(), is_known, "node {n}");
    }
}

async fn an_empty_database_has_nothing_old(store: SharedStore) {
    store.prepare_days().await.unwrap();
    assert_eq!(sweep_runs(&store, 1_000).await, (0, 1));
    assert_eq!(sweep_keys(&store, 1_000, 1_000).await, 0);
    assert_eq!(store.sweep_nodes(at(0)).await.unwrap(), Swept::NOTHING);
    let nothing = SweptDeltas { days: 0, deltas: 0, more: None };
    assert_eq!(store.sweep_deltas(None, at(0)).await.unwrap(), nothing);
    assert!(!store.shrink().await.unwrap());
}
