//! Lists of runs: one statement for each index that may lead, and each way to read it.

use sqlx::types::Uuid;

use crate::domain::ids::{AgentId, ConversationId, RunId, WorkspaceId};
use crate::domain::page::{Listed, Order, Page, Scan};
use crate::domain::run::RunStatus;
use crate::domain::time::Timestamp;
use crate::store::postgres::{PostgresStore, failure};
use crate::store::{Result, RunFilter, RunRecord};

use super::{last_seq, open_actions, record, run_columns};

/// The conditions that no index leads: $5 agent, $6 statuses, $7 conversation, $8 parent, $9 end user,
/// $10 and $11 times, $12 and $13 pairs of metadata (by the primary key of `run_labels`, a look-up a
/// pair: the limit keeps it from becoming a hash of all labels).
macro_rules! conditions {
    () => {
        "
and r.workspace_id is not distinct from $1
and r.deleted_at is null
and ($5::text is null or r.agent_id = $5)
and (cardinality($6::smallint[]) = 0 or r.status = any($6))
and ($7::uuid is null or r.conversation_id = $7)
and ($8::uuid is null or r.parent_run_id = $8)
and ($9::text is null or r.end_user_id = $9)
and r.created_at >= $10
and r.created_at <= $11
and (cardinality($12::text[]) = 0 or cardinality($12::text[]) = (
    select count(*)
    from unnest($12::text[], $13::text[]) v (key, value)
    cross join lateral (
        select l.run_id
        from run_labels l
        where l.workspace_id = $1
        and l.key = v.key
        and l.value = v.value
        and l.run_id = r.run_id
        limit 1
    ) l
))"
    };
}

/// One page of runs, cut out by an index, and then what belongs to each, by primary keys.
///
/// A page compares and sorts by the whole key of its index. Said the usual way (`workspace_id = $1 …
/// order by run_id`) other indexes have that order, too, and a plan that does not know the filter's
/// values takes one of them and walks through everybody's runs. The inner limits keep a plan from
/// turning the join round.
macro_rules! list {
    ($page:expr) => {
        concat!(
            "select ",
            run_columns!(),
            ", ",
            last_seq!(),
            ",
    ",
            open_actions!(),
            ",
    newest.seq as newest_seq, newest.kind as newest_kind, newest.data as newest_data
from (",
            $page,
            "
limit $4) r
cross join lateral (
    select b.model, b.config, b.max_steps, b.estimated_cost_micros, b.metadata
    from run_bodies b
    where b.run_id = r.run_id
    limit 1
) b
left join lateral (
    select f.seq, f.kind, f.data
    from run_facts f
    where f.run_id = r.run_id
    and f.seq = r.fact_seq
    and (r.status >= 10 or r.status = 3)
    limit 1
) newest
on true"
        )
    };
}

/// By `runs_by_workspace`.
macro_rules! by_workspace {
    ($order:literal) => {
        concat!(
            "
select r.*
from runs r
where (r.workspace_id, r.run_id) > ($1, $2::uuid)
and (r.workspace_id, r.run_id) < ($1, $3::uuid)",
            conditions!(),
            "
order by r.workspace_id ",
            $order,
            ", r.run_id ",
            $order
        )
    };
}

/// By `runs_by_agent`.
macro_rules! by_agent {
    ($order:literal) => {
        concat!(
            "
select r.*
from runs r
where (r.workspace_id, r.agent_id, r.run_id) > ($1, $5, $2::uuid)
and (r.workspace_id, r.agent_id, r.run_id) < ($1, $5, $3::uuid)",
            conditions!(),
            "
order by r.workspace_id ",
            $order,
            ", r.agent_id ",
            $order,
            ", r.run_id ",
            $order
        )
    };
}

/// By `runs_by_parent`.
macro_rules! by_parent {
    ($order:literal) => {
        concat!(
            "
select r.*
from runs r
where r.parent_run_id is not null
and (r.workspace_id, r.parent_run_id, r.run_id) > ($1, $8, $2::uuid)
and (r.workspace_id, r.parent_run_id, r.run_id) < ($1, $8, $3::uuid)",
            conditions!(),
            "
order by r.workspace_id ",
            $order,
            ", r.parent_run_id ",
            $order,
            ", r.run_id ",
            $order
        )
    };
}

/// By `runs_by_conversation`.
macro_rules! by_conversation {
    ($order:literal) => {
        concat!(
            "
select r.*
from runs r
where r.conversation_id is not null
and (r.workspace_id, r.conversation_id, r.run_id) > ($1, $7, $2::uuid)
and (r.workspace_id, r.conversation_id, r.run_id) < ($1, $7, $3::uuid)",
            conditions!(),
            "
order by r.workspace_id ",
            $order,
            ", r.conversation_id ",
            $order,
            ", r.run_id ",
            $order
        )
    };
}

/// By `runs_by_status`, a page of each status: one scan cannot follow several of them in order.
macro_rules! by_status {
    ($order:literal) => {
        concat!(
            "
select r.*
from unnest($6::smallint[]) s (status)
cross join lateral (
    select r.*
    from runs r
    where (r.workspace_id, r.status, r.run_id) > ($1, s.status, $2::uuid)
    and (r.workspace_id, r.status, r.run_id) < ($1, s.status, $3::uuid)",
            conditions!(),
            "
    order by r.workspace_id ",
            $order,
            ", r.status ",
            $order,
            ", r.run_id ",
            $order,
            "
    limit $4
) r
order by r.run_id ",
            $order
        )
    };
}

/// By the primary key of `run_labels`, along the first pair; each run by its primary key. The inner
/// limit keeps the two from changing places.
macro_rules! by_label {
    ($order:literal) => {
        concat!(
            "
select r.*
from run_labels first
cross join lateral (
    select r.*
    from runs r
    where r.run_id = first.run_id",
            conditions!(),
            "
    limit 1
) r
where (first.workspace_id, first.key, first.value, first.run_id)
    > ($1, ($12::text[])[1], ($13::text[])[1], $2::uuid)
and (first.workspace_id, first.key, first.value, first.run_id)
    < ($1, ($12::text[])[1], ($13::text[])[1], $3::uuid)
order by first.workspace_id ",
            $order,
            ", first.key ",
            $order,
            ", first.value ",
            $order,
            ", first.run_id ",
            $order
        )
    };
}

const BY_WORKSPACE_ASC: &str = list!(by_workspace!("asc"));
const BY_WORKSPACE_DESC: &str = list!(by_workspace!("desc"));
const BY_AGENT_ASC: &str = list!(by_agent!("asc"));
const BY_AGENT_DESC: &str = list!(by_agent!("desc"));
const BY_PARENT_ASC: &str = list!(by_parent!("asc"));
const BY_PARENT_DESC: &str = list!(by_parent!("desc"));
const BY_CONVERSATION_ASC: &str = list!(by_conversation!("asc"));
const BY_CONVERSATION_DESC: &str = list!(by_conversation!("desc"));
const BY_STATUS_ASC: &str = list!(by_status!("asc"));
const BY_STATUS_DESC: &str = list!(by_status!("desc"));
const BY_LABEL_ASC: &str = list!(by_label!("asc"));
const BY_LABEL_DESC: &str = list!(by_label!("desc"));

impl PostgresStore {
    pub(in crate::store::postgres) async fn list_run_rows(
        &self,
        workspace_id: WorkspaceId,
        filter: &RunFilter,
        page: &Page<RunId>,
    ) -> Result<Listed<RunRecord>> {
        let scan = page.scan();
        let mut statuses: Vec<i16> = filter.statuses.iter().map(|status| status.code()).collect();
        // Each is read once.
        statuses.sort_unstable();
        statuses.dedup();
        let pairs = &filter.metadata;
        let query = sqlx::query(statement(filter, &scan))
            .bind(workspace_id.0)
            .bind(scan.above.map_or(Uuid::nil(), RunId::uuid))
            .bind(scan.below.map_or(Uuid::max(), RunId::uuid))
            .bind(scan.limit)
            .bind(filter.agent_id.as_ref().map(AgentId::as_str))
            .bind(statuses)
            .bind(filter.conversation_id.map(ConversationId::uuid))
            .bind(filter.parent_run_id.map(RunId::uuid))
            .bind(filter.end_user_id.as_deref())
            .bind(filter.created_after.map_or(i64::MIN, Timestamp::millis))
            .bind(filter.created_before.map_or(i64::MAX, Timestamp::millis))
            .bind(pairs.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>())
            .bind(pairs.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>());
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let rows = lease.rows(query).await.map_err(failure::of_read)?;
        let mut records: Vec<RunRecord> = rows.iter().map(record).collect::<Result<_>>()?;
        // The page is cut out in this order, and no statement promises to keep it through its joins.
        records.sort_unstable_by_key(|record| record.row.run_id);
        if scan.order == Order::Desc {
            records.reverse();
        }
        Ok(page.finish(records))
    }
}

/// Which index leads: labels, children, turns and statuses of active runs are rare, an agent is one of many.
fn statement(filter: &RunFilter, scan: &Scan<RunId>) -> &'static str {
    let is_active = |status: &RunStatus| !status.is_final();
    let [asc, desc] = if !filter.metadata.is_empty() {
        [BY_LABEL_ASC, BY_LABEL_DESC]
    } else if filter.parent_run_id.is_some() {
        [BY_PARENT_ASC, BY_PARENT_DESC]
    } else if filter.conversation_id.is_some() {
        [BY_CONVERSATION_ASC, BY_CONVERSATION_DESC]
    } else if !filter.statuses.is_empty()
        && (filter.agent_id.is_none() || filter.statuses.iter().all(is_active))
    {
        [BY_STATUS_ASC, BY_STATUS_DESC]
    } else if filter.agent_id.is_some() {
        [BY_AGENT_ASC, BY_AGENT_DESC]
    } else {
        [BY_WORKSPACE_ASC, BY_WORKSPACE_DESC]
    };
    match scan.order {
        Order::Asc => asc,
        Order::Desc => desc,
    }
}
