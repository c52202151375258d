//! Batches whose answer was lost.

use sqlx::Executor as _;
use stepwell::store::{AppendOutcome, CreateOutcome, KeyRow, Store as _, StoreError};

use super::sample::*;
use crate::support::postgres;
use crate::support::proxy::{Loss, Proxy};

/// What every flush has in its text.
const FLUSH: &str = "with numbered as";

#[tokio::test]
async fn a_batch_whose_answer_was_lost_turns_out_to_be_in() {
    let url = postgres::database().await;
    let proxy = Proxy::before(&url).await;
    let store = postgres::open(&proxy.url).await;
    with_agent(&store).await;
    let me = node();
    let (mine, lost) = (driven(&store, me).await, driven(&store, me).await);
    let mut taken = run(None);
    taken.key = Some(key("k", &taken));
    store.flush(&batch(me, vec![taken.clone()], vec![])).await.expect("a flush");

    let plain = run(None);
    let mut other_agent = run(None);
    other_agent.row.agent_version = 2;
    let mut same_key = run(None);
    same_key.key = Some(key("k", &same_key));
    let creates = vec![plain, other_agent, same_key];
    let mut fenced = deltas(lost, 2..4);
    fenced.rev = 7;
    let batches = [
        batch(me, creates, vec![]),
        batch(me, vec![], vec![facts(mine, 2), fenced.clone()]),
        batch(me, vec![], vec![deltas(mine, 3..5), fenced]),
    ];
    for batch in &batches {
        proxy.lose(FLUSH, Loss::Answer);
        let answer = store.flush(batch).await;
        assert!(matches!(answer, Err(StoreError::InDoubt(_))), "{answer:?}");
        let outcome = store.resolve(batch).await.expect("settled").expect("it is in");
        if batch.creates.is_empty() {
            assert_eq!(outcome.appends, [AppendOutcome::Written, AppendOutcome::Missed]);
        } else {
            let resource = taken.row.run_id.to_string();
            assert_eq!(
                outcome.creates,
                [
                    CreateOutcome::Created,
                    CreateOutcome::AgentMoved,
                    CreateOutcome::KeyTaken(KeyRow { fingerprint: [7; 32], resource }),
                ]
            );
        }
        // Settled is settled.
        assert_eq!(store.resolve(batch).await.expect("settled"), Some(outcome));
    }
    for batch in &batches {
        // A number is used once.
        let again = store.flush(batch).await;
        assert!(matches!(again, Err(StoreError::InDoubt(_))), "{again:?}");
    }
    assert_eq!(seqs(&store, mine).await, [1, 2, 3, 4]);
    assert_eq!(seqs(&store, lost).await, [1]);
}

#[tokio::test]
async fn a_batch_that_arrives_after_it_was_given_up_changes_nothing() {
    let url = postgres::database().await;
    let proxy = Proxy::before(&url).await;
    let store = postgres::open(&proxy.url).await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    // The statement is prepared, so that the batch is in the bytes that are held back.
    store.flush(&batch(me, vec![], vec![facts(run_id, 2)])).await.expect("a flush");
    let late = batch(me, vec![], vec![facts(run_id, 3)]);
    proxy.lose(FLUSH, Loss::Kept);
    let answer = store.flush(&late).await;
    assert!(matches!(answer, Err(StoreError::InDoubt(_))), "{answer:?}");
    assert_eq!(store.resolve(&late).await.expect("settled"), None);
    let said = proxy.release().await;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("23505") && said.contains("flushes_pkey"), "{said}");
    assert_eq!(seqs(&store, run_id).await, [1, 2]);
    assert_eq!(store.resolve(&late).await.expect("settled"), None);
    // The same events under another number.
    let again = batch(me, vec![], late.appends.clone());
    assert_eq!(store.flush(&again).await.expect("a flush").appends, [AppendOutcome::Written]);
}

#[tokio::test]
async fn a_backend_that_still_writes_the_batch_is_ended() {
    let url = postgres::database().await;
    let proxy = Proxy::before(&url).await;
    let store = postgres::open(&proxy.url).await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    // Connections are there before anything is in their way.
    store.flush(&batch(me, vec![], vec![facts(run_id, 2)])).await.expect("a flush");
    let mut neighbour = postgres::connect(&url).await;
    neighbour.execute("begin").await.expect("begin");
    neighbour.execute("select 1 from runs for update").await.expect("a lock");
    let batch = batch(me, vec![], vec![facts(run_id, 3)]);
    let flush = store.flush(&batch);
    let cut = async {
        postgres::until_somebody_waits(&url).await;
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(flush, cut);
    assert!(matches!(answer, Err(StoreError::InDoubt(_))), "{answer:?}");
    assert_eq!(store.resolve(&batch).await.expect("settled"), None);
    neighbour.execute("commit").await.expect("commit");
    assert_eq!(seqs(&postgres::open(&url).await, run_id).await, [1, 2]);
}

#[tokio::test]
async fn connections_that_died_are_replaced() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    let mut admin = postgres::connect(&url).await;
    // And waits until they are gone.
    let end_all = "select pg_terminate_backend(pid, 60000) from pg_stat_activity \
                   where datname = current_database() and pid <> pg_backend_pid()";
    admin.execute(end_all).await.expect("an end");
    // Whoever finds the dead connection is told; the next one gets another.
    let first = store.load_run(WS, run_id).await;
    assert!(matches!(first, Err(StoreError::Unavailable(_))), "{first:?}");
    assert!(store.load_run(WS, run_id).await.expect("an answer").is_some());
    let batch = batch(me, vec![], vec![facts(run_id, 2)]);
    let answer = store.flush(&batch).await;
    assert!(matches!(answer, Err(StoreError::InDoubt(_))), "{answer:?}");
    assert_eq!(store.resolve(&batch).await.expect("settled"), None);
}

#[tokio::test]
async fn old_numbers_of_a_lane_go_a_few_at_a_time() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let me = node();
    let mut admin = postgres::connect(&url).await;
    // 300 old ones, and young ones after them.
    let fill = "insert into flushes select $1, lane, n, case when n <= 300 then 1 else $2 end \
                from generate_series(1, 6000) n, generate_series(0, 1) lane";
    sqlx::query(fill).bind(me.uuid()).bind(NOW.millis()).execute(&mut admin).await.expect("rows");
    let mut batch = batch(me, vec![run(None)], vec![]);
    batch.number = 6144;
    store.flush(&batch).await.expect("a flush");
    let left = "select count(*) from flushes group by lane order by lane";
    let left: Vec<i64> = sqlx::query_scalar(left).fetch_all(&mut admin).await.expect("counts");
    assert_eq!(left, [6000 - 300 + 1, 6000]);
}
