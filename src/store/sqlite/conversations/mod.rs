//! Conversations and their messages: made, read, listed, changed by those who are no run; [`erase`]: gone.

pub(super) mod erase;

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow as _, Row as _, SqliteConnection};

use crate::domain::conversation::Conversation;
use crate::domain::conversation::message::Message;
use crate::domain::ids::{AgentId, ConversationId, MessageId, RunId, WorkspaceId};
use crate::domain::money::Usd;
use crate::domain::page::{Listed, Order, Page};
use crate::domain::time::Timestamp;
use crate::store::rows::{self, ConversationFields};
use crate::store::{
    ConversationDecision, ConversationOutcome, ConversationWrite, MessageRange, NewKey, Result,
    Written,
};

use super::readers::Readers;
use super::writer::Writer;
use super::{failure, keys, turns};

/// What [`ConversationFields`] reads.
macro_rules! columns {
    () => {
        "\
c.conversation_id, c.workspace_id, c.agent_id, c.system_prompt, c.parameters, c.metadata,
    c.timeout_seconds, c.closed_at, c.expires_at, c.active_run_id, c.queued_runs, c.turns,
    c.message_count, c.cost_micros, c.created_at, c.last_active_at"
    };
}
pub(super) use columns;

const INSERT: &str = "\
insert into conversations (conversation_id, workspace_id, agent_id, system_prompt, parameters,
    metadata, timeout_seconds, closed_at, expires_at, active_run_id, queued_runs, turns,
    message_count, cost_micros, created_at, last_active_at)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// By the primary key of `conversations`.
const LOAD: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where c.workspace_id = ?1
and c.conversation_id = ?2
and c.deleted_at is null"
);

/// By the primary key of `conversations`: what anybody but a run may change.
const CHANGE: &str = "\
update conversations
set metadata = ?3,
    closed_at = ?4,
    expires_at = ?5,
    message_count = ?6,
    last_active_at = ?7
where workspace_id = ?1
and conversation_id = ?2";

/// By the index that is named.
macro_rules! list {
    ($index:literal, $leading:literal, $order:literal) => {
        concat!(
            "select ",
            columns!(),
            "
from conversations c indexed by ",
            $index,
            "
where c.workspace_id = ?1
",
            $leading,
            "
and c.conversation_id > ?2
and c.conversation_id < ?3
and c.deleted_at is null
and (?5 is null or c.agent_id = ?5)
order by c.conversation_id ",
            $order,
            "
limit ?4"
        )
    };
}

const BY_WORKSPACE_ASC: &str = list!("conversations_by_workspace", "", "asc");
const BY_WORKSPACE_DESC: &str = list!("conversations_by_workspace", "", "desc");
const BY_AGENT_ASC: &str = list!("conversations_by_agent", "and c.agent_id = ?5", "asc");
const BY_AGENT_DESC: &str = list!("conversations_by_agent", "and c.agent_id = ?5", "desc");

/// By the primary keys of `conversations` and `conversation_messages`.
macro_rules! messages {
    ($order:literal) => {
        concat!(
            "\
select m.message_index, m.data
from conversation_messages m
where m.conversation_id = ?2
and m.message_index > ?3
and m.message_index < ?4
and exists (
    select 1
    from conversations c
    where c.workspace_id = ?1
    and c.conversation_id = ?2
    and c.deleted_at is null
)
order by m.message_index ",
            $order,
            "
limit ?5"
        )
    };
}

const MESSAGES_ASC: &str = messages!("asc");
const MESSAGES_DESC: &str = messages!("desc");

/// By the primary key of `conversations` and `conversation_messages_by_id`.
const MESSAGE_INDEX: &str = "\
select m.message_index
from conversations c
cross join conversation_messages m
on m.conversation_id = c.conversation_id
where c.workspace_id = ?1
and c.conversation_id = ?2
and c.deleted_at is null
and m.message_id = ?3";

pub(super) async fn insert(
    writer: &Writer,
    conversation: &Conversation,
    key: Option<&NewKey>,
) -> Result<Written<()>> {
    let (conversation, key) = (conversation.clone(), key.cloned());
    writer
        .write(move |connection| {
            Box::pin(async move {
                if let Some(row) = keys::taken(connection, key.as_ref()).await? {
                    return Ok(Written::KeyTaken(row));
                }
                insert_in(connection, &conversation).await?;
                keys::bind(connection, key.as_ref()).await?;
                Ok(Written::Done(()))
            })
        })
        .await
}

async fn insert_in(connection: &mut SqliteConnection, conversation: &Conversation) -> Result<()> {
    sqlx::query(INSERT)
        .bind(conversation.conversation_id.uuid())
        .bind(conversation.workspace_id.0)
        .bind(conversation.agent_id.as_str())
        .bind(rows::prompt_text(conversation)?)
        .bind(rows::json("a conversation's parameters", &conversation.parameters)?)
        .bind(rows::json("a conversation's metadata", &conversation.metadata)?)
        .bind(conversation.timeout_seconds.map(rows::stored_seconds))
        .bind(conversation.closed_at.map(Timestamp::millis))
        .bind(conversation.expires_at.map(Timestamp::millis))
        .bind(conversation.active_run_id.map(RunId::uuid))
        .bind(conversation.queued_runs)
        .bind(conversation.turns)
        .bind(conversation.message_count)
        .bind(conversation.cost.map(Usd::micros))
        .bind(conversation.created_at.millis())
        .bind(conversation.last_active_at.millis())
        .execute(connection)
        .await
        .map_err(failure::of)?;
    Ok(())
}

pub(super) async fn load(
    readers: &Readers,
    workspace_id: WorkspaceId,
    conversation_id: ConversationId,
) -> Result<Option<Conversation>> {
    let query = sqlx::query(LOAD).bind(workspace_id.0).bind(conversation_id.uuid());
    readers.first(query).await?.as_ref().map(read).transpose()
}

pub(super) async fn list(
    readers: &Readers,
    workspace_id: WorkspaceId,
    agent_id: Option<&AgentId>,
    page: &Page<ConversationId>,
) -> Result<Listed<Conversation>> {
    let scan = page.scan();
    let sql = match (agent_id.is_some(), scan.order) {
        (false, Order::Asc) => BY_WORKSPACE_ASC,
        (false, Order::Desc) => BY_WORKSPACE_DESC,
        (true, Order::Asc) => BY_AGENT_ASC,
        (true, Order::Desc) => BY_AGENT_DESC,
    };
    let query = sqlx::query(sql)
        .bind(workspace_id.0)
        // In front of all ids and behind all of them: ids are 16 bytes.
        .bind(scan.above.map_or_else(Vec::new, |id| id.uuid().as_bytes().to_vec()))
        .bind(scan.below.map_or_else(|| vec![0xff; 17], |id| id.uuid().as_bytes().to_vec()))
        .bind(scan.limit)
        .bind(agent_id.map(AgentId::as_str));
    let found = readers.all(query).await?;
    let conversations: Result<Vec<_>> = found.iter().map(read).collect();
    Ok(page.finish(conversations?))
}

pub(super) async fn messages(
    readers: &Readers,
    workspace_id: WorkspaceId,
    conversation_id: ConversationId,
    range: MessageRange,
) -> Result<Vec<Message>> {
    let query = sqlx::query(if range.descending { MESSAGES_DESC } else { MESSAGES_ASC })
        .bind(workspace_id.0)
        .bind(conversation_id.uuid())
        .bind(range.above)
        .bind(range.below)
        .bind(range.limit);
    let message = |row: &SqliteRow| {
        let index = row.try_get("message_index").map_err(failure::of)?;
        let data: String = row.try_get("data").map_err(failure::of)?;
        rows::message(index, &data)
    };
    readers.all(query).await?.iter().map(message).collect()
}

pub(super) async fn message_index(
    readers: &Readers,
    (workspace_id, conversation_id): (WorkspaceId, ConversationId),
    message_id: MessageId,
) -> Result<Option<i32>> {
    let query = sqlx::query(MESSAGE_INDEX)
        .bind(workspace_id.0)
        .bind(conversation_id.uuid())
        .bind(message_id.uuid());
    let row = readers.first(query).await?;
    row.map(|row| row.try_get("message_index").map_err(failure::of)).transpose()
}

pub(super) async fn converse(
    writer: &Writer,
    write: ConversationWrite,
) -> Result<ConversationOutcome> {
    writer.write(move |connection| Box::pin(async move { apply(connection, &write).await })).await
}

async fn apply(
    connection: &mut SqliteConnection,
    write: &ConversationWrite,
) -> Result<ConversationOutcome> {
    if let Some(row) = keys::taken(connection, write.key.as_ref()).await? {
        return Ok(ConversationOutcome::KeyTaken(row));
    }
    let query = sqlx::query(LOAD).bind(write.workspace_id.0).bind(write.conversation_id.uuid());
    let Some(row) = query.fetch_optional(&mut *connection).await.map_err(failure::of)? else {
        return Ok(ConversationOutcome::Absent);
    };
    let before = read(&row)?;
    let after = match (write.decide)(&before) {
        ConversationDecision::Nothing => before,
        // It has written nothing yet.
        ConversationDecision::Refuse(refusal) => return Ok(ConversationOutcome::Refused(refusal)),
        ConversationDecision::Change { conversation, messages } => {
            change(connection, &conversation).await?;
            if before.closed_at.is_none() && conversation.closed_at.is_some() {
                turns::dismiss(connection, before.conversation_id).await?;
            }
            let first = before.message_count;
            let said = (first..).zip(messages).map(|(index, m)| (before.conversation_id, index, m));
            turns::say(connection, &said.collect::<Vec<_>>()).await?;
            *conversation
        }
        ConversationDecision::Erase { at } => {
            erase::erase(connection, write.workspace_id, write.conversation_id.uuid(), at).await?;
            before
        }
    };
    keys::bind(connection, write.key.as_ref()).await?;
    Ok(ConversationOutcome::Done(Box::new(after)))
}

async fn change(connection: &mut SqliteConnection, conversation: &Conversation) -> Result<()> {
    sqlx::query(CHANGE)
        .bind(conversation.workspace_id.0)
        .bind(conversation.conversation_id.uuid())
        .bind(rows::json("a conversation's metadata", &conversation.metadata)?)
        .bind(conversation.closed_at.map(Timestamp::millis))
        .bind(conversation.expires_at.map(Timestamp::millis))
        .bind(conversation.message_count)
        .bind(conversation.last_active_at.millis())
        .execute(connection)
        .await
        .map_err(failure::of)?;
    Ok(())
}

/// The conversation out of its columns.
pub(super) fn read(row: &SqliteRow) -> Result<Conversation> {
    ConversationFields::from_row(row).map_err(failure::of)?.conversation()
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[
    LOAD,
    CHANGE,
    BY_WORKSPACE_ASC,
    BY_WORKSPACE_DESC,
    BY_AGENT_ASC,
    BY_AGENT_DESC,
    MESSAGES_ASC,
    MESSAGES_DESC,
    MESSAGE_INDEX,
];
