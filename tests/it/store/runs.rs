use stepwell::domain::run::RunStatus;
use stepwell::store::{RunUpdate, SharedStore};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_run_that_ended_says_how,
    a_run_that_waits_says_for_what,
    a_driver_gets_everything_and_nobody_else_does,
    durations_are_those_of_the_newest_completed_runs,
    the_store_answers_and_says_what_it_is,
);

async fn a_run_that_ended_says_how(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let entries = vec![delta(run_id(1), 2, "a"), completed(run_id(1), 3)];
    append_to(&store, 1, 1, entries, Some(ends(3))).await;
    let read = store.load_run(HOME, run_id(1)).await.unwrap().unwrap();
    assert_eq!(read.first, Some(queued(run_id(1))));
    assert_eq!(read.newest_fact, Some(completed(run_id(1), 3)));
    assert_eq!((read.last_seq, read.row.completed_at), (3, Some(at(1_000))));
    assert_eq!((read.row.node_id, read.row.due_at), (None, None));
}

async fn a_run_that_waits_says_for_what(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let works = Some(update(RunStatus::Running, 2));
    append_to(&store, 1, 1, vec![running(run_id(1), 2)], works).await;
    let read = store.load_run(HOME, run_id(1)).await.unwrap().unwrap();
    assert_eq!(read.newest_fact, None);
    let waits = Some(update(RunStatus::RequiresAction, 3));
    append_to(&store, 1, 1, vec![running(run_id(1), 3)], waits).await;
    let read = store.load_run(HOME, run_id(1)).await.unwrap().unwrap();
    assert_eq!(read.newest_fact, Some(running(run_id(1), 3)));
}

async fn a_driver_gets_everything_and_nobody_else_does(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![driven_run(1)]).await;
    let entries = vec![running(run_id(1), 2), delta(run_id(1), 3, "😀")];
    append_to(&store, 1, 1, entries.clone(), Some(update(RunStatus::Running, 2))).await;
    let mine = store.load_driveable(node(1), run_id(1)).await.unwrap().unwrap();
    assert_eq!(mine.facts, [queued(run_id(1)), running(run_id(1), 2)]);
    assert_eq!(mine.record.row, row(&store, 1).await);
    assert_eq!(mine.record.body, driven_run(1).body);
    assert_eq!(mine.record.last_seq, 3);
    let bytes: usize = log(&store, 1).await.iter().map(|e| e.data.len()).sum();
    assert_eq!(mine.log_bytes, bytes as u64);
    assert!(store.load_driveable(node(2), run_id(1)).await.unwrap().is_none());
    assert!(store.load_driveable(node(1), run_id(77)).await.unwrap().is_none());
}

async fn durations_are_those_of_the_newest_completed_runs(store: SharedStore) {
    add_agent(&store, "a").await;
    add_agent(&store, "b").await;
    let mut other = driven_run(99);
    other.row.agent_id = agent_id("b");
    create(&store, (1..=60).map(driven_run).chain([other]).collect()).await;
    let durations = async || store.recent_durations(HOME, &agent_id("a")).await.unwrap();
    assert_eq!(durations().await, Vec::<i64>::new());
    let failed = RunUpdate { status: RunStatus::Failed, ..ends(2) };
    append_to(&store, 60, 1, vec![completed(run_id(60), 2)], Some(failed)).await;
    append_to(&store, 99, 1, vec![completed(run_id(99), 2)], Some(ends(2))).await;
    let appends =
        (1..=59).map(|n| append(n, 1, vec![completed(run_id(n), 2)], Some(ends(2)))).collect();
    store.flush(&batch(vec![], appends)).await.unwrap();
    // Run n was created at n and ended at 1000.
    let mut found = durations().await;
    found.sort_unstable();
    assert_eq!(found, (941..=990).collect::<Vec<i64>>());
    let elsewhere = store.recent_durations(ELSEWHERE, &agent_id("a")).await.unwrap();
    assert_eq!(elsewhere, Vec::<i64>::new());
}

async fn the_store_answers_and_says_what_it_is(store: SharedStore) {
    assert!(!store.beat(node(1)).await.unwrap());
    assert!(store.flush_interval() >= std::time::Duration::from_millis(1));
    // Asked twice, it says the same.
    assert_eq!(store.is_exclusive(), store.is_exclusive());
    store.close().await;
    assert!(store.beat(node(1)).await.is_err());
    store.close().await;
}
