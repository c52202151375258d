//! Who waits for whom.

use std::sync::Arc;

use sqlx::Executor as _;
use stepwell::shutdown::Tasks;
use stepwell::store::{
    CreateOutcome, GuestDecision, GuestOutcome, GuestWrite, NodeBeat, Store, StoreError,
};

use super::sample::*;
use crate::support::postgres;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_share_keys_do_not_deadlock() {
    let url = postgres::database().await;
    let keys = 40;
    let tasks = Tasks::new();
    let mut nodes = Vec::new();
    with_agent(&postgres::open(&url).await).await;
    for n in 0..4_usize {
        let store: Arc<dyn Store> = Arc::new(postgres::open(&url).await);
        nodes.push(tasks.spawn(async move {
            let me = node();
            let mut made = Vec::new();
            for round in 0..10_usize {
                // The same 32 keys of this round on each node, each in another order.
                let creates: Vec<_> = (0..32_usize)
                    .map(|i| {
                        let name = (i * [1, 3, 7, 9][n] + round * 32) % keys + round * keys;
                        let mut create = run(None);
                        create.key = Some(key(&name.to_string(), &create));
                        create
                    })
                    .collect();
                let batch = batch(me, creates, vec![]);
                let done = at_last(|| store.flush(&batch)).await;
                for (create, outcome) in batch.creates.iter().zip(done.creates) {
                    let name = create.key.as_ref().expect("a key").key.key.clone();
                    let run_id = create.row.run_id.to_string();
                    made.push(match outcome {
                        CreateOutcome::Created => (name, run_id),
                        CreateOutcome::KeyTaken(row) => (name, row.resource),
                        other => panic!("nobody moved the agent: {other:?}"),
                    });
                }
            }
            made
        }));
    }
    let mut all = Vec::new();
    for node in nodes {
        all.extend(node.await.expect("no panic"));
    }
    all.sort();
    all.dedup();
    let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), all.len(), "one run a key");
    let mut admin = postgres::connect(&url).await;
    let runs: i64 =
        sqlx::query_scalar("select count(*) from runs").fetch_one(&mut admin).await.expect("rows");
    assert_eq!(usize::try_from(runs).expect("a count"), all.len(), "no run without its key");
    let deadlocks: i64 = sqlx::query_scalar(
        "select deadlocks from pg_stat_database where datname = current_database()",
    )
    .fetch_one(&mut admin)
    .await
    .expect("a count");
    assert_eq!(deadlocks, 0);
}

#[tokio::test]
async fn a_keyed_creation_and_an_append_in_one_batch_are_one_transaction() {
    let store = postgres::store().await;
    with_agent(&store).await;
    let me = node();
    let run_id = driven(&store, me).await;
    let mut create = run(Some(me));
    create.key = Some(key("k", &create));
    let new = create.row.run_id;
    // The new run's own append is in the same batch, too.
    let all = batch(me, vec![create], vec![facts(run_id, 2), facts(new, 2)]);
    let done = store.flush(&all).await.expect("a flush");
    assert_eq!(done.creates, [CreateOutcome::Created]);
    assert_eq!(seqs(&store, run_id).await, [1, 2]);
    assert_eq!(seqs(&store, new).await, [1, 2]);
    let again = store.flush(&all).await;
    assert!(matches!(again, Err(StoreError::InDoubt(_))), "{again:?}");
}

#[tokio::test]
async fn the_loser_of_a_key_waits_for_the_winner() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let mut winner = postgres::connect(&url).await;
    winner.execute("begin").await.expect("begin");
    let mut create = run(None);
    create.key = Some(key("k", &create));
    let scope = create.key.as_ref().expect("a key").key.scope;
    sqlx::query("insert into idempotency values (1, $1, 'k', $2, 'run_winner', 0)")
        .bind(scope)
        .bind(vec![9_u8; 32])
        .execute(&mut winner)
        .await
        .expect("a key");
    let batch = batch(node(), vec![create], vec![]);
    let commit = async {
        postgres::until_somebody_waits(&url).await;
        winner.execute("commit").await.expect("commit");
    };
    let (done, ()) = tokio::join!(store.flush(&batch), commit);
    let done = done.expect("a flush");
    let CreateOutcome::KeyTaken(row) = &done.creates[0] else { panic!("{done:?}") };
    assert_eq!((row.resource.as_str(), row.fingerprint), ("run_winner", [9; 32]));
}

#[tokio::test]
async fn claims_step_over_runs_that_somebody_is_writing_to() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    with_agent(&store).await;
    let me = node();
    let (busy, free) = (run(None), run(None));
    let (busy_id, free_id) = (busy.row.run_id, free.row.run_id);
    store.flush(&batch(me, vec![busy, free], vec![])).await.expect("a flush");
    let mut guest = postgres::connect(&url).await;
    guest.execute("begin").await.expect("begin");
    sqlx::query("select 1 from runs where run_id = $1 for update")
        .bind(busy_id.uuid())
        .execute(&mut guest)
        .await
        .expect("a lock");
    let claims = store.claim_due(me, NOW, 10).await.expect("claims");
    assert_eq!(claims.iter().map(|c| c.run_id).collect::<Vec<_>>(), [free_id]);
    guest.execute("rollback").await.expect("rollback");
    let claims = store.claim_due(me, NOW, 10).await.expect("claims");
    assert_eq!(
        claims.iter().map(|c| (c.run_id, c.rev, c.epoch)).collect::<Vec<_>>(),
        [(busy_id, 2, 2)]
    );
}

#[tokio::test]
async fn a_flush_that_waits_for_a_guest_misses_what_the_guest_changed() {
    let url = postgres::database().await;
    let store = Arc::new(postgres::open(&url).await);
    with_agent(&*store).await;
    let me = node();
    let run_id = driven(&*store, me).await;
    // The guest decides only once the driver waits for its lock.
    let (decided, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let (locking, mut is_locked) = tokio::sync::mpsc::unbounded_channel();
    let write = GuestWrite {
        workspace_id: WS,
        run_id,
        key: None,
        decide: Arc::new(move |locked| {
            locking.send(()).expect("a listener");
            wait.lock().expect("no panic").recv().expect("a word");
            assert_eq!(locked.record.last_seq, 3);
            assert_eq!(locked.facts.len(), 1);
            Ok(GuestDecision::Append { facts: vec![fact(run_id, 4)], update: Box::new(update(4)) })
        }),
    };
    store.flush(&batch(me, vec![], vec![deltas(run_id, 2..4)])).await.expect("a flush");
    let tasks = Tasks::new();
    let guest = {
        let url = url.clone();
        // In a runtime of its own, because the decision blocks it.
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("one");
            runtime.block_on(async { postgres::open(&url).await.guest(write).await })
        })
    };
    is_locked.recv().await.expect("the guest has the lock");
    let flush = {
        let store = Arc::clone(&store);
        tasks
            .spawn(async move { store.flush(&batch(me, vec![], vec![deltas(run_id, 4..5)])).await })
    };
    postgres::until_somebody_waits(&url).await;
    decided.send(()).expect("a listener");
    let missed = flush.await.expect("no panic").expect("a flush");
    assert_eq!(missed.appends, [stepwell::store::AppendOutcome::Missed]);
    let done = guest.join().expect("no panic").expect("a write");
    assert!(matches!(done, GuestOutcome::Done { node_id: Some(node), .. } if node == me));
    assert_eq!(seqs(&*store, run_id).await, [1, 2, 3, 4]);
}

#[tokio::test]
async fn runs_of_a_node_whose_row_is_gone_are_orphans() {
    let store = postgres::store().await;
    with_agent(&store).await;
    let (zombie, alive, heir) = (node(), node(), node());
    for node in [zombie, alive, heir] {
        store.register_node(node, NOW).await.expect("entered");
    }
    let kept = driven(&store, alive).await;
    assert!(store.bury(NodeBeat { node_id: zombie, beat: 0 }).await.expect("buried"));
    let leaving = node();
    store.register_node(leaving, NOW).await.expect("entered");
    store.retire_node(leaving).await.expect("retired");
    // The buried node's row is gone, and now its last flush arrives.
    let run_id = driven(&store, zombie).await;
    let claims = store.claim_orphans(heir, 10).await.expect("claims");
    assert_eq!(claims.iter().map(|c| c.run_id).collect::<Vec<_>>(), [run_id]);
    let record = store.load_run(WS, run_id).await.expect("an answer").expect("a run");
    assert_eq!((record.row.node_id, record.row.crashes), (Some(heir), 1));
    assert_eq!(store.owned(alive).await.expect("runs"), [(kept, 1)]);
}
