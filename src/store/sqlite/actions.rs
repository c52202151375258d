//! What somebody must answer: a run's open actions, replaced whole whenever they change, and the list
//! of those that are approvals.

use sqlx::{FromRow as _, SqliteConnection};

use crate::domain::ids::{CallId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::run::{ActionType, OpenAction, OpenApproval};
use crate::store::Result;
use crate::store::rows::{self, ApprovalFields};

use super::failure;
use super::readers::Readers;
use super::table::Table;

/// By the primary keys of `runs` and `actions`.
const CLEAR: &str = "\
delete from actions
where run_id in (
    select r.run_id
    from jsonb_each(?1) v
    cross join runs r
    on r.run_no = v.value ->> 0
)";

/// By the primary key of `runs`.
const OPEN: &str = "\
insert into actions (run_id, call_id, workspace_id, kind, created_at, data)
select r.run_id, unhex(v.value ->> 1), r.workspace_id, v.value ->> 2, v.value ->> 3, v.value ->> 4
from jsonb_each(?1) v
cross join runs r
on r.run_no = v.value ->> 0";

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
                .int(open.code())
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
