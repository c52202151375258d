use stepwell::domain::run::RunStatus;
use stepwell::store::{LogRange, SharedStore};

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_log_is_read_in_pages_upwards,
    a_log_is_read_in_pages_downwards,
    a_page_beyond_the_end_is_empty_and_an_absent_run_is_not_there,
    a_log_is_read_from_its_own_workspace_only,
    facts_are_read_from_any_place,
    heads_are_those_of_the_runs_that_are_there,
);

/// Run 1 with events 1..=10 of which 1, 2, 5 and 10 are facts.
async fn start(store: &SharedStore) {
    add_agent(store, "a").await;
    create(store, vec![driven_run(1), driven_run(2)]).await;
    let run = run_id(1);
    let entries = (2..=10)
        .map(|seq| if [2, 5, 10].contains(&seq) { running(run, seq) } else { delta(run, seq, "d") })
        .collect();
    append_to(store, 1, 1, entries, Some(update(RunStatus::Running, 10))).await;
}

async fn seqs(store: &SharedStore, range: LogRange) -> Vec<i32> {
    let page = store.read_log(HOME, run_id(1), range).await.unwrap().unwrap();
    page.iter().map(|entry| entry.seq).collect()
}

async fn a_log_is_read_in_pages_upwards(store: SharedStore) {
    start(&store).await;
    let up = |above, below, limit| LogRange { above, below, limit, descending: false };
    assert_eq!(seqs(&store, up(0, i32::MAX, 4)).await, [1, 2, 3, 4]);
    assert_eq!(seqs(&store, up(4, i32::MAX, 4)).await, [5, 6, 7, 8]);
    assert_eq!(seqs(&store, up(8, i32::MAX, 4)).await, [9, 10]);
    assert_eq!(seqs(&store, up(3, 6, 4)).await, [4, 5]);
    assert_eq!(seqs(&store, up(0, 2, 1)).await, [1]);
}

async fn a_log_is_read_in_pages_downwards(store: SharedStore) {
    start(&store).await;
    let down = |above, below, limit| LogRange { above, below, limit, descending: true };
    assert_eq!(seqs(&store, down(0, i32::MAX, 4)).await, [10, 9, 8, 7]);
    assert_eq!(seqs(&store, down(0, 7, 4)).await, [6, 5, 4, 3]);
    assert_eq!(seqs(&store, down(0, 3, 4)).await, [2, 1]);
    assert_eq!(seqs(&store, down(3, 6, 4)).await, [5, 4]);
}

async fn a_page_beyond_the_end_is_empty_and_an_absent_run_is_not_there(store: SharedStore) {
    start(&store).await;
    let beyond = LogRange { above: 10, ..ALL };
    assert_eq!(store.read_log(HOME, run_id(1), beyond).await.unwrap(), Some(vec![]));
    let none = LogRange { above: 5, below: 6, ..ALL };
    assert_eq!(store.read_log(HOME, run_id(1), none).await.unwrap(), Some(vec![]));
    assert_eq!(store.read_log(HOME, run_id(77), ALL).await.unwrap(), None);
}

async fn a_log_is_read_from_its_own_workspace_only(store: SharedStore) {
    start(&store).await;
    assert_eq!(store.read_log(ELSEWHERE, run_id(1), ALL).await.unwrap(), None);
    assert_eq!(store.read_facts(ELSEWHERE, run_id(1), 0).await.unwrap(), []);
    assert_eq!(store.load_run(ELSEWHERE, run_id(1)).await.unwrap(), None);
}

async fn facts_are_read_from_any_place(store: SharedStore) {
    start(&store).await;
    for (above, expected) in [(0, vec![1, 2, 5, 10]), (2, vec![5, 10]), (10, vec![])] {
        let facts = store.read_facts(HOME, run_id(1), above).await.unwrap();
        assert_eq!(facts.iter().map(|f| f.seq).collect::<Vec<_>>(), expected);
    }
    assert_eq!(store.read_facts(HOME, run_id(77), 0).await.unwrap(), []);
}

async fn heads_are_those_of_the_runs_that_are_there(store: SharedStore) {
    start(&store).await;
    append_to(&store, 1, 1, vec![delta(run_id(1), 11, "d")], None).await;
    let mut heads = store.heads(&[run_id(2), run_id(77), run_id(1)]).await.unwrap();
    heads.sort();
    assert_eq!(heads, [(run_id(1), 11), (run_id(2), 1)]);
    assert_eq!(store.heads(&[]).await.unwrap(), []);
}
