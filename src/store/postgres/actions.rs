//! What somebody must answer: a run's open actions, replaced whole whenever they change, and the list
//! of those that are approvals.

use sqlx::FromRow as _;
use sqlx::types::Uuid;

use crate::domain::ids::{CallId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::run::{ActionType, OpenAction, OpenApproval};
use crate::store::Result;
use crate::store::rows::{self, ApprovalFields};

use super::connections::Lease;
use super::{PostgresStore, failure};

/// By the primary key of `actions`.
const CLEAR: &str = "\
delete from actions
where run_id = any($1)";

/// By the primary key of `runs`.
const OPEN: &str = "\
insert into actions (run_id, call_id, workspace_id, kind, created_at, data)
select v.run_id, v.call_id, r.workspace_id, v.kind, v.created_at, v.data
from unnest($1::uuid[], $2::uuid[], $3::smallint[], $4::bigint[], $5::text[])
    v (run_id, call_id, kind, created_at, data)
cross join lateral (
    select r.workspace_id
    from runs r
    where r.run_id = v.run_id
    limit 1
) r";

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
                kind: open.code(),
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
