//! Turns of conversations, in the transaction of what begins and ends them: see `store/turns.rs`.

use sqlx::sqlite::SqliteRow;
use sqlx::types::Uuid;
use sqlx::{Row as _, SqliteConnection};

use crate::domain::conversation::message::NewMessage;
use crate::domain::conversation::{Conversation, Turn};
use crate::domain::ids::{ConversationId, RunId, WorkspaceId};
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::store::turns::{Changes, Placed, Turns, Waiting};
use crate::store::{Entrance, FindTurn, Past, Result, TurnPlace, rows};

use super::conversations::{self, columns};
use super::failure;
use super::readers::Readers;
use super::table::Table;

/// By the primary key of `conversations`.
const LOOK: &str = concat!(
    "select ",
    columns!(),
    "
from jsonb_each(?1) v
cross join conversations c
on c.conversation_id = unhex(v.value ->> 0)
where c.deleted_at is null"
);

/// By `runs_waiting_turn`: whoever waits to interrupt (3), else who waits longest (2).
const NEXT: &str = "\
select r.conversation_id, r.run_id, f.seq, f.kind, f.data
from jsonb_each(?1) v
cross join runs r
on r.run_no = (
    select n.run_no
    from runs n indexed by runs_waiting_turn
    where n.conversation_id = unhex(v.value ->> 0)
    and n.turn in (2, 3)
    and n.turn > 1
    order by n.turn desc, n.turn_no
    limit 1
)
cross join run_facts f
on f.run_no = r.run_no
and f.seq = 1";

/// By `runs_waiting_turn`.
const SUPERSEDE: &str = "\
update runs indexed by runs_waiting_turn
set turn = 4
where conversation_id in (select unhex(v.value ->> 0) from jsonb_each(?1) v)
and turn = 3
and turn > 1";

/// By the unique index of `runs`. Nobody drives a run that waited, so that its fence may stay; those
/// that end are not due.
const PLACE: &str = "\
update runs
set turn = v.turn,
    turn_no = coalesce(v.turn_no, runs.turn_no),
    history_of = coalesce(v.history_of, runs.history_of),
    history_length = coalesce(v.history_length, runs.history_length),
    cost_ceiling_micros = coalesce(v.cost_ceiling_micros, runs.cost_ceiling_micros),
    due_at = coalesce(v.due_at, runs.due_at)
from (
    select unhex(value ->> 0) as run_id, value ->> 1 as turn, value ->> 2 as turn_no,
        unhex(value ->> 3) as history_of, value ->> 4 as history_length,
        value ->> 5 as cost_ceiling_micros, value ->> 6 as due_at
    from jsonb_each(?1)
) v
where runs.run_id = v.run_id";

/// By the primary key of `conversations`.
const UPDATE: &str = "\
update conversations
set expires_at = v.expires_at,
    active_run_id = v.active_run_id,
    queued_runs = v.queued_runs,
    turns = v.turns,
    message_count = v.message_count,
    cost_micros = v.cost_micros,
    last_active_at = v.last_active_at
from (
    select unhex(value ->> 0) as conversation_id, value ->> 1 as expires_at,
        unhex(value ->> 2) as active_run_id, value ->> 3 as queued_runs, value ->> 4 as turns,
        value ->> 5 as message_count, value ->> 6 as cost_micros, value ->> 7 as last_active_at
    from jsonb_each(?1)
) v
where conversations.conversation_id = v.conversation_id";

const SAY: &str = "\
insert into conversation_messages (conversation_id, message_index, message_id, data)
select unhex(v.value ->> 0), v.value ->> 1, unhex(v.value ->> 2), v.value ->> 3
from jsonb_each(?1) v";

/// By the unique index of `runs`.
const ENTERED: &str = "\
select r.run_id, r.turn, r.history_of, r.history_length, r.cost_ceiling_micros
from jsonb_each(?1) v
cross join runs r
on r.run_id = unhex(v.value ->> 0)";

/// By `runs_overtaken`, whose rows are few, and primary keys. 4 is a run that has been asked.
const TO_BE_CANCELLED: &str = "\
select w.workspace_id, w.run_id
from runs w indexed by runs_overtaken
where w.turn = 4
and w.turn > 2
union all
select a.workspace_id, a.run_id
from runs w indexed by runs_overtaken
cross join conversations c
on c.conversation_id = w.conversation_id
cross join runs a
on a.run_id = c.active_run_id
where w.turn = 3
and w.turn > 2
and a.status in (1, 2, 3)
limit ?1";

/// By `runs_waiting_turn`.
const DISMISS: &str = "\
update runs indexed by runs_waiting_turn
set turn = 4
where conversation_id = ?1
and turn in (2, 3)
and turn > 1";

/// By `runs_in_turn`, as the next one.
const FIND_BEHIND: &str = "\
select r.run_id, r.turn_no
from runs r indexed by runs_in_turn
where r.workspace_id = ?1
and r.conversation_id = ?2
and r.turn_no > ?3
and r.deleted_at is null
order by r.turn_no
limit 1";

const FIND_LAST: &str = "\
select r.run_id, r.turn_no
from runs r indexed by runs_in_turn
where r.workspace_id = ?1
and r.conversation_id = ?2
and r.turn_no >= 0
and r.deleted_at is null
order by r.turn_no desc
limit 1";

/// By the unique index of `runs`. A run that was erased keeps its place.
const FIND_OF: &str = "\
select r.run_id, r.turn_no
from runs r
where r.workspace_id = ?1
and r.conversation_id = ?2
and r.run_id = ?3
and r.turn_no is not null";

/// Conversations, in the writer's turn.
pub(super) async fn look(
    connection: &mut SqliteConnection,
    ids: &[ConversationId],
) -> Result<Turns> {
    if ids.is_empty() {
        return Ok(Turns::default());
    }
    let query = sqlx::query(LOOK).bind(names(ids).json());
    let found = query.fetch_all(connection).await.map_err(failure::of)?;
    let conversations: Result<Vec<Conversation>> = found.iter().map(conversations::read).collect();
    Ok(Turns::new(conversations?))
}

/// Writes what came of it: `changes`, then the next turns, then the rows. Returns whether a run that
/// waited is due now.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    mut turns: Turns,
    changes: Changes,
    now: Timestamp,
) -> Result<bool> {
    change(connection, &changes).await?;
    let freed = turns.freed();
    let mut promoted = false;
    if !freed.is_empty() {
        let query = sqlx::query(NEXT).bind(names(&freed).json());
        let found = query.fetch_all(&mut *connection).await.map_err(failure::of)?;
        let next: Result<Vec<Waiting>> = found.iter().map(waiting).collect();
        let changes = turns.promote(next?, now)?;
        promoted = !changes.placed.is_empty();
        change(connection, &changes).await?;
    }
    let mut rows = Table::new();
    for conversation in turns.changed() {
        rows.row()
            .uuid(conversation.conversation_id.uuid())
            .maybe_int(conversation.expires_at.map(Timestamp::millis))
            .maybe_uuid(conversation.active_run_id.map(RunId::uuid))
            .int(conversation.queued_runs)
            .int(conversation.turns)
            .int(conversation.message_count)
            .maybe_int(conversation.cost.map(Usd::micros))
            .int(conversation.last_active_at.millis());
    }
    run(connection, UPDATE, rows).await?;
    Ok(promoted)
}

async fn change(connection: &mut SqliteConnection, changes: &Changes) -> Result<()> {
    run(connection, SUPERSEDE, names(&changes.superseded)).await?;
    place(connection, &changes.placed).await?;
    say(connection, &changes.messages).await
}

/// Puts runs into their places, in the writer's turn.
pub(super) async fn place(connection: &mut SqliteConnection, placed: &[Placed]) -> Result<()> {
    // Whoever leaves goes first: never two active ones, not for a statement.
    let (left, entered): (Vec<Placed>, Vec<Placed>) =
        placed.iter().partition(|placed| placed.turn.is_none());
    for placed in [left, entered] {
        run(connection, PLACE, places(&placed)).await?;
    }
    Ok(())
}

fn places(placed: &[Placed]) -> Table {
    let mut places = Table::new();
    for placed in placed {
        places
            .row()
            .uuid(placed.run_id.uuid())
            .maybe_int(placed.turn.map(Turn::code))
            .maybe_int(placed.turn_no)
            .maybe_uuid(placed.past.map(|past| past.conversation_id.uuid()))
            .maybe_int(placed.past.map(|past| past.messages))
            .maybe_int(placed.cost_ceiling.map(Usd::micros))
            .maybe_int(placed.due_at.map(Timestamp::millis));
    }
    places
}

/// Adds messages at their places, in the writer's turn.
pub(super) async fn say(
    connection: &mut SqliteConnection,
    messages: &[(ConversationId, i32, NewMessage)],
) -> Result<()> {
    let mut said = Table::new();
    for (conversation_id, index, message) in messages {
        said.row()
            .uuid(conversation_id.uuid())
            .int(*index)
            .uuid(message.message_id.uuid())
            .text(&rows::message_text(message)?);
    }
    run(connection, SAY, said).await
}

async fn run(connection: &mut SqliteConnection, sql: &'static str, table: Table) -> Result<()> {
    if !table.is_empty() {
        let query = sqlx::query(sql).bind(table.json());
        query.execute(connection).await.map_err(failure::of)?;
    }
    Ok(())
}

fn names(ids: &[ConversationId]) -> Table {
    let mut names = Table::new();
    for id in ids {
        names.row().uuid(id.uuid());
    }
    names
}

/// Whoever waits in a conversation waits in vain: it was closed, in the writer's turn.
pub(super) async fn dismiss(connection: &mut SqliteConnection, id: ConversationId) -> Result<()> {
    sqlx::query(DISMISS).bind(id.uuid()).execute(connection).await.map_err(failure::of)?;
    Ok(())
}

/// How runs entered their conversations, for a flush whose answer nobody heard.
pub(super) async fn entrances(
    connection: &mut SqliteConnection,
    run_ids: &[RunId],
) -> Result<Vec<(RunId, Entrance)>> {
    let mut runs = Table::new();
    for run_id in run_ids {
        runs.row().uuid(run_id.uuid());
    }
    let query = sqlx::query(ENTERED).bind(runs.json());
    let found = query.fetch_all(connection).await.map_err(failure::of)?;
    found.iter().map(entrance).collect()
}

fn entrance(row: &SqliteRow) -> Result<(RunId, Entrance)> {
    let turn: Option<i16> = row.try_get("turn").map_err(failure::of)?;
    let of: Option<Uuid> = row.try_get("history_of").map_err(failure::of)?;
    let length: Option<i32> = row.try_get("history_length").map_err(failure::of)?;
    let ceiling: Option<i64> = row.try_get("cost_ceiling_micros").map_err(failure::of)?;
    let entrance = Entrance {
        // One whose turn is over by now had begun it.
        turn: turn.and_then(Turn::from_code).unwrap_or(Turn::Active),
        past: of.zip(length).map(|(id, messages)| Past {
            conversation_id: ConversationId::from_uuid(id),
            messages,
        }),
        cost_ceiling: ceiling.map(Usd::from_micros),
    };
    let run_id: Uuid = row.try_get("run_id").map_err(failure::of)?;
    Ok((RunId::from_uuid(run_id), entrance))
}

fn waiting(row: &SqliteRow) -> Result<Waiting> {
    let conversation_id = row.try_get("conversation_id").map_err(failure::of)?;
    let run_id = row.try_get("run_id").map_err(failure::of)?;
    let seq = row.try_get("seq").map_err(failure::of)?;
    let kind = row.try_get("kind").map_err(failure::of)?;
    Ok(Waiting {
        conversation_id: ConversationId::from_uuid(conversation_id),
        run_id: RunId::from_uuid(run_id),
        first: rows::entry(seq, kind, row.try_get("data").map_err(failure::of)?)?,
    })
}

pub(super) async fn find_turn(
    readers: &Readers,
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
    let read = |row: SqliteRow| {
        let run_id = RunId::from_uuid(row.try_get("run_id").map_err(failure::of)?);
        Ok(TurnPlace { run_id, turn_no: row.try_get("turn_no").map_err(failure::of)? })
    };
    readers.first(query).await?.map(read).transpose()
}

pub(super) async fn to_be_cancelled(
    readers: &Readers,
    limit: i64,
) -> Result<Vec<(WorkspaceId, RunId)>> {
    let found = readers.all(sqlx::query(TO_BE_CANCELLED).bind(limit)).await?;
    let read = |row: &SqliteRow| -> Result<(WorkspaceId, RunId)> {
        let workspace_id: i32 = row.try_get("workspace_id").map_err(failure::of)?;
        let run_id: Uuid = row.try_get("run_id").map_err(failure::of)?;
        Ok((WorkspaceId(workspace_id), RunId::from_uuid(run_id)))
    };
    found.iter().map(read).collect()
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[
    LOOK,
    NEXT,
    SUPERSEDE,
    PLACE,
    UPDATE,
    SAY,
    ENTERED,
    FIND_BEHIND,
    FIND_LAST,
    FIND_OF,
    TO_BE_CANCELLED,
    DISMISS,
];
