//! Days that are dropped, and who must not wait for it; what nodes leave behind; two who sweep.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Executor as _, PgConnection};
use stepwell::domain::ids::{NodeId, RunId};
use stepwell::domain::run::RunStatus;
use stepwell::domain::time::Timestamp;
use stepwell::store::postgres::PostgresStore;
use stepwell::store::{
    Append, NodeBeat, OLDEST, Owner, RunSweep, RunUpdate, Store, StoreError, SweptDeltas,
};

use super::sample::*;
use crate::support::postgres;

/// 2020-01-03T00:00:00Z.
const THIRD: Timestamp = Timestamp::from_millis(1_578_009_600_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn make_days(admin: &mut PgConnection, days: i32) {
    let made: i32 = sqlx::query_scalar("select make_delta_partitions('2020-01-01', $1)")
        .bind(days)
        .fetch_one(admin)
        .await
        .expect("partitions");
    assert_eq!(made, days);
}

/// A delta of nobody's, written on this day.
async fn write_on(admin: &mut PgConnection, run_id: RunId, seq: i32, day: &str) {
    sqlx::query("insert into run_deltas values ($1, $2, '{}', $3::text::date)")
        .bind(run_id.uuid())
        .bind(seq)
        .bind(day)
        .execute(admin)
        .await
        .expect("a delta");
}

async fn days(admin: &mut PgConnection) -> i64 {
    let count = "select count(*) from pg_class where relname ~ '^run_deltas_2020[0-9]{4}$'";
    sqlx::query_scalar(count).fetch_one(admin).await.expect("a count")
}

async fn deltas_left(admin: &mut PgConnection) -> i64 {
    let count = "select count(*) from run_deltas";
    sqlx::query_scalar(count).fetch_one(admin).await.expect("a count")
}

const NOTHING: SweptDeltas = SweptDeltas { days: 0, deltas: 0, more: None };

#[tokio::test]
async fn a_day_is_dropped_when_all_of_it_is_old() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    let mut admin = postgres::connect(&url).await;
    make_days(&mut admin, 3).await;
    let run_id = RunId::from_uuid(node().uuid());
    for (seq, day) in [(1, "2020-01-01"), (2, "2020-01-02"), (3, "2020-01-03")] {
        write_on(&mut admin, run_id, seq, day).await;
    }
    let almost = Timestamp::from_millis(THIRD.millis() - 1);
    // The second day ends with `THIRD`; the first is the only one that is over before `almost`.
    let swept = store.sweep_deltas(None, almost).await.expect("a slice");
    assert_eq!((swept.days, swept.more.is_some()), (1, true));
    assert_eq!(store.sweep_deltas(None, almost).await.expect("a slice"), NOTHING);
    let gone_before = store.deltas_gone_before().await.expect("a time");
    assert_eq!(gone_before, THIRD.minus(DAY));
    assert_eq!(deltas_left(&mut admin).await, 2);
    assert_eq!(store.sweep_deltas(None, THIRD).await.expect("a slice").days, 1);
    assert_eq!(store.deltas_gone_before().await.expect("a time"), THIRD);
    assert_eq!((deltas_left(&mut admin).await, days(&mut admin).await), (1, 1));
}

#[tokio::test]
async fn a_day_with_the_newest_event_of_a_run_that_goes_on_is_kept() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    let mut admin = postgres::connect(&url).await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    make_days(&mut admin, 1).await;
    // As if the run had been created then: its id says when.
    let old = "01600000-0000-7000-8000-000000000000";
    for table in ["runs", "run_facts", "run_bodies"] {
        let sql = format!("update {table} set run_id = '{old}' where run_id = $1");
        let moved = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(run_id.uuid());
        assert_eq!(moved.execute(&mut admin).await.expect("moved").rows_affected(), 1);
    }
    let run_id: RunId = format!("run_{}", old.replace('-', "")).parse().expect("an id");
    write_on(&mut admin, run_id, 2, "2020-01-01").await;
    assert_eq!(store.sweep_deltas(None, THIRD).await.expect("a slice"), NOTHING);
    let driven = store.load_driveable(me, run_id).await.expect("an answer").expect("a run");
    assert_eq!(driven.record.last_seq, 2);
    store.flush(&batch(me, vec![], vec![facts(run_id, 3)])).await.expect("a flush");
    assert_eq!(store.sweep_deltas(None, THIRD).await.expect("a slice").days, 1);
    assert_eq!(seqs(&store, run_id).await, [1, 3]);
}

#[tokio::test]
async fn flushes_do_not_wait_for_a_day_that_somebody_reads() {
    let url = postgres::database().await;
    let store = Arc::new(postgres::open(&url).await);
    let mut admin = postgres::connect(&url).await;
    with_agent(&*store).await;
    let me = node();
    let run_id = driven(&*store, me).await;
    make_days(&mut admin, 1).await;
    let unmake = "do $$ begin execute 'drop table run_deltas_'                   || to_char(current_date + 5, 'YYYYMMDD'); end $$";
    admin.execute(unmake).await.expect("a day that is not prepared");
    // A backup, or a forgotten session.
    let mut reader = postgres::connect(&url).await;
    reader.execute("begin").await.expect("begin");
    reader.execute("select count(*) from run_deltas").await.expect("a count");
    // Who drops it waits for a tenth of a second: a busy machine may not see it in time, or be slow.
    let (mut last, mut tries) = (1, 0);
    loop {
        tries += 1;
        assert!(tries <= MOST_TRIES, "no flush was quick");
        let mut dropping = std::pin::pin!(store.sweep_deltas(None, THIRD));
        let (began, before) = (std::time::Instant::now(), last);
        let dropped = tokio::select! {
            dropped = &mut dropping => dropped,
            () = postgres::until_somebody_waits(&url) => {
                last += 1;
                let write = batch(me, vec![], vec![deltas(run_id, last..last + 1)]);
                store.flush(&write).await.expect("a flush");
                dropping.await
            }
        };
        assert!(matches!(dropped, Err(StoreError::Unavailable(_))), "{dropped:?}");
        if last > before && began.elapsed() < Duration::from_secs(1) {
            break;
        }
    }
    let written: Vec<i32> = (1..=last).collect();
    assert_eq!((seqs(&*store, run_id).await, days(&mut admin).await), (written, 1));
    assert_eq!(store.deltas_gone_before().await.expect("a time"), Timestamp::from_millis(0));
    // A day to come is no reason to wait, either.
    let mut tries = 0;
    loop {
        tries += 1;
        assert!(tries <= MOST_TRIES, "it waited for long each time");
        let began = std::time::Instant::now();
        let prepared = store.prepare_days().await;
        assert!(matches!(prepared, Err(StoreError::Unavailable(_))), "{prepared:?}");
        if began.elapsed() < Duration::from_secs(1) {
            break;
        }
    }
    reader.execute("rollback").await.expect("rollback");
    store.prepare_days().await.expect("a day");
    assert_eq!(store.sweep_deltas(None, THIRD).await.expect("a slice").days, 1);
}

#[tokio::test]
async fn deltas_without_a_day_of_their_own_go_in_slices() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    let mut admin = postgres::connect(&url).await;
    let fill = "insert into run_deltas (run_id, seq, data, written_on) \
                select gen_random_uuid(), i, '{}', date '2020-01-01' + i % 3 \
                from generate_series(1, 3600) i";
    admin.execute(fill).await.expect("rows");
    let first = store.sweep_deltas(None, THIRD).await.expect("a slice");
    assert_eq!((first.deltas, first.more.is_some()), (1_000, true));
    let mut gone = first.deltas;
    while store.sweep_deltas(None, THIRD).await.map(|s| gone += s.deltas).is_ok() && gone < 2_400 {}
    assert_eq!(gone, 2_400);
    assert_eq!(store.sweep_deltas(None, THIRD).await.expect("a slice"), NOTHING);
    assert_eq!(deltas_left(&mut admin).await, 1_200);
    assert_eq!(store.deltas_gone_before().await.expect("a time"), THIRD);
}

async fn ended(store: &PostgresStore, me: NodeId, last: i32) -> RunId {
    let run_id = driven(store, me).await;
    let end = RunUpdate {
        status: RunStatus::Completed,
        completed_at: Some(NOW),
        owner: Owner::Nobody { due_at: None },
        ..update(last)
    };
    let mut entries: Vec<_> = (2..last).map(|seq| delta(run_id, seq)).collect();
    entries.push(fact(run_id, last));
    let append = Append { run_id, rev: 1, entries, update: Some(end) };
    store.flush(&batch(me, vec![], vec![append])).await.expect("a flush");
    run_id
}

/// The time after everything that these tests write.
const LATER: Timestamp = Timestamp::from_millis(4_000_000_000_000);

async fn sweep_all(store: &PostgresStore) -> u64 {
    let (mut gone, mut after) = (0, OLDEST);
    loop {
        let sweep = RunSweep { after, ended_before: LATER, now: LATER };
        let swept = store.sweep_runs(sweep).await.expect("a slice");
        gone += swept.gone;
        match swept.more {
            Some(more) => after = more,
            None => return gone,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_sweep_at_once_and_neither_waits_nor_fails() {
    let url = postgres::database().await;
    let (one, two) = (postgres::open(&url).await, postgres::open(&url).await);
    with_agent(&one).await;
    let me = node();
    for n in 0..150 {
        ended(&one, me, if n % 50 == 7 { 4_500 } else { 20 }).await;
    }
    let kept = driven(&one, me).await;
    let (a, b) = tokio::join!(sweep_all(&one), sweep_all(&two));
    // What one stepped over because the other was at it is gone, or goes with the next sweep.
    let rest = sweep_all(&one).await;
    assert_eq!(a + b + rest, 150, "{a} and {b} and {rest}: no run counts twice");
    let mut admin = postgres::connect(&url).await;
    for table in ["runs", "run_bodies", "run_facts"] {
        let sql = format!("select count(*) from {table}");
        let count = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql));
        assert_eq!(count.fetch_one(&mut admin).await.expect("a count"), 1, "{table}");
    }
    assert_eq!(deltas_left(&mut admin).await, 0);
    assert_eq!(seqs(&one, kept).await, [1]);
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let deadlocks: i64 = sqlx::query_scalar(deadlocks).fetch_one(&mut admin).await.expect("one");
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn a_run_that_somebody_holds_is_stepped_over() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let me = node();
    let held = ended(&store, me, 3).await;
    ended(&store, me, 3).await;
    let mut guest = postgres::connect(&url).await;
    guest.execute("begin").await.expect("begin");
    sqlx::query("select 1 from runs where run_id = $1 for update")
        .bind(held.uuid())
        .execute(&mut guest)
        .await
        .expect("a lock");
    assert_eq!(sweep_all(&store).await, 1);
    assert_eq!(seqs(&store, held).await, [1, 2, 3]);
    guest.execute("rollback").await.expect("rollback");
    assert_eq!(sweep_all(&store).await, 1);
}

#[tokio::test]
async fn numbers_of_forgotten_nodes_go_when_they_are_old() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    let mut admin = postgres::connect(&url).await;
    let (gone, dead, alive) = (node(), node(), node());
    for node in [gone, dead, alive] {
        store.register_node(node, NOW).await.expect("entered");
    }
    with_agent(&store).await;
    driven(&store, dead).await;
    for node in [gone, dead] {
        assert!(store.bury(NodeBeat { node_id: node, beat: 0 }).await.expect("buried"));
    }
    admin.execute("delete from flushes").await.expect("no numbers");
    for node in [gone, dead, alive] {
        let fill = "insert into flushes select $1, i % 2, i, case when i % 7 = 0 then -1 - i else i end \
                    from generate_series(1, 1500) i";
        sqlx::query(fill).bind(node.uuid()).execute(&mut admin).await.expect("numbers");
    }
    let before = |millis| Timestamp::from_millis(millis);
    assert_eq!(store.sweep_nodes(before(1)).await.expect("a slice").gone, 0);
    let mut swept = 0;
    loop {
        let slice = store.sweep_nodes(before(1_401)).await.expect("a slice");
        assert!(slice.gone <= 1_000);
        swept += slice.gone;
        if slice.more.is_none() {
            break;
        }
    }
    // Some of the first lane may be too young and stand in front of the second for now.
    swept += store.sweep_nodes(before(2_000)).await.expect("a slice").gone;
    assert_eq!(swept, 1_500);
    let left = "select count(*) from flushes";
    let left: i64 = sqlx::query_scalar(left).fetch_one(&mut admin).await.expect("a count");
    assert_eq!(left, 3_000, "of a node that owns a run, and of one that lives");
}
