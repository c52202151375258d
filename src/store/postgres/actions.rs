//! What somebody must answer: a run's open actions, replaced whole whenever they change, and the list
//! of those that are approvals. An action is a row of its run and of each run above it, all written by
//! its own run: those have a `kind` above 10, so that lists over all runs show it once.

use sqlx::FromRow as _;
use sqlx::types::Uuid;

use crate::domain::ids::{CallId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::run::{ActionType, OpenAction, OpenApproval};
use crate::store::Result;
use crate::store::rows::{self, ApprovalFields};

use super::connections::Lease;
use super::{PostgresStore, failure};

/// What these runs had open, for them and for the runs above them. By the primary keys of `runs` and
/// `actions` (why not `=`: see `statements.rs`; the limits keep plans from turning the joins round). A
/// family has five generations, so it ends soon, and a step has 128 calls.
const CLEAR: &str = "\
with recursive gone (run_id, call_id, above) as (
    select v.run_id, a.call_id, r.parent_run_id
    from unnest($1::uuid[]) v (run_id)
    cross join lateral (
        select a.call_id
        from actions a
        where a.run_id = v.run_id
        and a.kind < 10
        limit 128
    ) a
    cross join lateral (
        select r.parent_run_id
        from runs r
        where r.run_id = v.run_id
        limit 1
    ) r
    union all
    select r.run_id, g.call_id, r.parent_run_id
    from gone g
    cross join lateral (
        select r.run_id, r.parent_run_id
        from runs r
        where r.run_id = g.above
        limit 1
    ) r
)
delete from actions a
using gone g
where (a.run_id, a.call_id) >= (g.run_id, g.call_id)
and (a.run_id, a.call_id) <= (g.run_id, g.call_id)";

/// By the primary key of `runs`.
const OPEN: &str = "\
with recursive open (run_id, call_id, workspace_id, kind, created_at, data, above) as (
    select v.run_id, v.call_id, r.workspace_id, v.kind, v.created_at, v.data, r.parent_run_id
    from unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::bigint[], $5::text[])
        v (run_id, call_id, kind, created_at, data)
    cross join lateral (
        select r.workspace_id, r.parent_run_id
        from runs r
        where r.run_id = v.run_id
        limit 1
    ) r
    union all
    select r.run_id, o.call_id, r.workspace_id,
        case when o.kind < 10 then o.kind + 10::smallint else o.kind end,
        o.created_at, o.data, r.parent_run_id
    from open o
    cross join lateral (
        select r.run_id, r.workspace_id, r.parent_run_id
        from runs r
        where r.run_id = o.above
        limit 1
    ) r
)
insert into actions (run_id, call_id, workspace_id, kind, created_at, data)
select o.run_id, o.call_id, o.workspace_id, o.kind, o.created_at, o.data
from open o";

/// By `actions_by_kind`, and each run by its primary key (`is not distinct from` keeps other indexes out
/// of it). A run that has ended has no open action; that is asked all the same, for a server of an older
/// version knows nothing of them.
macro_rules! list {
    ($order:literal) => {
        concat!(
            "\
select a.created_at, a.data, r.agent_id
from actions a
cross join lateral (
    select r.agent_id
    from runs r
    where r.run_id = a.run_id
    and r.workspace_id is not distinct from $1
    and r.status < 10
    limit 1
) r
where (a.workspace_id, a.kind, a.call_id) > ($1, $2::smallint, $3::uuid)
and (a.workspace_id, a.kind, a.call_id) < ($1, $2::smallint, $4::uuid)
order by a.workspace_id ",
            $order,
            ", a.kind ",
            $order,
            ", a.call_id ",
            $order,
            "
limit $5"
        )
    };
}

const LIST_ASC: &str = list!("asc");
const LIST_DESC: &str = list!("desc");

/// The open actions of runs, as they are from here on.
#[derive(Debug, Default)]
pub(super) struct Changes {
    runs: Vec<Uuid>,
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    run_id: Uuid,
    call_id: Uuid,
    kind: i16,
    created_at: i64,
    data: String,
}

impl Changes {
    /// This run has these open actions, and no others.
    ///
    /// # Errors
    /// When one cannot be JSON, which none of our types allows.
    pub(super) fn add(&mut self, run_id: Uuid, actions: &[OpenAction]) -> Result<()> {
        self.runs.push(run_id);
        for open in actions {
            self.open.push(Open {
                run_id,
                call_id: open.action.call_id.uuid(),
                kind: open.action.action_type.code(),
                created_at: open.created_at.millis(),
                data: rows::action_text(&open.action)?,
            });
        }
        Ok(())
    }

    /// Whether nothing changes.
    pub(super) const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Writes those of the runs that `is_held` names, whose rows are locked, in the open transaction.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn write(
        mut self,
        lease: &mut Lease<'_>,
        is_held: impl Fn(&Uuid) -> bool,
    ) -> std::result::Result<(), sqlx::Error> {
        self.runs.retain(&is_held);
        self.open.retain(|open| is_held(&open.run_id));
        if !self.runs.is_empty() {
            lease.change(sqlx::query(CLEAR).bind(self.runs)).await?;
        }
        if !self.open.is_empty() {
            let open = &self.open;
            let query = sqlx::query(OPEN)
                .bind(open.iter().map(|open| open.run_id).collect::<Vec<_>>())
                .bind(open.iter().map(|open| open.call_id).collect::<Vec<_>>())
                .bind(open.iter().map(|open| open.kind).collect::<Vec<_>>())
                .bind(open.iter().map(|open| open.created_at).collect::<Vec<_>>())
                .bind(open.iter().map(|open| open.data.clone()).collect::<Vec<_>>());
            lease.change(query).await?;
        }
        Ok(())
    }
}

impl PostgresStore {
    pub(super) async fn list_approval_rows(
        &self,
        workspace_id: WorkspaceId,
        page: &Page<CallId>,
    ) -> Result<Listed<OpenApproval>> {
        let scan = page.scan();
        let sql = match scan.order {
            Order::Asc => LIST_ASC,
            Order::Desc => LIST_DESC,
        };
        let query = sqlx::query(sql)
            .bind(workspace_id.0)
            .bind(ActionType::Approval.code())
            .bind(scan.above.map_or(Uuid::nil(), CallId::uuid))
            .bind(scan.below.map_or(Uuid::max(), CallId::uuid))
            .bind(scan.limit);
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.rows(query).await.map_err(failure::of_read)?;
        let approvals: Result<Vec<_>> = found
            .iter()
            .map(|row| ApprovalFields::from_row(row).map_err(failure::of_value)?.approval())
            .collect();
        Ok(page.finish(approvals?))
    }
}
