//! Reading logs.

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row as _, SqliteConnection};

use crate::domain::event::Entry;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::store::{LogRange, Result, rows};

use super::failure;
use super::readers::Readers;
use super::runs;
use super::table::Table;

/// By the unique index of `runs`; then facts and deltas by theirs, merged, up to the limit. The page is
/// one text (`rows::page`): a row costs more than what is in it. No row: no run.
macro_rules! read {
    ($order:literal) => {
        concat!(
            "\
with run as materialized (
    select r.run_no
    from runs r
    where r.workspace_id = ?1
    and r.run_id = ?2
    and r.deleted_at is null
)
select (
    select group_concat(
        e.seq || ' ' || ifnull(e.kind, '') || ' ' || octet_length(e.data) || ' ' || e.data, ''
    )
    from (
        select f.seq, f.kind, f.data
        from run_facts f
        where f.run_no = run.run_no
        and f.seq > ?3
        and f.seq < ?4
        union all
        select d.seq, null, d.data
        from run_deltas d
        where d.run_no = run.run_no
        and d.seq > ?3
        and d.seq < ?4
        order by 1 ",
            $order,
            "
        limit ?5
    ) e
)
from run"
        )
    };
}

const READ_ASC: &str = read!("asc");
const READ_DESC: &str = read!("desc");

/// By the unique indexes of `runs` and `run_facts`. The run is looked up by itself: joined, the facts
/// would be sorted once more.
const READ_FACTS: &str = "\
select f.seq, f.kind, f.data
from run_facts f
where f.run_no = (
    select r.run_no
    from runs r
    where r.workspace_id = ?1
    and r.run_id = ?2
    and r.deleted_at is null
)
and f.seq > ?3
and f.seq <= ?4
order by f.seq";

/// By the unique index of `run_facts`.
const FACTS_OF: &str = "\
select f.seq, f.kind, f.data
from run_facts f
where f.run_no = ?1
order by f.seq";

/// By the unique indexes of `runs` and `run_deltas`. Asked by readers whose right to the run was
/// checked when they came.
const HEADS: &str = concat!(
    "select r.run_id, ",
    runs::last_seq!(),
    "
from jsonb_each(?1) v
cross join runs r
on r.run_id = unhex(v.value ->> 0)
where r.deleted_at is null"
);

pub(super) async fn read(
    readers: &Readers,
    workspace_id: WorkspaceId,
    run_id: RunId,
    range: LogRange,
) -> Result<Option<Vec<Entry>>> {
    let query = sqlx::query(if range.descending { READ_DESC } else { READ_ASC })
        .bind(workspace_id.0)
        .bind(run_id.uuid())
        .bind(range.above)
        .bind(range.below)
        .bind(range.limit);
    let Some(row) = readers.first(query).await? else { return Ok(None) };
    let page: Option<String> = row.try_get(0).map_err(failure::of)?;
    let mut entries = rows::page(page.unwrap_or_default())?;
    // They come in order, which SQLite does not promise. Its own sorting would copy all texts once more,
    // while the statement holds its snapshot.
    entries.sort_by_key(|entry| if range.descending { -entry.seq } else { entry.seq });
    Ok(Some(entries))
}

/// The facts with a seq above `above`, up to `until`.
pub(super) async fn read_facts(
    readers: &Readers,
    workspace_id: WorkspaceId,
    run_id: RunId,
    above: i32,
    until: i32,
) -> Result<Vec<Entry>> {
    let query =
        sqlx::query(READ_FACTS).bind(workspace_id.0).bind(run_id.uuid()).bind(above).bind(until);
    readers.all(query).await?.iter().map(fact).collect()
}

/// All facts of a run, within a write.
pub(super) async fn facts_of(connection: &mut SqliteConnection, run_no: i64) -> Result<Vec<Entry>> {
    let query = sqlx::query(FACTS_OF).bind(run_no);
    query.fetch_all(connection).await.map_err(failure::of)?.iter().map(fact).collect()
}

pub(super) async fn heads(readers: &Readers, run_ids: &[RunId]) -> Result<Vec<(RunId, i32)>> {
    let mut wanted = Table::new();
    for run_id in run_ids {
        wanted.row().uuid(run_id.uuid());
    }
    let found = readers.all(sqlx::query(HEADS).bind(wanted.json())).await?;
    found
        .iter()
        .map(|row| {
            let run_id = row.try_get("run_id").map_err(failure::of)?;
            Ok((RunId::from_uuid(run_id), row.try_get("last_seq").map_err(failure::of)?))
        })
        .collect()
}

fn fact(row: &SqliteRow) -> Result<Entry> {
    let (seq, kind, data): (i32, i16, String) = FromRow::from_row(row).map_err(failure::of)?;
    rows::entry(seq, kind, data)
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[READ_ASC, READ_DESC, READ_FACTS, FACTS_OF, HEADS];
