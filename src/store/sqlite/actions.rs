//! What somebody must answer: a run's open actions, replaced whole whenever they change, and the list
//! of those that are approvals. An action is a row of its run and of each run above it, all written by
//! its own run: those have a `kind` above 10, so that lists over all runs show it once.

use sqlx::{FromRow as _, SqliteConnection};

use crate::domain::ids::{CallId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::run::{ActionType, OpenAction, OpenApproval};
use crate::store::Result;
use crate::store::rows::{self, ApprovalFields};

use super::failure;
use super::readers::Readers;
use super::table::Table;

/// What these runs had open, for them and for the runs above them. By the primary keys and the unique
/// index of `runs`; a family has five generations, so it ends soon.
const CLEAR: &str = "\
with recursive gone (run_id, call_id, above) as (
    select a.run_id, a.call_id, r.parent_run_id
    from jsonb_each(?1) v
    cross join runs r
    on r.run_no = v.value ->> 0
    cross join actions a
    on a.run_id = r.run_id
    and a.kind < 10
    union all
    select r.run_id, g.call_id, r.parent_run_id
    from gone g
    cross join runs r
    on r.run_id = g.above
)
delete from actions
where (run_id, call_id) in (
    select g.run_id, g.call_id
    from gone g
)";

/// By the primary key and the unique index of `runs`.
const OPEN: &str = "\
with recursive open (run_id, call_id, workspace_id, kind, created_at, data, above) as (
    select r.run_id, unhex(v.value ->> 1), r.workspace_id, v.value ->> 2, v.value ->> 3,
        v.value ->> 4, r.parent_run_id
    from jsonb_each(?1) v
    cross join runs r
    on r.run_no = v.value ->> 0
    union all
    select r.run_id, o.call_id, r.workspace_id, iif(o.kind < 10, o.kind + 10, o.kind),
        o.created_at, o.data, r.parent_run_id
    from open o
    cross join runs r
    on r.run_id = o.above
)
insert into actions (run_id, call_id, workspace_id, kind, created_at, data)
select o.run_id, o.call_id, o.workspace_id, o.kind, o.created_at, o.data
from open o";

/// By `actions_by_kind`, and each run by its unique index. A run that has ended has no open action; that
/// is asked all the same, for a server of an older version knows nothing of them.
macro_rules! list {
    ($order:literal) => {
        concat!(
            "\
select a.created_at, a.data, r.agent_id
from actions a indexed by actions_by_kind
cross join runs r
on r.run_id = a.run_id
where a.workspace_id = ?1
and a.kind = ?2
and a.call_id > ?3
and a.call_id < ?4
and r.workspace_id = ?1
and r.status < 10
order by a.call_id ",
            $order,
            "
limit ?5"
        )
    };
}

const LIST_ASC: &str = list!("asc");
const LIST_DESC: &str = list!("desc");

/// The open actions of runs, as they are from here on.
#[derive(Debug)]
pub(super) struct Changes {
    runs: Table,
    open: Table,
}

impl Changes {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { runs: Table::new(), open: Table::new() }
    }

    /// The run of this number has these open actions, and no others.
    ///
    /// # Errors
    /// When one cannot be JSON, which none of our types allows.
    pub(super) fn add(&mut self, run_no: i64, actions: &[OpenAction]) -> Result<()> {
        self.runs.row().int(run_no);
        for open in actions {
            self.open
                .row()
                .int(run_no)
                .uuid(open.action.call_id.uuid())
                .int(open.action.action_type.code())
                .int(open.created_at.millis())
                .text(&rows::action_text(&open.action)?);
        }
        Ok(())
    }

    /// Writes everything, inside the transaction that is open.
    pub(super) async fn write(self, connection: &mut SqliteConnection) -> Result<()> {
        for (sql, table) in [(CLEAR, self.runs), (OPEN, self.open)] {
            if !table.is_empty() {
                let query = sqlx::query(sql).bind(table.json());
                query.execute(&mut *connection).await.map_err(failure::of)?;
            }
        }
        Ok(())
    }
}

pub(super) async fn list(
    readers: &Readers,
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
        // In front of all ids and behind all of them: ids are 16 bytes.
        .bind(scan.above.map_or_else(Vec::new, |id| id.uuid().as_bytes().to_vec()))
        .bind(scan.below.map_or_else(|| vec![0xff; 17], |id| id.uuid().as_bytes().to_vec()))
        .bind(scan.limit);
    let found = readers.all(query).await?;
    let approvals: Result<Vec<_>> = found
        .iter()
        .map(|row| ApprovalFields::from_row(row).map_err(failure::of)?.approval())
        .collect();
    Ok(page.finish(approvals?))
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[CLEAR, OPEN, LIST_ASC, LIST_DESC];
