use stepwell::domain::ids::ConversationId;
use stepwell::domain::money::Usd;
use stepwell::domain::usage::Usage;
use stepwell::store::{CreateOutcome, KeyRow, NewRun, SharedStore, StoreError, Written};
use uuid::Uuid;

use super::fixtures::*;
use crate::support::databases::conformance;

conformance!(
    a_new_run_reads_back_as_it_was_written,
    the_first_of_two_equal_keys_wins_also_inside_one_batch,
    a_key_that_is_bound_is_told_with_its_row,
    a_taken_key_is_told_before_a_moved_agent,
    a_run_of_an_agent_that_moved_on_is_not_created,
    a_run_of_an_archived_agent_is_not_created,
    one_creation_that_cannot_be_does_not_fail_its_batch,
    a_creation_that_fails_binds_no_key,
    a_run_id_exists_once_and_the_whole_batch_is_refused,
    a_key_may_be_bound_to_a_run_and_found,
    a_batch_of_many_runs_goes_in_whole,
    an_empty_batch_is_nothing,
);

async fn a_new_run_reads_back_as_it_was_written(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut full = new_run(1);
    full.row.usage = Usage::new(1_000, 200, 300, 40);
    full.row.cost = Some(Usd::from_micros(12_345));
    full.row.status_message = Some("waits 😀".to_owned());
    full.row.conversation_id = Some(ConversationId::from_uuid(Uuid::from_u128(5)));
    full.row.parent_run_id = Some(run_id(900));
    full.row.root_run_id = Some(run_id(899));
    full.row.forked_from_run_id = Some(run_id(901));
    full.row.end_user_id = Some("user \"7\"".to_owned());
    full.row.started_at = Some(at(3));
    full.row.completed_at = Some(at(4));
    full.body.metadata.insert("käse".to_owned(), "a'b\\c\n😀".to_owned());
    full.body.config.system_prompt = Some("nul \u{0} and more".to_owned());
    let mut bare = driven_run(2);
    bare.row.cost = None;
    bare.body.estimated_cost = None;
    bare.body.config.max_steps = None;
    create(&store, vec![full.clone(), bare.clone()]).await;
    for new in [full, bare] {
        let read = store.load_run(HOME, new.row.run_id).await.unwrap().unwrap();
        assert_eq!(read.row, new.row);
        assert_eq!(read.body, new.body);
        assert_eq!(read.last_seq, 1);
        assert_eq!(read.first, Some(new.first.clone()));
        assert_eq!(read.newest_fact, None);
        assert_eq!(store.read_log(HOME, new.row.run_id, ALL).await.unwrap(), Some(vec![new.first]));
    }
}

fn keyed(n: u32, name: &str) -> NewRun {
    NewRun { key: Some(key(name, &run_id(n).to_string())), ..new_run(n) }
}

fn key_row(n: u32) -> KeyRow {
    KeyRow { fingerprint: [7; 32], resource: run_id(n).to_string() }
}

async fn the_first_of_two_equal_keys_wins_also_inside_one_batch(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut other_request = keyed(3, "k");
    if let Some(new) = &mut other_request.key {
        new.key.fingerprint = [9; 32];
    }
    let creates = vec![keyed(1, "k"), keyed(2, "k"), other_request, keyed(4, "l")];
    let outcome = store.flush(&batch(creates, vec![])).await.unwrap();
    assert_eq!(
        outcome.creates,
        [
            CreateOutcome::Created,
            CreateOutcome::KeyTaken(key_row(1)),
            CreateOutcome::KeyTaken(key_row(1)),
            CreateOutcome::Created,
        ]
    );
    assert_eq!(store.load_run(HOME, run_id(2)).await.unwrap(), None);
    assert_eq!(store.read_log(HOME, run_id(3), ALL).await.unwrap(), None);
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), Some(key_row(1)));
}

async fn a_key_that_is_bound_is_told_with_its_row(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![keyed(1, "k")]).await;
    let outcome = store.flush(&batch(vec![keyed(2, "k"), new_run(3)], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::KeyTaken(key_row(1)), CreateOutcome::Created]);
}

async fn a_taken_key_is_told_before_a_moved_agent(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![keyed(1, "k")]).await;
    store.archive_agent(HOME, &agent_id("a"), at(5), None).await.unwrap();
    let outcome = store.flush(&batch(vec![keyed(2, "k")], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::KeyTaken(key_row(1))]);
}

async fn a_run_of_an_agent_that_moved_on_is_not_created(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut second = agent("a");
    second.version = 2;
    let done = store.insert_agent_version(HOME, &second, None).await.unwrap();
    assert_eq!(done, Written::Done(true));
    let mut current = new_run(2);
    current.row.agent_version = 2;
    let mut unborn = new_run(3);
    unborn.row.agent_version = 3;
    let mut absent = new_run(4);
    absent.row.agent_id = agent_id("nobody");
    let mut foreign = new_run(5);
    foreign.row.workspace_id = ELSEWHERE;
    let creates = vec![new_run(1), current, unborn, absent, foreign];
    let outcome = store.flush(&batch(creates, vec![])).await.unwrap();
    let moved = CreateOutcome::AgentMoved;
    assert_eq!(
        outcome.creates,
        [moved.clone(), CreateOutcome::Created, moved.clone(), moved.clone(), moved]
    );
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
}

async fn a_run_of_an_archived_agent_is_not_created(store: SharedStore) {
    add_agent(&store, "a").await;
    store.archive_agent(HOME, &agent_id("a"), at(5), None).await.unwrap();
    let outcome = store.flush(&batch(vec![new_run(1)], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::AgentMoved]);
    assert_eq!(store.load_run(HOME, run_id(1)).await.unwrap(), None);
}

async fn one_creation_that_cannot_be_does_not_fail_its_batch(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut stale = new_run(1);
    stale.row.agent_version = 9;
    let outcome = store.flush(&batch(vec![stale, new_run(2)], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::AgentMoved, CreateOutcome::Created]);
    assert_eq!(row(&store, 2).await, new_run(2).row);
}

async fn a_creation_that_fails_binds_no_key(store: SharedStore) {
    add_agent(&store, "a").await;
    let mut stale = keyed(1, "k");
    stale.row.agent_version = 9;
    let outcome = store.flush(&batch(vec![stale], vec![])).await.unwrap();
    assert_eq!(outcome.creates, [CreateOutcome::AgentMoved]);
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), None);
    create(&store, vec![keyed(2, "k")]).await;
}

async fn a_run_id_exists_once_and_the_whole_batch_is_refused(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![new_run(1)]).await;
    let refused = store.flush(&batch(vec![keyed(2, "k"), new_run(1)], vec![])).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    assert_eq!(store.load_run(HOME, run_id(2)).await.unwrap(), None);
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), None);
    // The half that can be goes in when it comes alone.
    create(&store, vec![keyed(2, "k")]).await;
}

async fn a_key_may_be_bound_to_a_run_and_found(store: SharedStore) {
    add_agent(&store, "a").await;
    create(&store, vec![keyed(1, "k")]).await;
    assert_eq!(store.find_key(&key("k", "").key).await.unwrap(), Some(key_row(1)));
    let mut elsewhere = key("k", "").key;
    elsewhere.workspace_id = ELSEWHERE;
    assert_eq!(store.find_key(&elsewhere).await.unwrap(), None);
}

async fn a_batch_of_many_runs_goes_in_whole(store: SharedStore) {
    add_agent(&store, "a").await;
    let runs = (0..300)
        .map(|n| {
            let mut new = keyed(n, &format!("key {n}"));
            new.body.metadata.insert("n".to_owned(), n.to_string());
            new
        })
        .collect();
    create(&store, runs).await;
    for n in [0, 17, 299] {
        let read = store.load_run(HOME, run_id(n)).await.unwrap().unwrap();
        assert_eq!(read.body.metadata.get("n"), Some(&n.to_string()));
    }
}

async fn an_empty_batch_is_nothing(store: SharedStore) {
    let outcome = store.flush(&batch(vec![], vec![])).await.unwrap();
    assert_eq!((outcome.creates.len(), outcome.appends.len()), (0, 0));
}
