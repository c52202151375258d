//! Statements read as much as they answer, however many runs there are.

use sqlx::{Connection as _, Executor as _};
use stepwell::domain::ids::NodeId;
use stepwell::domain::page::{From, Order, Page};
use stepwell::domain::run::RunStatus;
use stepwell::domain::time::Timestamp;
use stepwell::store::postgres::PostgresStore;
use stepwell::store::{KeySweep, OLDEST, Owner, RunFilter, RunSweep, RunUpdate, Store as _};

use super::sample::*;
use crate::support::postgres;

/// 100,000 runs of 4 agents, all completed but for every thousandth; every tenth is labelled; half
/// belong to another workspace. One of those that go on, in the middle, has 50,000 open approvals.
const FILL: &str = "
insert into runs (run_id, workspace_id, agent_id, agent_version, status, rev, epoch, crashes,
    fact_seq, steps_completed, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens,
    created_at, completed_at)
select ('019a0000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 1 + i % 2, 'a' || i % 4, 1,
    case when i % 1000 = 0 then 2 else 10 end, 1, 1, 0, 1, 0, 0, 0, 0, 0, i, i
from generate_series(1, 100000) i;
insert into run_bodies (run_id, model, config, max_steps, metadata)
select run_id, 'builtin/echo', '{}', 20, '{}' from runs where agent_id <> 'a';
insert into run_facts (run_id, seq, kind, data) select run_id, 1, 1, '{}' from runs
where agent_id <> 'a';
insert into run_labels (workspace_id, key, value, run_id)
select workspace_id, 'k', 'v', run_id from runs where created_at % 10 = 0;
insert into run_labels (workspace_id, key, value, run_id)
select workspace_id, 'rare', 'v', run_id from runs where created_at % 100 = 0;
insert into run_deltas (run_id, seq, data, written_on)
select run_id, 2, '{}', '2020-01-01' from runs where agent_id <> 'a';
insert into idempotency (workspace_id, scope, key, fingerprint, resource, created_at)
select 1, 's', i, '', 'run_' || replace(run_id::text, '-', ''), i
from (select run_id, row_number() over () as i from runs where agent_id <> 'a') r;
insert into actions (run_id, call_id, workspace_id, kind, created_at, data)
select r.run_id, c.id, r.workspace_id, 2, 1, '{\"type\":\"approval\",\"run_id\":\"run_'
    || replace(r.run_id::text, '-', '') || '\",\"call_id\":\"call_' || replace(c.id::text, '-', '')
    || '\",\"tool\":\"t\",\"arguments\":{},\"expires_at\":null}'
from runs r
cross join lateral (
    select ('019a0000-' || lpad(to_hex(i), 4, '0') || '-7000-8000-' || right(r.run_id::text, 12))::uuid
        as id
    from generate_series(1, 50000) i
) c
where r.created_at = 50000 and r.agent_id <> 'a';
insert into flushes (node_id, lane, n, at)
select '019a0000-0000-7000-8000-000000000000', 0, i, i from generate_series(1, 100000) i;
";

/// Rows that asking everything may read: a walk through any of the tables is more.
const MOST: i64 = 20_000;

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn filters() -> Vec<RunFilter> {
    let agent_id = Some("a0".parse().expect("an id"));
    let any = RunFilter::default;
    vec![
        any(),
        RunFilter { agent_id: agent_id.clone(), ..any() },
        RunFilter { statuses: vec![RunStatus::Running], ..any() },
        RunFilter { parent_run_id: Some(run(None).row.run_id), ..any() },
        RunFilter { statuses: vec![RunStatus::Running, RunStatus::Completed], ..any() },
        RunFilter { agent_id, statuses: vec![RunStatus::Running, RunStatus::Queued], ..any() },
        RunFilter { metadata: vec![pair("k", "v")], ..any() },
        RunFilter { metadata: vec![pair("k", "v"), pair("rare", "v")], ..any() },
        RunFilter { metadata: vec![pair("rare", "v"), pair("k", "v")], ..any() },
    ]
}

/// A day of deltas that is old, in the middle of the lives of the filled-in runs. (To attach it, the
/// server reads all of `run_deltas_rest`, so this is not part of what is measured.)
const OLD_DAY: &str = "select make_delta_partitions('2025-12-01', 1)";

/// A slice of everything that is old.
async fn sweep_everything(store: &PostgresStore) {
    store.sweep_runs(RunSweep { after: OLDEST, ended_before: NOW, now: NOW }).await.expect("runs");
    let keys = KeySweep { after: None, bound_before: NOW, ended_before: NOW };
    store.sweep_keys(keys).await.expect("keys");
    store.sweep_nodes(NOW).await.expect("nodes");
    // 2026-01-01.
    let written_before = Timestamp::from_millis(1_767_225_600_000);
    assert_eq!(store.sweep_deltas(None, written_before).await.expect("a day").days, 1);
    assert_eq!(store.sweep_deltas(None, written_before).await.expect("the rest").days, 0);
}

/// A child of a run that waits for it comes to its end.
async fn end_a_child(store: &PostgresStore, me: NodeId) {
    let (parent, mut child) = (run(None), run(Some(me)));
    child.row.parent_run_id = Some(parent.row.run_id);
    let (parent_id, child_id) = (parent.row.run_id, child.row.run_id);
    store.flush(&batch(me, vec![parent, child], vec![])).await.expect("a flush");
    let mut end = facts(child_id, 2);
    end.update = end.update.map(|update| RunUpdate {
        status: RunStatus::Completed,
        parent_run_id: Some(parent_id),
        owner: Owner::Nobody { due_at: None },
        ..update
    });
    store.flush(&batch(me, vec![], vec![end])).await.expect("a flush");
}

/// Everything that is asked often, once.
async fn ask_everything(store: &PostgresStore, me: NodeId) {
    sweep_everything(store).await;
    for filter in filters() {
        for order in [Order::Asc, Order::Desc] {
            let page = Page { limit: 20, from: From::Start, order };
            let listed = store.list_runs(WS, &filter, &page).await.expect("a page");
            if listed.has_more {
                assert_eq!(listed.rows.len(), 20, "{filter:?} {order:?}");
            }
        }
    }
    let a0 = "a0".parse().expect("an id");
    store.recent_durations(WS, &a0).await.expect("durations");
    let all = [driven(store, me).await, driven(store, me).await];
    let next = run(Some(me));
    let keyed = {
        let mut create = run(None);
        create.key = Some(key(&create.row.run_id.to_string(), &create));
        create
    };
    let appends = all.iter().map(|id| facts(*id, 2)).collect();
    store.flush(&batch(me, vec![next], appends)).await.expect("a flush");
    store.flush(&batch(me, vec![keyed], vec![])).await.expect("a flush");
    let appends = all.iter().map(|id| facts(*id, 3)).collect();
    store.flush(&batch(me, vec![], appends)).await.expect("a flush");
    let appends = all.iter().map(|id| deltas(*id, 4..6)).collect();
    store.flush(&batch(me, vec![], appends)).await.expect("a flush");
    let asks = all.iter().map(|id| asking(*id, 6)).collect();
    store.flush(&batch(me, vec![], asks)).await.expect("a flush");
    for order in [Order::Asc, Order::Desc] {
        let page = Page { limit: 20, from: From::Start, order };
        let listed = store.list_approvals(WS, &page).await.expect("a page");
        assert!(!listed.rows.is_empty(), "somebody is asked");
    }
    store.heads(&all).await.expect("heads");
    for run_id in all {
        assert_eq!(seqs(store, run_id).await, [1, 2, 3, 4, 5, 6]);
        store.load_run(WS, run_id).await.expect("a run");
        store.load_driveable(me, run_id).await.expect("a run");
    }
    store.owned(me).await.expect("runs");
    end_a_child(store, me).await;
    assert_eq!(store.rouse_parents(NOW, 100).await.expect("parents").run_ids.len(), 1);
    assert_eq!(store.claim_due(me, NOW, 1).await.expect("claims").len(), 1);
    driven(store, node()).await;
    assert_eq!(store.claim_orphans(me, 2).await.expect("claims").len(), 1);
}

#[tokio::test]
async fn nothing_reads_more_than_it_needs_however_many_runs_there_are() {
    let url = postgres::database().await;
    let me = node();
    let old = postgres::open(&url).await;
    old.register_node(me, NOW).await.expect("entered");
    with_agent(&old).await;
    let mut admin = postgres::connect(&url).await;
    admin.execute(OLD_DAY).await.expect("a day");
    // Planned while the tables are empty, and never again: the worst case.
    ask_everything(&old, me).await;
    // Nearly as bad: statistics that say so.
    admin.execute(OLD_DAY).await.expect("a day");
    admin.execute("vacuum analyze").await.expect("statistics");
    let misled = postgres::open(&url).await;
    ask_everything(&misled, me).await;
    sqlx::raw_sql(FILL).execute(&mut admin).await.expect("rows");
    let unanalysed = postgres::open(&url).await;
    admin.execute(OLD_DAY).await.expect("a day");
    let before = rows_read(&url).await;
    ask_everything(&old, me).await;
    old.close().await;
    let cost = rows_read(&url).await - before;
    assert!(cost < MOST, "{cost} rows read with old plans");

    admin.execute(OLD_DAY).await.expect("a day");
    let before = rows_read(&url).await;
    ask_everything(&misled, me).await;
    misled.close().await;
    let cost = rows_read(&url).await - before;
    assert!(cost < MOST, "{cost} rows read with plans for tables that were small");

    admin.execute(OLD_DAY).await.expect("a day");
    let before = rows_read(&url).await;
    ask_everything(&unanalysed, me).await;
    unanalysed.close().await;
    let cost = rows_read(&url).await - before;
    assert!(cost < MOST, "{cost} rows read with plans that guess");

    admin.execute("vacuum analyze").await.expect("statistics");
    let analysed = postgres::open(&url).await;
    admin.execute(OLD_DAY).await.expect("a day");
    let before = rows_read(&url).await;
    ask_everything(&analysed, me).await;
    analysed.close().await;
    let cost = rows_read(&url).await - before;
    assert!(cost < MOST, "{cost} rows read with plans that know");
}

/// Rows fetched from tables and indexes so far. Connections say what they read when they end, so this
/// waits until closed stores have left.
async fn rows_read(url: &str) -> i64 {
    let mut admin = postgres::connect(url).await;
    let leaving = "select count(*) from pg_stat_activity where datname = current_database() \
                   and application_name = 'stepwell' and state is null";
    let look = async {
        while sqlx::query_scalar::<_, i64>(leaving).fetch_one(&mut admin).await.expect("some") > 0 {
        }
    };
    let patience = std::time::Duration::from_secs(20);
    tokio::time::timeout(patience, look).await.expect("closed stores leave");
    let rows = sqlx::query_scalar(
        "select coalesce(sum(coalesce(t.seq_tup_read, 0) + coalesce(i.idx_tup_read, 0)), 0)::bigint
        from pg_stat_user_tables t
        left join lateral (
            select sum(i.idx_tup_read) as idx_tup_read
            from pg_stat_user_indexes i
            where i.relid = t.relid
        ) i on true
        where t.relname like 'run%'
        or t.relname in ('flushes', 'idempotency', 'actions', 'child_signals')",
    )
    .fetch_one(&mut admin)
    .await
    .expect("statistics");
    admin.close().await.expect("a clean end");
    rows
}
