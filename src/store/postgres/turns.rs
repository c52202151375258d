//! Turns of conversations, in the transaction of what begins and ends them: see `store/turns.rs`.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

use crate::domain::conversation::{Conversation, Turn};
use crate::domain::ids::{ConversationId, RunId, WorkspaceId};
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::store::turns::{Changes, Placed, Turns, Waiting};
use crate::store::{Entrance, FindTurn, Past, Result, TurnPlace, rows};

use super::connections::Lease;
use super::conversations::{self, columns};
use super::{PostgresStore, failure};

/// By the primary key of `conversations`, in ascending order, each locked as it is found.
const LOCK: &str = concat!(
    "select ",
    columns!(),
    "
from (
    select v.conversation_id
    from unnest($1::uuid[]) v (conversation_id)
    order by v.conversation_id
) v
cross join lateral (
    select c.*
    from conversations c
    where c.conversation_id = v.conversation_id
    and c.deleted_at is null
    limit 1
    for update
) c"
);

/// By `runs_waiting_turn` and the primary key of `run_facts`: of each conversation whoever waits to
/// interrupt (3), else who waits longest (2).
const NEXT: &str = "\
select v.conversation_id, r.run_id, f.seq, f.kind, f.data
from unnest($1::uuid[]) v (conversation_id)
cross join lateral (
    select r.run_id
    from runs r
    where r.conversation_id = v.conversation_id
    and r.turn in (2, 3)
    order by r.turn desc, r.turn_no
    limit 1
) r
cross join lateral (
    select f.seq, f.kind, f.data
    from run_facts f
    where f.run_id = r.run_id
    and f.seq = 1
    limit 1
) f";

/// By `runs_waiting_turn`.
const SUPERSEDE: &str = "\
update runs
set turn = 4
where conversation_id = any($1)
and turn = 3";

/// By the primary key of `runs` (why not `=`: see `statements.rs`). Nobody drives a run that waited, so
/// that its fence may stay; those that end are not due.
const PLACE: &str = "\
update runs r
set turn = v.turn,
    turn_no = coalesce(v.turn_no, r.turn_no),
    history_of = coalesce(v.history_of, r.history_of),
    history_length = coalesce(v.history_length, r.history_length),
    cost_ceiling_micros = coalesce(v.cost_ceiling_micros, r.cost_ceiling_micros),
    due_at = coalesce(v.due_at, r.due_at)
from unnest($1::uuid[], $2::smallint[], $3::int[], $4::uuid[], $5::int[], $6::bigint[],
    $7::bigint[]) v (run_id, turn, turn_no, history_of, history_length, cost_ceiling_micros, due_at)
where r.run_id >= v.run_id
and r.run_id <= v.run_id";

/// By the primary key of `conversations`.
const UPDATE: &str = "\
update conversations c
set expires_at = v.expires_at,
    active_run_id = v.active_run_id,
    queued_runs = v.queued_runs,
    turns = v.turns,
    message_count = v.message_count,
    cost_micros = v.cost_micros,
    last_active_at = v.last_active_at
from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::int[], $5::int[], $6::int[], $7::bigint[],
    $8::bigint[]) v (conversation_id, expires_at, active_run_id, queued_runs, turns, message_count, cost_micros,
    last_active_at)
where c.conversation_id >= v.conversation_id
and c.conversation_id <= v.conversation_id";

const SAY: &str = "\
insert into conversation_messages (conversation_id, message_index, message_id, data)
select v.conversation_id, v.message_index, v.message_id, v.data
from unnest($1::uuid[], $2::int[], $3::uuid[], $4::text[])
    v (conversation_id, message_index, message_id, data)";

/// By the primary key of `runs`.
const ENTERED: &str = "\
select r.run_id, r.turn, r.history_of, r.history_length, r.cost_ceiling_micros
from unnest($1::uuid[]) v (run_id)
cross join lateral (
    select r.*
    from runs r
    where r.run_id = v.run_id
    limit 1
) r";

/// By `runs_overtaken`, whose rows are few, and primary keys. 4 is a run that has been asked.
const TO_BE_CANCELLED: &str = "\
select w.workspace_id, w.run_id
from runs w
where w.turn = 4
and w.turn > 2
union all
select a.workspace_id, a.run_id
from runs w
cross join lateral (
    select c.active_run_id
    from conversations c
    where c.conversation_id = w.conversation_id
    limit 1
) c
cross join lateral (
    select a.workspace_id, a.run_id
    from runs a
    where a.run_id = c.active_run_id
    and a.status in (1, 2, 3)
    limit 1
) a
where w.turn = 3
and w.turn > 2
limit $1";

/// By `runs_waiting_turn`.
const DISMISS: &str = "\
update runs
set turn = 4
where conversation_id = $1
and turn in (2, 3)
and turn > 1";

/// By `runs_in_turn`, as the next one.
const FIND_BEHIND: &str = "\
select r.run_id, r.turn_no
from runs r
where r.workspace_id = $1
and r.conversation_id = $2
and r.turn_no > $3
and r.deleted_at is null
order by r.turn_no
limit 1";

const FIND_LAST: &str = "\
select r.run_id, r.turn_no
from runs r
where r.workspace_id = $1
and r.conversation_id = $2
and r.turn_no >= 0
and r.deleted_at is null
order by r.turn_no desc
limit 1";

/// By the primary key of `runs`. A run that was erased keeps its place.
const FIND_OF: &str = "\
select r.run_id, r.turn_no
from runs r
where r.workspace_id = $1
and r.conversation_id = $2
and r.run_id = $3
and r.turn_no is not null";

type SqlResult<T> = std::result::Result<T, sqlx::Error>;

/// Locks conversations, in the open transaction.
pub(super) async fn lock(lease: &mut Lease<'_>, ids: &[ConversationId]) -> Result<Turns> {
    if ids.is_empty() {
        return Ok(Turns::default());
    }
    let ids: Vec<Uuid> = ids.iter().map(|id| id.uuid()).collect();
    let found = lease.rows(sqlx::query(LOCK).bind(ids)).await.map_err(failure::of_part)?;
    let conversations: Result<Vec<Conversation>> = found.iter().map(conversations::read).collect();
    Ok(Turns::new(conversations?))
}

/// Writes what came of it: `changes`, then the next turns, then the rows. Returns whether a run that
/// waited is due now.
pub(super) async fn write(
    lease: &mut Lease<'_>,
    mut turns: Turns,
    changes: Changes,
    now: Timestamp,
) -> Result<bool> {
    self::change(lease, &changes).await?;
    let freed: Vec<Uuid> = turns.freed().iter().map(|id| id.uuid()).collect();
    let mut promoted = false;
    if !freed.is_empty() {
        let found = lease.rows(sqlx::query(NEXT).bind(freed)).await.map_err(failure::of_part)?;
        let next: Result<Vec<Waiting>> = found.iter().map(waiting).collect();
        let changes = turns.promote(next?, now)?;
        promoted = !changes.placed.is_empty();
        self::change(lease, &changes).await?;
    }
    let rows = turns.changed();
    if !rows.is_empty() {
        let query = sqlx::query(UPDATE)
            .bind(column(&rows, |c| c.conversation_id.uuid()))
            .bind(column(&rows, |c| c.expires_at.map(Timestamp::millis)))
            .bind(column(&rows, |c| c.active_run_id.map(RunId::uuid)))
            .bind(column(&rows, |c| c.queued_runs))
            .bind(column(&rows, |c| c.turns))
            .bind(column(&rows, |c| c.message_count))
            .bind(column(&rows, |c| c.cost.map(Usd::micros)))
            .bind(column(&rows, |c| c.last_active_at.millis()));
        lease.change(query).await.map_err(failure::of_part)?;
    }
    Ok(promoted)
}

async fn change(lease: &mut Lease<'_>, changes: &Changes) -> Result<()> {
    if !changes.superseded.is_empty() {
        let ids = column(&changes.superseded, |id| id.uuid());
        lease.change(sqlx::query(SUPERSEDE).bind(ids)).await.map_err(failure::of_part)?;
    }
    place(lease, &changes.placed).await.map_err(failure::of_part)?;
    say(lease, &changes.messages).await
}

/// Puts runs into their places, in the open transaction.
pub(super) async fn place(lease: &mut Lease<'_>, placed: &[Placed]) -> SqlResult<()> {
    // Whoever leaves goes first: never two active ones, not for a statement.
    let (left, entered): (Vec<Placed>, Vec<Placed>) =
        placed.iter().partition(|placed| placed.turn.is_none());
    for placed in [left, entered].iter().filter(|placed| !placed.is_empty()) {
        let query = sqlx::query(PLACE)
            .bind(column(placed, |p| p.run_id.uuid()))
            .bind(column(placed, |p| p.turn.map(Turn::code)))
            .bind(column(placed, |p| p.turn_no))
            .bind(column(placed, |p| p.past.map(|past| past.conversation_id.uuid())))
            .bind(column(placed, |p| p.past.map(|past| past.messages)))
            .bind(column(placed, |p| p.cost_ceiling.map(Usd::micros)))
            .bind(column(placed, |p| p.due_at.map(Timestamp::millis)));
        lease.change(query).await?;
    }
    Ok(())
}

/// Adds messages at their places, in the open transaction.
pub(super) async fn say(
    lease: &mut Lease<'_>,
    messages: &[(ConversationId, i32, crate::domain::conversation::message::NewMessage)],
) -> Result<()> {
    if messages.is_empty() {
        return Ok(());
    }
    let texts: Result<Vec<String>> =
        messages.iter().map(|(_, _, message)| rows::message_text(message)).collect();
    let query = sqlx::query(SAY)
        .bind(column(messages, |(id, _, _)| id.uuid()))
        .bind(column(messages, |(_, index, _)| *index))
        .bind(column(messages, |(_, _, message)| message.message_id.uuid()))
        .bind(texts?);
    lease.change(query).await.map_err(failure::of_part)?;
    Ok(())
}

/// Whoever waits in a conversation waits in vain: it was closed, in the open transaction.
pub(super) async fn dismiss(lease: &mut Lease<'_>, id: ConversationId) -> Result<()> {
    lease.change(sqlx::query(DISMISS).bind(id.uuid())).await.map_err(failure::of_part)?;
    Ok(())
}

/// How runs entered their conversations, for a flush whose answer was lost.
pub(super) async fn entrances(
    lease: &mut Lease<'_>,
    run_ids: Vec<Uuid>,
) -> Result<Vec<(Uuid, Entrance)>> {
    let found = lease.rows(sqlx::query(ENTERED).bind(run_ids)).await.map_err(failure::of_read)?;
    found.iter().map(entrance).collect()
}

fn entrance(row: &PgRow) -> Result<(Uuid, Entrance)> {
    let get = |name| row.try_get::<Option<i64>, _>(name).map_err(failure::of_value);
    let turn: Option<i16> = row.try_get("turn").map_err(failure::of_value)?;
    let of: Option<Uuid> = row.try_get("history_of").map_err(failure::of_value)?;
    let length: Option<i32> = row.try_get("history_length").map_err(failure::of_value)?;
    let entrance = Entrance {
        // One whose turn is over by now had begun it.
        turn: turn.and_then(Turn::from_code).unwrap_or(Turn::Active),
        past: of.zip(length).map(|(id, messages)| Past {
            conversation_id: ConversationId::from_uuid(id),
            messages,
        }),
        cost_ceiling: get("cost_ceiling_micros")?.map(Usd::from_micros),
    };
    Ok((row.try_get("run_id").map_err(failure::of_value)?, entrance))
}

fn waiting(row: &PgRow) -> Result<Waiting> {
    let value = failure::of_value;
    let conversation_id = row.try_get("conversation_id").map_err(value)?;
    let run_id = row.try_get("run_id").map_err(value)?;
    let (seq, kind) = (row.try_get("seq").map_err(value)?, row.try_get("kind").map_err(value)?);
    Ok(Waiting {
        conversation_id: ConversationId::from_uuid(conversation_id),
        run_id: RunId::from_uuid(run_id),
        first: rows::entry(seq, kind, row.try_get("data").map_err(value)?)?,
    })
}

impl PostgresStore {
    pub(super) async fn find_turn_row(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        find: FindTurn,
    ) -> Result<Option<TurnPlace>> {
        let query = |sql| sqlx::query(sql).bind(workspace_id.0).bind(conversation_id.uuid());
        let query = match find {
            FindTurn::Behind(turn_no) => query(FIND_BEHIND).bind(turn_no),
            FindTurn::Last => query(FIND_LAST),
            FindTurn::Of(run_id) => query(FIND_OF).bind(run_id.uuid()),
        };
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.row(query).await.map_err(failure::of_read)?;
        let read = |row: &PgRow| {
            let run_id = RunId::from_uuid(row.try_get("run_id")?);
            Ok(TurnPlace { run_id, turn_no: row.try_get("turn_no")? })
        };
        found.as_ref().map(read).transpose().map_err(failure::of_value)
    }

    pub(super) async fn to_be_cancelled_rows(
        &self,
        limit: i64,
    ) -> Result<Vec<(WorkspaceId, RunId)>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let query = sqlx::query(TO_BE_CANCELLED).bind(limit);
        let found = lease.rows(query).await.map_err(failure::of_read)?;
        let read = |row: &PgRow| {
            let workspace_id: i32 = row.try_get("workspace_id")?;
            let run_id: Uuid = row.try_get("run_id")?;
            Ok((WorkspaceId(workspace_id), RunId::from_uuid(run_id)))
        };
        found.iter().map(read).collect::<SqlResult<_>>().map_err(failure::of_value)
    }
}

fn column<'a, T, C>(rows: &'a [T], value: impl FnMut(&'a T) -> C) -> Vec<C> {
    rows.iter().map(value).collect()
}
