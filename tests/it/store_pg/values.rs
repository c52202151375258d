//! Values that Postgres refuses, and servers that we refuse.

use sqlx::Executor as _;
use stepwell::store::postgres::{Options, PostgresStore};
use stepwell::store::{AppendOutcome, CreateOutcome, Store as _, StoreError};

use super::sample::*;
use crate::support::postgres;

#[tokio::test]
async fn a_value_with_nul_fails_the_batch_and_its_neighbours_pass_without_it() {
    let store = postgres::store().await;
    with_agent(&store).await;
    let me = node();
    let mut creates: Vec<_> = (0..50).map(|_| run(Some(me))).collect();
    creates[17].body.metadata.insert("note".to_owned(), "a\0b".to_owned());
    let whole = batch(me, creates.clone(), vec![]);
    let refused = store.flush(&whole).await;
    assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    let bad = creates.remove(17);
    for create in &creates {
        assert_eq!(store.load_run(WS, create.row.run_id).await.expect("an answer"), None);
    }
    // As the journal bisects: other batches under other numbers.
    let done = store.flush(&batch(me, creates.clone(), vec![])).await.expect("a flush");
    assert!(done.creates.iter().all(|outcome| *outcome == CreateOutcome::Created));
    let alone = store.flush(&batch(me, vec![bad], vec![])).await;
    assert!(matches!(alone, Err(StoreError::Rejected(_))), "{alone:?}");

    let [good, bad] = [creates[0].row.run_id, creates[1].row.run_id];
    let mut refused = facts(bad, 2);
    refused.update.as_mut().expect("an update").status_message = Some("\0".to_owned());
    let both = batch(me, vec![], vec![facts(good, 2), refused]);
    assert!(matches!(store.flush(&both).await, Err(StoreError::Rejected(_))));
    assert_eq!(seqs(&store, good).await, [1]);
    let done = store.flush(&batch(me, vec![], vec![facts(good, 2)])).await.expect("a flush");
    assert_eq!(done.appends, [AppendOutcome::Written]);
    // In events NUL is escaped, and passes.
    store.flush(&batch(me, vec![], vec![deltas(good, 3..4)])).await.expect("a flush");
    assert_eq!(seqs(&store, good).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_seq_that_is_taken_is_refused_and_nothing_is_overwritten() {
    let store = postgres::store().await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    store.flush(&batch(me, vec![], vec![deltas(run_id, 2..4)])).await.expect("a flush");
    for again in [facts(run_id, 1), deltas(run_id, 3..5)] {
        let refused = store.flush(&batch(me, vec![], vec![again])).await;
        assert!(matches!(refused, Err(StoreError::Rejected(_))), "{refused:?}");
    }
    assert_eq!(seqs(&store, run_id).await, [1, 2, 3]);
}

#[tokio::test]
async fn deltas_go_to_the_partition_of_their_day() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    store.flush(&batch(me, vec![], vec![deltas(run_id, 2..5)])).await.expect("a flush");
    store.make_partitions().await.expect("as often as you like");
    let mut admin = postgres::connect(&url).await;
    let partitions: i64 = sqlx::query_scalar(
        "select count(*) from pg_inherits where inhparent = 'run_deltas'::regclass",
    )
    .fetch_one(&mut admin)
    .await
    .expect("a count");
    assert!(partitions >= 9, "today, a week and the rest: {partitions}");
    let rest: i64 = sqlx::query_scalar("select count(*) from run_deltas_rest")
        .fetch_one(&mut admin)
        .await
        .expect("a count");
    assert_eq!(rest, 0);
    // A day without a partition fails nothing, and one that the rest has rows of is left there.
    admin
        .execute("insert into run_deltas values (gen_random_uuid(), 1, 'x', current_date + 30)")
        .await
        .expect("it has a place");
    let made: i32 = sqlx::query_scalar("select make_delta_partitions(current_date + 29, 3)")
        .fetch_one(&mut admin)
        .await
        .expect("partitions");
    assert_eq!(made, 2);
}

#[tokio::test]
async fn an_unsafe_server_is_refused_until_asked_for() {
    let cluster = postgres::Cluster::start(&["fsync=off"]);
    let url = format!("{}/postgres", cluster.url);
    let refused = PostgresStore::open(&url, Options::default()).await.err();
    assert!(
        matches!(&refused, Some(StoreError::Unusable(why)) if why.contains("fsync")),
        "{refused:?}"
    );
    let options = Options { unsafe_durability: true, ..Options::default() };
    assert!(PostgresStore::open(&url, options).await.is_ok());
    let unreadable = PostgresStore::open("postgres//secret", Options::default()).await.err();
    assert!(
        matches!(&unreadable, Some(StoreError::Unusable(why)) if !why.contains("secret")),
        "{unreadable:?}"
    );
}

#[tokio::test]
async fn nodes_that_start_together_migrate_once() {
    let url = postgres::empty_database().await;
    let (a, b) = (postgres::open(&url).await, postgres::open(&url).await);
    let (first, second) = tokio::join!(a.migrate(), b.migrate());
    first.expect("migrated");
    second.expect("migrated");
    assert!(!a.beat(node()).await.expect("it answers"));
    let mut admin = postgres::connect(&url).await;
    admin.execute("update meta set min_reader_version = 99").await.expect("a newer schema");
    assert!(matches!(a.migrate().await, Err(StoreError::Unusable(_))));
    a.close().await;
    assert!(matches!(a.beat(node()).await, Err(StoreError::Unavailable(_))));
}
