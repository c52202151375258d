//! Who is alive, and who owns which run.

use sqlx::Row as _;

use crate::domain::ids::{NodeId, RunId, WorkspaceId};
use crate::domain::limits;
use crate::domain::time::Timestamp;
use crate::store::{Claim, Neighbour, NodeBeat, Result, Transfer};

use super::connections::Statement;
use super::{PostgresStore, failure};

const REGISTER: &str = "\
insert into nodes (node_id, beat, dead, started_at)
values ($1, 0, false, $2)";

/// By the primary key of `nodes`.
const BEAT: &str = "\
update nodes
set beat = beat + 1
where node_id = $1
and not dead";

/// All of `nodes` and of the locks, of which there are few. The number of a node's lock is the second
/// half of its id, as in `listen.rs`.
const OTHERS: &str = "\
select n.node_id, n.beat, exists (
    select 1
    from pg_locks l
    where l.locktype = 'advisory'
    and l.granted
    and l.objsubid = 1
    and l.database = (
        select d.oid
        from pg_database d
        where d.datname = current_database()
    )
    and (l.classid::bigint << 32) | l.objid::bigint
        = ('x' || right(replace(n.node_id::text, '-', ''), 16))::bit(64)::bigint
) as listens
from nodes n
where n.node_id <> $1
and not n.dead";

/// By `runs_due`.
const OLDEST_DUE: &str = "\
select r.due_at
from runs r
where r.node_id is null
and r.due_at is not null
order by r.due_at, r.run_id
limit 1";

/// By the primary key of `nodes`.
const BURY: &str = "\
update nodes
set dead = true
where node_id = $1
and beat = $2
and not dead";

/// By the primary key of `nodes`.
const RETIRE: &str = "\
update nodes
set dead = true
where node_id = $1";

/// All of `nodes`, each against `runs_owned`.
const FORGET: &str = "\
delete from nodes n
where n.dead
and not exists (
    select 1
    from runs r
    where r.node_id = n.node_id
)";

/// By `runs_due`, in its order; then by the primary key (why not `=`: see `statements.rs`). A run that
/// somebody else is claiming or writing to is left for later. `log_format`: nobody claims a log that it
/// cannot read. `dead`: what a node claims that was declared dead and has not heard of it yet would be an
/// orphan at once, and look as if it had lost one more driver.
const CLAIM_DUE: &str = "\
with due as (
    select r.run_id, r.due_at
    from runs r
    where r.node_id is null
    and r.due_at is not null
    and r.due_at <= $2
    and r.log_format = 1
    and not exists (
        select 1
        from nodes n
        where n.node_id = $1
        and n.dead
    )
    order by r.due_at, r.run_id
    limit $3
    for update skip locked
), claimed as (
    update runs r
    set node_id = $1,
        rev = r.rev + 1,
        epoch = r.epoch + 1,
        due_at = null
    from due
    where r.run_id >= due.run_id
    and r.run_id <= due.run_id
    returning r.run_id, r.workspace_id, r.rev, r.epoch, due.due_at
)
select run_id, workspace_id, rev, epoch
from claimed
order by due_at, run_id";

/// By `runs_owned`: from owner to owner, of whom there are few, and then along the runs of the dead
/// ones. The whole key of the index is named, for `run_id` alone has other indexes. A node that is not
/// entered (any more) is as dead as one that is marked: a zombie may have claimed after its row went. One
/// that is marked claims nothing, as in `CLAIM_DUE`.
const CLAIM_ORPHANS: &str = "\
with recursive owners (node_id) as (
    (
        select r.node_id
        from runs r
        where r.node_id is not null
        order by r.node_id
        limit 1
    )
    union all
    select (
        select r.node_id
        from runs r
        where r.node_id is not null
        and r.node_id > o.node_id
        order by r.node_id
        limit 1
    )
    from owners o
    where o.node_id is not null
), dead as materialized (
    select o.node_id
    from owners o
    where o.node_id <> $1
    and not exists (
        select 1
        from nodes n
        where n.node_id = o.node_id
        and not n.dead
    )
    and not exists (
        select 1
        from nodes n
        where n.node_id = $1
        and n.dead
    )
), orphans as (
    select r.run_id
    from dead
    cross join lateral (
        select r.run_id
        from runs r
        where r.node_id is not null
        and (r.node_id, r.run_id) > (dead.node_id, '00000000-0000-0000-0000-000000000000'::uuid)
        and (r.node_id, r.run_id) < (dead.node_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
        and r.log_format = 1
        order by r.node_id, r.run_id
        limit $2
        for update skip locked
    ) r
    limit $2
), claimed as (
    update runs r
    set node_id = $1,
        rev = r.rev + 1,
        epoch = r.epoch + 1,
        due_at = null,
        crashes = greatest(r.crashes, least(r.crashes + 1, $3))
    from orphans
    where r.run_id >= orphans.run_id
    and r.run_id <= orphans.run_id
    returning r.run_id, r.workspace_id, r.rev, r.epoch
)
select run_id, workspace_id, rev, epoch
from claimed
order by run_id";

/// By the primary key of `runs`.
const TRANSFER: &str = "\
update runs
set node_id = $3,
    rev = rev + 1,
    epoch = epoch + 1,
    crashes = coalesce($4, crashes)
where run_id = $1
and node_id = $2
returning run_id, workspace_id, rev, epoch";

/// By `runs_owned`.
const OWNED: &str = "\
select run_id, rev
from runs
where node_id = $1
order by run_id";

/// By the primary key of `runs`.
const RELEASE: &str = "\
update runs
set node_id = null,
    due_at = $4,
    status_message = $5
where run_id = $1
and node_id = $2
and rev = $3";

impl PostgresStore {
    async fn change(&self, statement: Statement<'_>) -> Result<u64> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.change(statement).await.map_err(failure::of_write)
    }

    pub(super) async fn register_node_row(&self, node_id: NodeId, at: Timestamp) -> Result<()> {
        self.change(sqlx::query(REGISTER).bind(node_id.uuid()).bind(at.millis())).await.map(drop)
    }

    pub(super) async fn beat_row(&self, node_id: NodeId) -> Result<bool> {
        Ok(self.change(sqlx::query(BEAT).bind(node_id.uuid())).await? == 1)
    }

    pub(super) async fn other_node_rows(&self, node_id: NodeId) -> Result<Vec<Neighbour>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(OTHERS).bind(node_id.uuid());
        let rows = lease.rows(query).await.map_err(failure::of_read)?;
        rows.iter()
            .map(|row| {
                let node_id = row.try_get("node_id").map_err(failure::of_value)?;
                let beat = row.try_get("beat").map_err(failure::of_value)?;
                let listens = row.try_get("listens").map_err(failure::of_value)?;
                let seen = NodeBeat { node_id: NodeId::from_uuid(node_id), beat };
                Ok(Neighbour { seen, listens: Some(listens) })
            })
            .collect()
    }

    pub(super) async fn oldest_due_row(&self) -> Result<Option<Timestamp>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let row = lease.row(sqlx::query(OLDEST_DUE)).await.map_err(failure::of_read)?;
        let due_at = row.map(|row| row.try_get(0)).transpose().map_err(failure::of_value)?;
        Ok(due_at.map(Timestamp::from_millis))
    }

    pub(super) async fn bury_row(&self, seen: NodeBeat) -> Result<bool> {
        let query = sqlx::query(BURY).bind(seen.node_id.uuid()).bind(seen.beat);
        Ok(self.change(query).await? == 1)
    }

    pub(super) async fn retire_node_row(&self, node_id: NodeId) -> Result<()> {
        self.change(sqlx::query(RETIRE).bind(node_id.uuid())).await?;
        self.forget_nodes().await
    }

    pub(super) async fn forget_nodes(&self) -> Result<()> {
        self.change(sqlx::query(FORGET)).await.map(drop)
    }

    pub(super) async fn claim_due_rows(
        &self,
        node_id: NodeId,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<Claim>> {
        let query = sqlx::query(CLAIM_DUE).bind(node_id.uuid()).bind(now.millis()).bind(limit);
        self.claims(query).await
    }

    pub(super) async fn claim_orphan_rows(
        &self,
        node_id: NodeId,
        limit: i64,
    ) -> Result<Vec<Claim>> {
        let query = sqlx::query(CLAIM_ORPHANS).bind(node_id.uuid()).bind(limit);
        self.claims(query.bind(limits::SUSPECT)).await
    }

    pub(super) async fn transfer_row(&self, transfer: Transfer) -> Result<Option<Claim>> {
        let query = sqlx::query(TRANSFER)
            .bind(transfer.run_id.uuid())
            .bind(transfer.from.uuid())
            .bind(transfer.to.uuid())
            .bind(transfer.crashes);
        Ok(self.claims(query).await?.pop())
    }

    async fn claims(&self, statement: Statement<'_>) -> Result<Vec<Claim>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let rows = lease.rows(statement).await.map_err(failure::of_write)?;
        rows.iter()
            .map(|row| {
                let run_id = row.try_get("run_id").map_err(failure::of_value)?;
                let workspace_id = row.try_get("workspace_id").map_err(failure::of_value)?;
                Ok(Claim {
                    run_id: RunId::from_uuid(run_id),
                    workspace_id: WorkspaceId(workspace_id),
                    rev: row.try_get("rev").map_err(failure::of_value)?,
                    epoch: row.try_get("epoch").map_err(failure::of_value)?,
                })
            })
            .collect()
    }

    pub(super) async fn owned_rows(&self, node_id: NodeId) -> Result<Vec<(RunId, i32)>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(OWNED).bind(node_id.uuid());
        let rows = lease.rows(query).await.map_err(failure::of_read)?;
        rows.iter()
            .map(|row| {
                let run_id = row.try_get("run_id").map_err(failure::of_value)?;
                Ok((RunId::from_uuid(run_id), row.try_get("rev").map_err(failure::of_value)?))
            })
            .collect()
    }

    pub(super) async fn release_row(&self, release: Release<'_>) -> Result<bool> {
        let query = sqlx::query(RELEASE)
            .bind(release.run_id.uuid())
            .bind(release.node_id.uuid())
            .bind(release.rev)
            .bind(release.due_at.millis())
            .bind(release.status_message);
        Ok(self.change(query).await? == 1)
    }
}

/// What [`crate::store::Store::release`] is told.
pub(super) struct Release<'a> {
    pub(super) node_id: NodeId,
    pub(super) run_id: RunId,
    pub(super) rev: i32,
    pub(super) due_at: Timestamp,
    pub(super) status_message: Option<&'a str>,
}
