//! Deleting what is old, slice by slice. Readers find what is to go; the writer, for which every flush
//! waits, only deletes: 200 rows a turn or so.

use sqlx::types::Uuid;
use sqlx::{FromRow as _, Row as _, SqliteConnection};

use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::retention::{self, Bounds, Held, Slice, Walked};
use crate::store::{KeySweep, Result, RunSweep, Swept, SweptDeltas};

use super::readers::Readers;
use super::table::Table;
use super::writer::Writer;
use super::{failure, nodes};

/// With their rows, bodies and labels some 200 rows, of which most are events.
const SLICE: Bounds = Bounds { walked: 200, runs: 20, events: 150 };
/// Keys of a slice, and those that were bound in the same millisecond as its last.
const KEYS: i64 = 200;
/// Deltas of a slice.
const DELTAS: usize = 200;
/// Pages that one turn of the writer gives back: each is one more page of the file to be moved.
const PAGES: i64 = 100;
/// Free pages that stay whatever the size of the file.
const KEPT_PAGES: i64 = 256;
/// Of so many pages of the file one may be free: new rows will want them.
const KEPT_SHARE: i64 = 10;

/// By the unique index of `runs`, in its order.
const WALK: &str = "\
select r.run_id, coalesce(r.status >= 10 and r.completed_at < ?3, 0) as is_old
from runs r
where r.run_id > ?1
and r.run_id < ?2
order by r.run_id
limit ?4";

/// By the unique index of `runs` and the primary key of `run_bodies`. What was erased has no body.
const HOLD: &str = "\
select r.run_no, r.run_id, r.workspace_id, r.fact_seq, b.metadata
from jsonb_each(?1) v
cross join runs r
on r.run_id = unhex(v.value ->> 0)
left join run_bodies b
on b.run_id = r.run_id";

/// By primary keys and unique indexes; `?1`: numbers of runs.
const DELETE_FACTS: &str = "\
delete from run_facts
where run_no in (
    select v.value ->> 0
    from jsonb_each(?1) v
)";
const DELETE_DELTAS: &str = "\
delete from run_deltas
where run_no in (
    select v.value ->> 0
    from jsonb_each(?1) v
)";
const DELETE_RUNS: &str = "\
delete from runs
where run_no in (
    select v.value ->> 0
    from jsonb_each(?1) v
)";
/// `?1`: ids of runs.
const DELETE_BODIES: &str = "\
delete from run_bodies
where run_id in (
    select unhex(v.value ->> 0)
    from jsonb_each(?1) v
)";
const DELETE_LABELS: &str = "\
delete from run_labels
where (workspace_id, key, value, run_id) in (
    select v.value ->> 0, v.value ->> 1, v.value ->> 2, unhex(v.value ->> 3)
    from jsonb_each(?1) v
)";

/// The end of a log, by the unique indexes.
const CUT_FACTS: &str = "\
delete from run_facts
where run_no = ?1
and seq > ?2";
const CUT_DELTAS: &str = "\
delete from run_deltas
where run_no = ?1
and seq > ?2";
/// By the primary key of `runs`: as an erasure.
const CUT_RUN: &str = "\
update runs
set rev = rev + 1,
    deleted_at = coalesce(deleted_at, ?3),
    fact_seq = ?2,
    node_id = null,
    due_at = null,
    status_message = null,
    end_user_id = null
where run_no = ?1";

/// By `idempotency_by_age`, in its order.
const OLD_KEYS: &str = "\
select max(o.created_at)
from (
    select i.created_at
    from idempotency i
    where i.created_at > ?1
    and i.created_at < ?2
    order by i.created_at
    limit ?3
) o";

/// By `idempotency_by_age`, then by the unique index of `runs`. A key stands for an agent, for a run, or
/// for a run that is not there any more.
const DELETE_KEYS: &str = "\
delete from idempotency as i
where i.created_at > ?1
and i.created_at <= ?2
and coalesce((
    select r.status < 10 or r.completed_at >= ?3
    from runs r
    where r.run_id = iif(i.resource like 'run@_%' escape '@', unhex(substr(i.resource, 5)), null)
), 0) = 0";

/// By the primary key of `run_deltas`, which grows with time.
const OLD_DELTAS: &str = "\
select d.rowid, d.written_at < ?2
from run_deltas d
where d.rowid > ?1
order by d.rowid
limit ?3";

/// By the primary keys of `run_deltas` and `runs`. The newest event of a run that will go on stays.
const DELETE_OLD_DELTAS: &str = "\
delete from run_deltas as d
where d.rowid > ?1
and d.rowid <= ?2
and d.written_at < ?3
and coalesce((
    select r.status < 10 and d.seq > r.fact_seq
    from runs r
    where r.run_no = d.run_no
), 0) = 0";

/// All of `meta`: one row.
const NOTE: &str = "\
update meta
set deltas_gone_before = ?1
where deltas_gone_before < ?1";

/// All of `meta`: one row.
const GONE_BEFORE: &str = "\
select deltas_gone_before
from meta";

const SPACE: &str = "\
select f.freelist_count, p.page_count
from pragma_freelist_count f
cross join pragma_page_count p";

/// The number must be [`PAGES`].
const GIVE_BACK: &str = "pragma incremental_vacuum(100)";

pub(super) async fn sweep_runs(
    readers: &Readers,
    writer: &Writer,
    sweep: RunSweep,
) -> Result<Swept<RunId>> {
    let walk = sqlx::query(WALK)
        .bind(sweep.after.uuid())
        .bind(retention::ids_before(sweep.ended_before))
        .bind(sweep.ended_before.millis())
        .bind(SLICE.walked as i64);
    let walked = readers.all(walk).await?;
    let walked = walked
        .iter()
        .map(|row| {
            let run_id = row.try_get("run_id").map_err(failure::of)?;
            let is_old = row.try_get("is_old").map_err(failure::of)?;
            Ok(Walked { run_id: RunId::from_uuid(run_id), is_old })
        })
        .collect::<Result<Vec<_>>>()?;
    let candidates = retention::candidates(&walked, SLICE);
    if candidates.is_empty() {
        let Slice { more, .. } = retention::cut(sweep.after, &walked, Vec::new(), SLICE);
        return Ok(Swept { gone: 0, more });
    }
    writer
        .write(move |connection| {
            Box::pin(async move { delete(connection, sweep, &walked, &candidates).await })
        })
        .await
}

async fn delete(
    connection: &mut SqliteConnection,
    sweep: RunSweep,
    walked: &[Walked],
    candidates: &[Uuid],
) -> Result<Swept<RunId>> {
    let mut ids = Table::new();
    for run_id in candidates {
        ids.row().uuid(*run_id);
    }
    let query = sqlx::query(HOLD).bind(ids.json());
    let rows = query.fetch_all(&mut *connection).await.map_err(failure::of)?;
    let held = rows
        .iter()
        .map(|row| {
            let (run_no, run_id, workspace_id, fact_seq, metadata) =
                sqlx::FromRow::from_row(row).map_err(failure::of)?;
            let (run_id, workspace_id) = (RunId::from_uuid(run_id), WorkspaceId(workspace_id));
            Ok(Held { run_id, run_no, workspace_id, fact_seq, metadata })
        })
        .collect::<Result<Vec<_>>>()?;
    let Slice { whole, part, more } = retention::cut(sweep.after, walked, held, SLICE);
    if !whole.is_empty() {
        delete_whole(connection, &whole).await?;
    }
    if let Some((run, keep)) = part {
        delete_part(connection, &run, keep, sweep.now).await?;
    }
    Ok(Swept { gone: whole.len() as u64, more })
}

async fn delete_whole(connection: &mut SqliteConnection, runs: &[Held]) -> Result<()> {
    let (mut numbers, mut ids) = (Table::new(), Table::new());
    for run in runs {
        numbers.row().int(run.run_no);
        ids.row().uuid(run.run_id.uuid());
    }
    let (numbers, ids) = (numbers.json(), ids.json());
    delete_labels(connection, runs).await?;
    for query in [
        sqlx::query(DELETE_BODIES).bind(ids),
        sqlx::query(DELETE_FACTS).bind(numbers.clone()),
        sqlx::query(DELETE_DELTAS).bind(numbers.clone()),
        sqlx::query(DELETE_RUNS).bind(numbers),
    ] {
        query.execute(&mut *connection).await.map_err(failure::of)?;
    }
    Ok(())
}

async fn delete_part(
    connection: &mut SqliteConnection,
    run: &Held,
    keep: i32,
    now: Timestamp,
) -> Result<()> {
    let mut id = Table::new();
    id.row().uuid(run.run_id.uuid());
    delete_labels(connection, std::slice::from_ref(run)).await?;
    for query in [
        sqlx::query(DELETE_BODIES).bind(id.json()),
        sqlx::query(CUT_FACTS).bind(run.run_no).bind(keep),
        sqlx::query(CUT_DELTAS).bind(run.run_no).bind(keep),
        sqlx::query(CUT_RUN).bind(run.run_no).bind(keep).bind(now.millis()),
    ] {
        query.execute(&mut *connection).await.map_err(failure::of)?;
    }
    Ok(())
}

async fn delete_labels(connection: &mut SqliteConnection, runs: &[Held]) -> Result<()> {
    let mut labels = Table::new();
    for run in runs {
        for (key, value) in run.labels() {
            labels.row().int(run.workspace_id.0).text(&key).text(&value).uuid(run.run_id.uuid());
        }
    }
    if labels.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(DELETE_LABELS).bind(labels.json());
    query.execute(connection).await.map(drop).map_err(failure::of)
}

pub(super) async fn sweep_keys(
    readers: &Readers,
    writer: &Writer,
    sweep: KeySweep,
) -> Result<Swept<Timestamp>> {
    let after = sweep.after.map_or(i64::MIN, Timestamp::millis);
    let query = sqlx::query(OLD_KEYS).bind(after).bind(sweep.bound_before.millis()).bind(KEYS);
    let row = readers.first(query).await?;
    let until: Option<i64> =
        row.map(|row| row.try_get(0)).transpose().map_err(failure::of)?.flatten();
    let Some(until) = until else { return Ok(Swept::NOTHING) };
    let query = sqlx::query(DELETE_KEYS).bind(after).bind(until).bind(sweep.ended_before.millis());
    let gone = nodes::change(writer, query).await?;
    Ok(Swept { gone, more: Some(Timestamp::from_millis(until)) })
}

pub(super) async fn sweep_deltas(
    readers: &Readers,
    writer: &Writer,
    after: Option<i64>,
    written_before: Timestamp,
) -> Result<SweptDeltas> {
    let (after, before) = (after.unwrap_or(0), written_before.millis());
    let query = sqlx::query(OLD_DELTAS).bind(after).bind(before).bind(DELTAS as i64);
    let rows = readers.all(query).await?;
    let found = rows
        .iter()
        .map(|row| <(i64, bool)>::from_row(row).map_err(failure::of))
        .collect::<Result<Vec<_>>>()?;
    let Some((until, _)) = found.iter().rfind(|(_, is_old)| *is_old).copied() else {
        return Ok(SweptDeltas { days: 0, deltas: 0, more: None });
    };
    let deltas = writer
        .write(move |connection| {
            Box::pin(async move {
                let query = sqlx::query(DELETE_OLD_DELTAS).bind(after).bind(until).bind(before);
                let gone = query.execute(&mut *connection).await.map_err(failure::of)?;
                if gone.rows_affected() > 0 {
                    let note = sqlx::query(NOTE).bind(before);
                    note.execute(connection).await.map_err(failure::of)?;
                }
                Ok(gone.rows_affected())
            })
        })
        .await?;
    // Behind a younger one all are younger, but for what a clock that was set back has written.
    let goes_on = found.len() == DELTAS && found.last().is_some_and(|(_, is_old)| *is_old);
    Ok(SweptDeltas { days: 0, deltas, more: goes_on.then_some(until) })
}

pub(super) async fn gone_before(readers: &Readers) -> Result<Timestamp> {
    let row = readers.first(sqlx::query(GONE_BEFORE)).await?;
    let row = row.ok_or(sqlx::Error::RowNotFound).map_err(failure::of)?;
    row.try_get(0).map(Timestamp::from_millis).map_err(failure::of)
}

pub(super) async fn shrink(readers: &Readers, writer: &Writer) -> Result<bool> {
    let row = readers.first(sqlx::query(SPACE)).await?;
    let row = row.ok_or(sqlx::Error::RowNotFound).map_err(failure::of)?;
    let (free, pages): (i64, i64) = sqlx::FromRow::from_row(&row).map_err(failure::of)?;
    let spare = free - KEPT_PAGES.max(pages / KEPT_SHARE);
    if spare <= 0 {
        return Ok(false);
    }
    // It is a transaction of its own.
    writer
        .manage(|connection| {
            Box::pin(async move {
                let query = sqlx::query(GIVE_BACK);
                query.execute(connection).await.map(drop).map_err(failure::of)
            })
        })
        .await?;
    Ok(spare > PAGES)
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[
    WALK,
    HOLD,
    DELETE_FACTS,
    DELETE_DELTAS,
    DELETE_RUNS,
    DELETE_BODIES,
    DELETE_LABELS,
    CUT_FACTS,
    CUT_DELTAS,
    CUT_RUN,
    OLD_KEYS,
    DELETE_KEYS,
    OLD_DELTAS,
    DELETE_OLD_DELTAS,
];
