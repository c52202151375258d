//! What is erased of a conversation, and when it is old: everything, slice by slice.

use sqlx::types::Uuid;
use sqlx::{Row as _, SqliteConnection};

use crate::domain::ids::{ConversationId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::retention::ERASED_IN_A_SLICE;
use crate::store::sqlite::readers::Readers;
use crate::store::sqlite::writer::Writer;
use crate::store::sqlite::{failure, families, guest};
use crate::store::{ConversationSweep, Result, SweptConversations};

/// By primary keys and `runs_by_conversation`. From here on nobody finds any of it.
const ERASE_MESSAGES: &str = "\
delete from conversation_messages
where conversation_id = ?1";
const ERASE_RUNS: &str = "\
update runs
set deleted_at = ?3,
    rev = rev + 1,
    end_user_id = null
where workspace_id = ?1
and conversation_id = ?2
and deleted_at is null";
const ERASE: &str = "\
update conversations
set deleted_at = ?3,
    system_prompt = null,
    parameters = '{}',
    metadata = '{}'
where workspace_id = ?1
and conversation_id = ?2";

/// By `conversations_by_age`: those that are over.
const OLD: &str = "\
select c.workspace_id, c.conversation_id
from conversations c indexed by conversations_by_age
where c.last_active_at < ?1
and c.deleted_at is null
and c.active_run_id is null
and c.queued_runs = 0
and (c.closed_at is not null or c.expires_at <= ?2)
order by c.last_active_at
limit ?3";

/// By `conversations_deleted` and `runs_by_conversation`. `fact_seq` is 0 once a run's log is gone.
const LEFT: &str = "\
select r.run_no, r.workspace_id, r.run_id, b.metadata
from conversations c indexed by conversations_deleted
cross join runs r
on r.workspace_id = c.workspace_id
and r.conversation_id = c.conversation_id
left join run_bodies b
on b.run_id = r.run_id
where c.deleted_at is not null
and (?1 is null or c.conversation_id = ?1)
and r.fact_seq > 0
limit ?2";

/// By `conversations_deleted`: those of which nothing is left.
const BURY: &str = "\
delete from conversations indexed by conversations_deleted
where deleted_at is not null
and (?1 is null or conversation_id = ?1)
and not exists (
    select 1
    from runs r
    where r.workspace_id = conversations.workspace_id
    and r.conversation_id = conversations.conversation_id
    and r.fact_seq > 0
)";

/// By `conversations_deleted` and `conversations_by_age`: asked before the writer is held up.
const ANY: &str = "\
select 1
where exists (
    select 1
    from conversations c indexed by conversations_deleted
    where c.deleted_at is not null
    and (?1 is null or c.conversation_id = ?1)
)
or exists (
    select 1
    from conversations c indexed by conversations_by_age
    where c.last_active_at < ?2
    and c.deleted_at is null
    and c.active_run_id is null
    and c.queued_runs = 0
    and (c.closed_at is not null or c.expires_at <= ?3)
)";

/// Conversations that a slice erases for their age.
const OLD_IN_A_SLICE: i64 = 20;

pub(super) async fn erase(
    connection: &mut SqliteConnection,
    workspace_id: WorkspaceId,
    conversation_id: Uuid,
    at: Timestamp,
) -> Result<()> {
    let erase = [
        sqlx::query(ERASE_MESSAGES).bind(conversation_id),
        sqlx::query(ERASE_RUNS).bind(workspace_id.0).bind(conversation_id).bind(at.millis()),
        sqlx::query(ERASE).bind(workspace_id.0).bind(conversation_id).bind(at.millis()),
    ];
    for query in erase {
        query.execute(&mut *connection).await.map_err(failure::of)?;
    }
    Ok(())
}

pub(in crate::store::sqlite) async fn sweep(
    readers: &Readers,
    writer: &Writer,
    sweep: ConversationSweep,
) -> Result<SweptConversations> {
    // Asked every pass: writers are not held up for nothing.
    let any = sqlx::query(ANY)
        .bind(sweep.only.map(ConversationId::uuid))
        .bind(sweep.quiet_since.map_or(i64::MIN, Timestamp::millis))
        .bind(sweep.now.millis());
    if readers.first(any).await?.is_none() {
        return Ok(SweptConversations::NOTHING);
    }
    writer.write(move |connection| Box::pin(async move { sweep_in(connection, sweep).await })).await
}

async fn sweep_in(
    connection: &mut SqliteConnection,
    sweep: ConversationSweep,
) -> Result<SweptConversations> {
    let mut old = 0;
    if let Some(quiet_since) = sweep.quiet_since {
        let query = sqlx::query(OLD)
            .bind(quiet_since.millis())
            .bind(sweep.now.millis())
            .bind(OLD_IN_A_SLICE);
        for row in query.fetch_all(&mut *connection).await.map_err(failure::of)? {
            let workspace_id: i32 = row.try_get("workspace_id").map_err(failure::of)?;
            let id: Uuid = row.try_get("conversation_id").map_err(failure::of)?;
            erase(connection, WorkspaceId(workspace_id), id, sweep.now).await?;
            old += 1;
        }
    }
    let only = sweep.only.map(ConversationId::uuid);
    let left = sqlx::query(LEFT).bind(only).bind(ERASED_IN_A_SLICE as i64);
    let left = left.fetch_all(&mut *connection).await.map_err(failure::of)?;
    let (mut runs, mut is_full) = (Vec::new(), left.len() >= ERASED_IN_A_SLICE);
    for row in &left {
        let run = guest::Erased::read(row)?;
        let room = ERASED_IN_A_SLICE - runs.len();
        let below = families::erase_below(connection, run.place(), room, sweep.now).await?;
        runs.extend(below.erased);
        if below.more || runs.len() >= ERASED_IN_A_SLICE {
            is_full = true;
            break;
        }
        // With one below it that has not ended it stays, for the next sweep.
        if below.alive.is_none() {
            guest::erase_log(connection, &run, sweep.now).await?;
            let (_, run_id) = run.place();
            runs.push(run_id);
        }
    }
    // Where nothing could go, asking again is no use.
    let more = old == OLD_IN_A_SLICE || (is_full && !runs.is_empty());
    let mut gone = runs.len() as u64;
    if !more {
        let query = sqlx::query(BURY).bind(only);
        gone += query.execute(&mut *connection).await.map_err(failure::of)?.rows_affected();
    }
    Ok(SweptConversations { gone, runs, more })
}

/// For `plans.rs`.
#[cfg(test)]
pub(in crate::store::sqlite) const STATEMENTS: &[&str] =
    &[ERASE_MESSAGES, ERASE_RUNS, ERASE, OLD, LEFT, BURY, ANY];
