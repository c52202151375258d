//! Lists of runs: pages by `run_id`, along the index that the filter allows.

use crate::domain::ids::{AgentId, RunId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page};
use crate::domain::run::RunStatus;
use crate::domain::time::Timestamp;
use crate::store::{Result, RunFilter, RunRecord};

use super::readers::Readers;
use super::runs;
use super::table::Table;

/// The conditions that lead along no index: ?5 agent, ?6 statuses, ?7 conversation, ?8 parent, ?9 end
/// user, ?10 and ?11 times, ?12 pairs of metadata (by the primary key of `run_labels`).
macro_rules! conditions {
    () => {
        "\
and r.deleted_at is null
and (?5 is null or r.agent_id = ?5)
and (?6 is null or r.status in (select s.value from json_each(?6) s))
and (?7 is null or r.conversation_id = ?7)
and (?8 is null or r.parent_run_id = ?8)
and (?9 is null or r.end_user_id = ?9)
and r.created_at >= ?10
and r.created_at <= ?11
and not exists (
    select 1
    from jsonb_each(?12) v
    where not exists (
        select 1
        from run_labels l
        where l.workspace_id = ?1
        and l.key = v.value ->> 0
        and l.value = v.value ->> 1
        and l.run_id = r.run_id
    )
)"
    };
}

/// A page along the named index, whose first columns the leading condition fixes.
macro_rules! list {
    ($index:literal, $leading:literal, $order:literal) => {
        concat!(
            "select ",
            runs::columns!(),
            ",
    ",
            runs::actions!(),
            ",
    newest.seq as newest_seq, newest.kind as newest_kind, newest.data as newest_data
from runs r indexed by ",
            $index,
            "
cross join run_bodies b
on b.run_id = r.run_id",
            runs::newest_fact!(),
            "
where r.workspace_id = ?1
",
            $leading,
            "
and r.run_id > ?2
and r.run_id < ?3
",
            conditions!(),
            "
order by r.run_id ",
            $order,
            "
limit ?4"
        )
    };
}

const ALL: Orders = Orders {
    asc: list!("runs_by_workspace", "", "asc"),
    desc: list!("runs_by_workspace", "", "desc"),
};

const BY_AGENT: Orders = Orders {
    asc: list!("runs_by_agent", "and r.agent_id = ?5", "asc"),
    desc: list!("runs_by_agent", "and r.agent_id = ?5", "desc"),
};

const BY_PARENT: Orders = Orders {
    asc: list!("runs_by_parent", "and r.parent_run_id = ?8", "asc"),
    desc: list!("runs_by_parent", "and r.parent_run_id = ?8", "desc"),
};

const BY_CONVERSATION: Orders = Orders {
    asc: list!("runs_by_conversation", "and r.conversation_id = ?7", "asc"),
    desc: list!("runs_by_conversation", "and r.conversation_id = ?7", "desc"),
};

const BY_STATUS: Orders = Orders {
    asc: list!("runs_by_status", "and r.status = json_extract(?6, '$[0]')", "asc"),
    desc: list!("runs_by_status", "and r.status = json_extract(?6, '$[0]')", "desc"),
};

/// Reads all runs in these statuses and sorts them: for statuses in which there are few.
const BY_STATUSES: Orders = Orders {
    asc: list!("runs_by_status", "and r.status in (select s.value from json_each(?6) s)", "asc"),
    desc: list!("runs_by_status", "and r.status in (select s.value from json_each(?6) s)", "desc"),
};

/// By the primary key of `run_labels`, along the first pair, and then by the unique index of `runs`.
macro_rules! by_label {
    ($order:literal) => {
        concat!(
            "select ",
            runs::columns!(),
            ",
    ",
            runs::actions!(),
            ",
    newest.seq as newest_seq, newest.kind as newest_kind, newest.data as newest_data
from run_labels first
cross join runs r
on r.run_id = first.run_id
cross join run_bodies b
on b.run_id = r.run_id",
            runs::newest_fact!(),
            "
where first.workspace_id = ?1
and first.key = json_extract(?12, '$[0][0]')
and first.value = json_extract(?12, '$[0][1]')
and first.run_id > ?2
and first.run_id < ?3
and r.workspace_id = ?1
",
            conditions!(),
            "
order by first.run_id ",
            $order,
            "
limit ?4"
        )
    };
}

const BY_LABEL: Orders = Orders { asc: by_label!("asc"), desc: by_label!("desc") };

/// One list in its two orders.
#[derive(Debug, Clone, Copy)]
struct Orders {
    asc: &'static str,
    desc: &'static str,
}

/// The list whose index cuts away the most.
fn along(filter: &RunFilter) -> Orders {
    if !filter.metadata.is_empty() {
        return BY_LABEL;
    }
    if filter.parent_run_id.is_some() {
        return BY_PARENT;
    }
    if filter.conversation_id.is_some() {
        return BY_CONVERSATION;
    }
    if filter.agent_id.is_some() {
        return BY_AGENT;
    }
    match filter.statuses.as_slice() {
        [_] => BY_STATUS,
        // Runs that have not ended are few. Of ended ones there is no end, and a page of them is near
        // wherever one looks.
        [_, ..] if !filter.statuses.iter().any(|status| status.is_final()) => BY_STATUSES,
        _ => ALL,
    }
}

pub(super) async fn list(
    readers: &Readers,
    workspace_id: WorkspaceId,
    filter: &RunFilter,
    page: &Page<RunId>,
) -> Result<Listed<RunRecord>> {
    let scan = page.scan();
    let orders = along(filter);
    let sql = match scan.order {
        Order::Asc => orders.asc,
        Order::Desc => orders.desc,
    };
    let mut pairs = Table::new();
    for (key, value) in &filter.metadata {
        pairs.row().text(key).text(value);
    }
    let query = sqlx::query(sql)
        .bind(workspace_id.0)
        // In front of all ids and behind all of them: ids are 16 bytes.
        .bind(scan.above.map_or_else(Vec::new, |id| id.uuid().as_bytes().to_vec()))
        .bind(scan.below.map_or_else(|| vec![0xff; 17], |id| id.uuid().as_bytes().to_vec()))
        .bind(scan.limit)
        .bind(filter.agent_id.as_ref().map(AgentId::as_str))
        .bind(statuses(&filter.statuses))
        .bind(filter.conversation_id.map(|id| id.uuid()))
        .bind(filter.parent_run_id.map(|id| id.uuid()))
        .bind(filter.end_user_id.as_deref())
        .bind(filter.created_after.map_or(i64::MIN, Timestamp::millis))
        .bind(filter.created_before.map_or(i64::MAX, Timestamp::millis))
        .bind(pairs.json());
    let found = readers.all(query).await?;
    let records: Result<Vec<_>> = found.iter().map(runs::listed).collect();
    Ok(page.finish(records?))
}

/// The numbers of the statuses as a JSON array; `None` for any.
fn statuses(statuses: &[RunStatus]) -> Option<String> {
    let codes: Vec<i16> = statuses.iter().map(|status| status.code()).collect();
    (!codes.is_empty()).then(|| serde_json::Value::from(codes).to_string())
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[
    ALL.asc,
    ALL.desc,
    BY_AGENT.asc,
    BY_AGENT.desc,
    BY_PARENT.asc,
    BY_PARENT.desc,
    BY_CONVERSATION.asc,
    BY_CONVERSATION.desc,
    BY_STATUS.asc,
    BY_STATUS.desc,
    BY_STATUSES.asc,
    BY_STATUSES.desc,
    BY_LABEL.asc,
    BY_LABEL.desc,
];
