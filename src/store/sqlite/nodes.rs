//! Who is alive, and who owns which run.

use sqlx::sqlite::SqliteRow;
use sqlx::types::Uuid;
use sqlx::{Row as _, SqliteConnection};

use crate::domain::ids::{NodeId, RunId, WorkspaceId};
use crate::domain::limits;
use crate::domain::time::Timestamp;
use crate::store::{Claim, Neighbour, NodeBeat, Result, Transfer};

use super::failure;
use super::readers::{Query, Readers};
use super::table::Table;
use super::writer::Writer;

const REGISTER: &str = "\
insert into nodes (node_id, beat, dead, started_at)
values (?, 0, 0, ?)";

/// By the primary key of `nodes`.
const BEAT: &str = "\
update nodes
set beat = beat + 1
where node_id = ?
and not dead";

/// All of `nodes`, of which there are few.
const OTHERS: &str = "\
select node_id, beat
from nodes
where node_id <> ?
and not dead";

/// By `runs_due`.
const OLDEST_DUE: &str = "\
select r.due_at
from runs r indexed by runs_due
where r.node_id is null
and r.due_at is not null
order by r.due_at, r.run_id
limit 1";

/// By the primary key of `nodes`.
const BURY: &str = "\
update nodes
set dead = 1
where node_id = ?
and beat = ?
and not dead";

/// By the primary key of `nodes`.
const RETIRE: &str = "\
update nodes
set dead = 1
where node_id = ?";

/// All of `nodes`, each against `runs_owned`.
const FORGET: &str = "\
delete from nodes
where dead
and not exists (
    select 1
    from runs r
    where r.node_id = nodes.node_id
)";

/// By `runs_due`, in its order. `log_format`: nobody claims a log that it cannot read. `dead`: what a node
/// claims that was declared dead and has not heard of it yet would be an orphan at once.
const DUE: &str = "\
select r.run_no, r.run_id, r.workspace_id, r.rev, r.epoch
from runs r indexed by runs_due
where r.node_id is null
and r.due_at is not null
and r.due_at <= ?1
and r.log_format = 1
and not exists (
    select 1
    from nodes n
    where n.node_id = ?3
    and n.dead
)
order by r.due_at, r.run_id
limit ?2";

/// By `runs_owned`, which has few rows: one for each run that somebody drives. A node that is not
/// entered (any more) is as dead as one that is marked.
const ORPHANS: &str = "\
select o.run_no, o.run_id, o.workspace_id, o.rev, o.epoch
from (
    select r.run_no, r.run_id, r.workspace_id, r.rev, r.epoch
    from runs r indexed by runs_owned
    where r.node_id is not null
    and r.node_id <> ?1
    and r.node_id not in (
        select n.node_id
        from nodes n
        where not n.dead
    )
    and not exists (
        select 1
        from nodes n
        where n.node_id = ?1
        and n.dead
    )
    and r.log_format = 1
    order by r.node_id, r.run_id
    limit ?2
) o
order by o.run_id";

/// By the primary key of `runs`.
const CLAIM: &str = "\
update runs
set node_id = ?1,
    rev = rev + 1,
    epoch = epoch + 1,
    due_at = null,
    crashes = max(crashes, min(crashes + ?2, ?4))
where run_no in (
    select v.value ->> 0
    from jsonb_each(?3) v
)";

/// By the unique index of `runs`.
const TRANSFER: &str = "\
update runs
set node_id = ?3,
    rev = rev + 1,
    epoch = epoch + 1,
    crashes = coalesce(?4, crashes)
where run_id = ?1
and node_id = ?2
returning workspace_id, rev, epoch";

/// By `runs_owned`.
const OWNED: &str = "\
select run_id, rev
from runs
where node_id = ?
order by run_id";

/// By the unique index of `runs`.
const RELEASE: &str = "\
update runs
set node_id = null,
    due_at = ?4,
    status_message = ?5
where run_id = ?1
and node_id = ?2
and rev = ?3";

pub(super) async fn register(writer: &Writer, node_id: NodeId, at: Timestamp) -> Result<()> {
    change(writer, sqlx::query(REGISTER).bind(node_id.uuid()).bind(at.millis())).await.map(drop)
}

pub(super) async fn beat(writer: &Writer, node_id: NodeId) -> Result<bool> {
    Ok(change(writer, sqlx::query(BEAT).bind(node_id.uuid())).await? == 1)
}

pub(super) async fn others(readers: &Readers, node_id: NodeId) -> Result<Vec<Neighbour>> {
    let found = readers.all(sqlx::query(OTHERS).bind(node_id.uuid())).await?;
    found
        .iter()
        .map(|row| {
            let node_id = row.try_get("node_id").map_err(failure::of)?;
            let beat = row.try_get("beat").map_err(failure::of)?;
            let seen = NodeBeat { node_id: NodeId::from_uuid(node_id), beat };
            Ok(Neighbour { seen, listens: None })
        })
        .collect()
}

pub(super) async fn oldest_due(readers: &Readers) -> Result<Option<Timestamp>> {
    let row = readers.first(sqlx::query(OLDEST_DUE)).await?;
    let due_at = row.map(|row| row.try_get(0)).transpose().map_err(failure::of)?;
    Ok(due_at.map(Timestamp::from_millis))
}

pub(super) async fn bury(writer: &Writer, seen: NodeBeat) -> Result<bool> {
    let query = sqlx::query(BURY).bind(seen.node_id.uuid()).bind(seen.beat);
    Ok(change(writer, query).await? == 1)
}

pub(super) async fn retire(writer: &Writer, node_id: NodeId) -> Result<()> {
    change(writer, sqlx::query(RETIRE).bind(node_id.uuid())).await?;
    forget(writer).await
}

pub(super) async fn forget(writer: &Writer) -> Result<()> {
    change(writer, sqlx::query(FORGET)).await.map(drop)
}

pub(super) async fn claim_due(
    writer: &Writer,
    node_id: NodeId,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Claim>> {
    let find = sqlx::query(DUE).bind(now.millis()).bind(limit).bind(node_id.uuid());
    claim(writer, find, node_id, 0).await
}

pub(super) async fn claim_orphans(
    writer: &Writer,
    node_id: NodeId,
    limit: i64,
) -> Result<Vec<Claim>> {
    let find = sqlx::query(ORPHANS).bind(node_id.uuid()).bind(limit);
    claim(writer, find, node_id, 1).await
}

pub(super) async fn transfer(writer: &Writer, transfer: Transfer) -> Result<Option<Claim>> {
    let query = sqlx::query(TRANSFER)
        .bind(transfer.run_id.uuid())
        .bind(transfer.from.uuid())
        .bind(transfer.to.uuid())
        .bind(transfer.crashes);
    let rows = writer
        .write(move |connection| {
            Box::pin(async move { query.fetch_all(connection).await.map_err(failure::of) })
        })
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Claim {
        run_id: transfer.run_id,
        workspace_id: WorkspaceId(row.try_get("workspace_id").map_err(failure::of)?),
        rev: row.try_get("rev").map_err(failure::of)?,
        epoch: row.try_get("epoch").map_err(failure::of)?,
    }))
}

pub(super) async fn owned(readers: &Readers, node_id: NodeId) -> Result<Vec<(RunId, i32)>> {
    let found = readers.all(sqlx::query(OWNED).bind(node_id.uuid())).await?;
    found
        .iter()
        .map(|row| {
            let run_id = row.try_get("run_id").map_err(failure::of)?;
            Ok((RunId::from_uuid(run_id), row.try_get("rev").map_err(failure::of)?))
        })
        .collect()
}

/// What [`crate::store::Store::release`] is told.
pub(super) struct Release<'a> {
    pub(super) node_id: NodeId,
    pub(super) run_id: RunId,
    pub(super) rev: i32,
    pub(super) due_at: Timestamp,
    pub(super) status_message: Option<&'a str>,
}

pub(super) async fn release(writer: &Writer, release: Release<'_>) -> Result<bool> {
    let query = sqlx::query(RELEASE)
        .bind(release.run_id.uuid())
        .bind(release.node_id.uuid())
        .bind(release.rev)
        .bind(release.due_at.millis())
        .bind(release.status_message.map(str::to_owned));
    Ok(change(writer, query).await? == 1)
}

/// Runs one statement in a turn of its own, and counts what it changed.
pub(super) async fn change(writer: &Writer, query: Query<'static>) -> Result<u64> {
    writer
        .write(move |connection| {
            Box::pin(async move {
                Ok(query.execute(connection).await.map_err(failure::of)?.rows_affected())
            })
        })
        .await
}

/// Finds and takes in one turn of the writer: nobody comes between.
async fn claim(
    writer: &Writer,
    find: Query<'static>,
    node_id: NodeId,
    crashes: i64,
) -> Result<Vec<Claim>> {
    writer
        .write(move |connection| {
            Box::pin(async move {
                let found = find.fetch_all(&mut *connection).await.map_err(failure::of)?;
                take(connection, &found, node_id, crashes).await
            })
        })
        .await
}

async fn take(
    connection: &mut SqliteConnection,
    found: &[SqliteRow],
    node_id: NodeId,
    crashes: i64,
) -> Result<Vec<Claim>> {
    let mut claims = Vec::with_capacity(found.len());
    let mut numbers = Table::new();
    for row in found {
        let run_id: Uuid = row.try_get("run_id").map_err(failure::of)?;
        let (rev, epoch): (i32, i32) =
            (row.try_get("rev").map_err(failure::of)?, row.try_get("epoch").map_err(failure::of)?);
        numbers.row().int(row.try_get::<i64, _>("run_no").map_err(failure::of)?);
        claims.push(Claim {
            run_id: RunId::from_uuid(run_id),
            workspace_id: WorkspaceId(row.try_get("workspace_id").map_err(failure::of)?),
            // Both are raised by one in `CLAIM`.
            rev: rev.saturating_add(1),
            epoch: epoch.saturating_add(1),
        });
    }
    if !numbers.is_empty() {
        let query = sqlx::query(CLAIM).bind(node_id.uuid()).bind(crashes).bind(numbers.json());
        query.bind(limits::SUSPECT).execute(connection).await.map_err(failure::of)?;
    }
    Ok(claims)
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] =
    &[DUE, OLDEST_DUE, ORPHANS, CLAIM, TRANSFER, OWNED, RELEASE, FORGET];
