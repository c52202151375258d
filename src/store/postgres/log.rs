//! Reading logs.

use sqlx::{FromRow, Row as _};

use crate::domain::event::Entry;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::store::{LogRange, Result, rows};

use super::{PostgresStore, failure};

/// Facts and deltas by their primary keys, each a page at most, and of those the page: one text
/// (`rows::page`), for a row costs more than what is in it. No row: no run.
macro_rules! read {
    ($order:literal) => {
        concat!(
            "\
select (
    select string_agg(
        e.seq || ' ' || coalesce(e.kind::text, '') || ' ' || octet_length(e.data) || ' ' || e.data,
        '' order by e.seq ",
            $order,
            "
    )
    from (
        (
            select f.seq, f.kind, f.data
            from run_facts f
            where f.run_id = $2
            and f.seq > $3
            and f.seq < $4
            order by f.seq ",
            $order,
            "
            limit $5
        )
        union all
        (
            select d.seq, null, d.data
            from run_deltas d
            where d.run_id = $2
            and d.seq > $3
            and d.seq < $4
            order by d.seq ",
            $order,
            "
            limit $5
        )
        order by seq ",
            $order,
            "
        limit $5
    ) e
)
from runs r
where r.workspace_id = $1
and r.run_id = $2
and r.deleted_at is null"
        )
    };
}

const READ_ASC: &str = read!("asc");
const READ_DESC: &str = read!("desc");

/// By the primary keys of `runs` and `run_facts`.
const READ_FACTS: &str = "\
select f.seq, f.kind, f.data
from runs r
join run_facts f
on f.run_id = r.run_id
where r.workspace_id = $1
and r.run_id = $2
and r.deleted_at is null
and f.seq > $3
order by f.seq";

/// By the primary keys of `runs` and `run_deltas`. Asked by readers whose right to the run was
/// checked when they came.
const HEADS: &str = concat!(
    "\
select r.run_id, ",
    super::runs::last_seq!(),
    "
from unnest($1::uuid[]) v (run_id)
cross join lateral (
    select r.run_id, r.status, r.fact_seq
    from runs r
    where r.run_id = v.run_id
    and r.deleted_at is null
    limit 1
) r"
);

impl PostgresStore {
    pub(super) async fn read_log_rows(
        &self,
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
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.rows(query).await.map_err(failure::of_read)?;
        let Some(row) = found.first() else { return Ok(None) };
        let page: Option<String> = row.try_get(0).map_err(failure::of_value)?;
        rows::page(page.unwrap_or_default()).map(Some)
    }

    pub(super) async fn read_fact_rows(
        &self,
        workspace_id: WorkspaceId,
        run_id: RunId,
        above: i32,
    ) -> Result<Vec<Entry>> {
        let query = sqlx::query(READ_FACTS).bind(workspace_id.0).bind(run_id.uuid()).bind(above);
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.rows(query).await.map_err(failure::of_read)?;
        found
            .iter()
            .map(|row| {
                let (seq, kind, data): (i32, i16, String) =
                    FromRow::from_row(row).map_err(failure::of_value)?;
                rows::entry(seq, kind, data)
            })
            .collect()
    }

    pub(super) async fn head_rows(&self, run_ids: &[RunId]) -> Result<Vec<(RunId, i32)>> {
        let ids: Vec<_> = run_ids.iter().map(|id| id.uuid()).collect();
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.rows(sqlx::query(HEADS).bind(ids)).await.map_err(failure::of_read)?;
        found
            .iter()
            .map(|row| {
                let run_id = row.try_get("run_id").map_err(failure::of_value)?;
                let seq = row.try_get("last_seq").map_err(failure::of_value)?;
                Ok((RunId::from_uuid(run_id), seq))
            })
            .collect()
    }
}
