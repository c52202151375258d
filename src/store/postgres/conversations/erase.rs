//! What is erased of a conversation, and when it is old: everything, slice by slice.

use sqlx::Row as _;
use sqlx::types::Uuid;

use crate::domain::ids::{ConversationId, RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::postgres::connections::Lease;
use crate::store::postgres::{PostgresStore, failure, families, guest};
use crate::store::retention::ERASED_IN_A_SLICE;
use crate::store::{ConversationSweep, Result, SweptConversations};

/// By primary keys and `runs_by_conversation`, in ascending order. From here on nobody finds any of it.
const ERASE: &str = "\
with messages as (
    delete from conversation_messages m
    where m.conversation_id = $2
), held as materialized (
    select r.run_id
    from runs r
    where r.workspace_id = $1
    and r.conversation_id = $2
    and r.deleted_at is null
    order by r.run_id
    for update
), runs as (
    update runs r
    set deleted_at = $3,
        rev = r.rev + 1,
        end_user_id = null
    from held h
    where r.run_id >= h.run_id
    and r.run_id <= h.run_id
)
update conversations c
set deleted_at = $3,
    system_prompt = null,
    parameters = '{}',
    metadata = '{}'
where c.workspace_id = $1
and c.conversation_id = $2";

/// By `conversations_by_age`: those that are over. Whoever is at work in one has it locked.
const OLD: &str = "\
select c.workspace_id, c.conversation_id
from conversations c
where c.last_active_at < $1
and c.deleted_at is null
and c.active_run_id is null
and c.queued_runs = 0
and (c.closed_at is not null or c.expires_at <= $2)
order by c.last_active_at
limit $3
for update skip locked";

/// By `conversations_deleted`, or the primary key, and `runs_by_conversation`, in its order. `fact_seq`
/// is 0 once a run's log is gone.
const LEFT: &str = "\
select r.workspace_id, r.run_id
from (
    select c.workspace_id, c.conversation_id
    from conversations c
    where c.deleted_at is not null
    and ($1::uuid is null or c.conversation_id = $1)
    order by c.deleted_at
    limit 16
) c
cross join lateral (
    select r.workspace_id, r.run_id
    from runs r
    where r.workspace_id = c.workspace_id
    and r.conversation_id = c.conversation_id
    and r.fact_seq > 0
    order by r.run_id
    limit $2
) r
limit $2";

/// By `conversations_deleted`: those of which nothing is left.
const BURY: &str = "\
delete from conversations c
where c.deleted_at is not null
and ($1::uuid is null or c.conversation_id = $1)
and not exists (
    select 1
    from runs r
    where r.workspace_id = c.workspace_id
    and r.conversation_id = c.conversation_id
    and r.fact_seq > 0
)";

/// Conversations that a slice erases for their age.
const OLD_IN_A_SLICE: i64 = 20;

impl PostgresStore {
    pub(in crate::store::postgres) async fn sweep_conversation_rows(
        &self,
        sweep: ConversationSweep,
    ) -> Result<SweptConversations> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.begin().await.map_err(failure::of_read)?;
        match sweep_in(&mut lease, sweep).await {
            Ok(swept) => {
                lease.commit().await.map_err(failure::of_write)?;
                Ok(swept)
            }
            Err(error) => {
                lease.rollback().await;
                Err(error)
            }
        }
    }
}

pub(super) async fn erase(
    lease: &mut Lease<'_>,
    workspace_id: WorkspaceId,
    conversation_id: ConversationId,
    at: Timestamp,
) -> Result<()> {
    let query =
        sqlx::query(ERASE).bind(workspace_id.0).bind(conversation_id.uuid()).bind(at.millis());
    lease.change(query).await.map_err(failure::of_read)?;
    Ok(())
}

async fn sweep_in(lease: &mut Lease<'_>, sweep: ConversationSweep) -> Result<SweptConversations> {
    let mut old = 0;
    if let Some(quiet_since) = sweep.quiet_since {
        let query = sqlx::query(OLD)
            .bind(quiet_since.millis())
            .bind(sweep.now.millis())
            .bind(OLD_IN_A_SLICE);
        for row in lease.rows(query).await.map_err(failure::of_read)? {
            let workspace_id: i32 = row.try_get("workspace_id").map_err(failure::of_value)?;
            let id: Uuid = row.try_get("conversation_id").map_err(failure::of_value)?;
            let id = ConversationId::from_uuid(id);
            erase(lease, WorkspaceId(workspace_id), id, sweep.now).await?;
            old += 1;
        }
    }
    let only = sweep.only.map(ConversationId::uuid);
    let left = sqlx::query(LEFT).bind(only).bind(ERASED_IN_A_SLICE as i64);
    let left = lease.rows(left).await.map_err(failure::of_read)?;
    let (mut runs, mut is_full) = (Vec::new(), left.len() >= ERASED_IN_A_SLICE);
    for row in &left {
        let workspace_id: i32 = row.try_get("workspace_id").map_err(failure::of_value)?;
        let run_id: Uuid = row.try_get("run_id").map_err(failure::of_value)?;
        let (workspace_id, run_id) = (WorkspaceId(workspace_id), RunId::from_uuid(run_id));
        let room = ERASED_IN_A_SLICE - runs.len();
        let below = families::erase_below(lease, (workspace_id, run_id), room, sweep.now).await?;
        runs.extend(below.erased);
        if below.more || runs.len() >= ERASED_IN_A_SLICE {
            is_full = true;
            break;
        }
        // With one below it that has not ended it stays, for the next sweep.
        if below.alive.is_none() {
            guest::erase_log(lease, workspace_id, run_id.uuid(), sweep.now).await?;
            runs.push(run_id);
        }
    }
    // Where nothing could go, asking again is no use.
    let more = old == OLD_IN_A_SLICE || (is_full && !runs.is_empty());
    let mut gone = runs.len() as u64;
    if !more {
        gone += lease.change(sqlx::query(BURY).bind(only)).await.map_err(failure::of_read)?;
    }
    Ok(SweptConversations { gone, runs, more })
}
