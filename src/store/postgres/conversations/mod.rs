//! Conversations and their messages: made, read, listed, changed by those who are no run; [`erase`]: gone.

mod erase;

use sqlx::FromRow as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::Uuid;

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

use super::connections::Lease;
use super::{PostgresStore, failure, keys, turns};

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
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";

/// By the primary key of `conversations`.
const LOAD: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where c.workspace_id = $1
and c.conversation_id = $2
and c.deleted_at is null"
);

/// The same row, for whoever will change it.
const LOCK: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where c.workspace_id = $1
and c.conversation_id = $2
and c.deleted_at is null
for update"
);

/// By the primary key of `conversations`: what anybody but a run may change.
const CHANGE: &str = "\
update conversations
set metadata = $3,
    closed_at = $4,
    expires_at = $5,
    message_count = $6,
    last_active_at = $7
where workspace_id = $1
and conversation_id = $2";

/// By `conversations_by_workspace`, as the next one; see `runs.rs` for why the whole key is compared.
const BY_WORKSPACE_ASC: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where (c.workspace_id, c.conversation_id) > ($1, $2::uuid)
and (c.workspace_id, c.conversation_id) < ($1, $3::uuid)
and c.deleted_at is null
and ($5::text is null or c.agent_id = $5)
order by c.workspace_id, c.conversation_id
limit $4"
);

const BY_WORKSPACE_DESC: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where (c.workspace_id, c.conversation_id) > ($1, $2::uuid)
and (c.workspace_id, c.conversation_id) < ($1, $3::uuid)
and c.deleted_at is null
and ($5::text is null or c.agent_id = $5)
order by c.workspace_id desc, c.conversation_id desc
limit $4"
);

/// By `conversations_by_agent`, as the next one.
const BY_AGENT_ASC: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where (c.workspace_id, c.agent_id, c.conversation_id) > ($1, $5, $2::uuid)
and (c.workspace_id, c.agent_id, c.conversation_id) < ($1, $5, $3::uuid)
and c.deleted_at is null
order by c.workspace_id, c.agent_id, c.conversation_id
limit $4"
);

const BY_AGENT_DESC: &str = concat!(
    "select ",
    columns!(),
    "
from conversations c
where (c.workspace_id, c.agent_id, c.conversation_id) > ($1, $5, $2::uuid)
and (c.workspace_id, c.agent_id, c.conversation_id) < ($1, $5, $3::uuid)
and c.deleted_at is null
order by c.workspace_id desc, c.agent_id desc, c.conversation_id desc
limit $4"
);

/// By the primary keys of `conversations` and `conversation_messages`.
macro_rules! messages {
    ($order:literal) => {
        concat!(
            "\
select m.message_index, m.data
from conversations c
cross join lateral (
    select m.message_index, m.data
    from conversation_messages m
    where m.conversation_id = c.conversation_id
    and m.message_index > $3
    and m.message_index < $4
    order by m.message_index ",
            $order,
            "
    limit $5
) m
where c.workspace_id = $1
and c.conversation_id = $2
and c.deleted_at is null
order by m.message_index ",
            $order
        )
    };
}

const MESSAGES_ASC: &str = messages!("asc");
const MESSAGES_DESC: &str = messages!("desc");

/// By the primary key of `conversations` and `conversation_messages_by_id`.
const MESSAGE_INDEX: &str = "\
select m.message_index
from conversations c
join conversation_messages m
on m.conversation_id = c.conversation_id
where c.workspace_id = $1
and c.conversation_id = $2
and c.deleted_at is null
and m.message_id = $3";

impl PostgresStore {
    pub(super) async fn insert_conversation_row(
        &self,
        conversation: &Conversation,
        key: Option<&NewKey>,
    ) -> Result<Written<()>> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.begin().await.map_err(failure::of_read)?;
        let done = insert_in(&mut lease, conversation, key).await;
        if matches!(done, Ok(Written::Done(()))) {
            lease.commit().await.map_err(failure::of_write)?;
        } else {
            lease.rollback().await;
        }
        done
    }

    pub(super) async fn load_conversation_row(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
    ) -> Result<Option<Conversation>> {
        let query = sqlx::query(LOAD).bind(workspace_id.0).bind(conversation_id.uuid());
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let row = lease.row(query).await.map_err(failure::of_read)?;
        row.as_ref().map(read).transpose()
    }

    pub(super) async fn list_conversation_rows(
        &self,
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
            .bind(scan.above.map_or(Uuid::nil(), ConversationId::uuid))
            .bind(scan.below.map_or(Uuid::max(), ConversationId::uuid))
            .bind(scan.limit)
            .bind(agent_id.map(AgentId::as_str));
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.rows(query).await.map_err(failure::of_read)?;
        let conversations: Result<Vec<_>> = found.iter().map(read).collect();
        Ok(page.finish(conversations?))
    }

    pub(super) async fn converse_in(
        &self,
        write: &ConversationWrite,
    ) -> Result<ConversationOutcome> {
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        lease.begin().await.map_err(failure::of_read)?;
        let outcome = converse(&mut lease, write).await;
        if matches!(outcome, Ok(ConversationOutcome::Done(_))) {
            lease.commit().await.map_err(failure::of_write)?;
        } else {
            lease.rollback().await;
        }
        outcome
    }

    pub(super) async fn read_message_rows(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        range: MessageRange,
    ) -> Result<Vec<Message>> {
        let sql = if range.descending { MESSAGES_DESC } else { MESSAGES_ASC };
        let query = sqlx::query(sql)
            .bind(workspace_id.0)
            .bind(conversation_id.uuid())
            .bind(range.above)
            .bind(range.below)
            .bind(range.limit);
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let found = lease.rows(query).await.map_err(failure::of_read)?;
        let message = |row: &PgRow| {
            let index = row.try_get("message_index").map_err(failure::of_value)?;
            let data: String = row.try_get("data").map_err(failure::of_value)?;
            rows::message(index, &data)
        };
        found.iter().map(message).collect()
    }

    pub(super) async fn message_index_row(
        &self,
        workspace_id: WorkspaceId,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Option<i32>> {
        let query = sqlx::query(MESSAGE_INDEX)
            .bind(workspace_id.0)
            .bind(conversation_id.uuid())
            .bind(message_id.uuid());
        let mut lease = self.general.lease().await.map_err(failure::of_lease)?;
        let row = lease.row(query).await.map_err(failure::of_read)?;
        row.map(|row| row.try_get("message_index").map_err(failure::of_value)).transpose()
    }
}

async fn insert_in(
    lease: &mut Lease<'_>,
    conversation: &Conversation,
    key: Option<&NewKey>,
) -> Result<Written<()>> {
    if let keys::Bound::Before(row) = keys::bind(lease, key).await? {
        return Ok(Written::KeyTaken(row));
    }
    let query = sqlx::query(INSERT)
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
        .bind(conversation.last_active_at.millis());
    lease.change(query).await.map_err(failure::of_read)?;
    Ok(Written::Done(()))
}

async fn converse(lease: &mut Lease<'_>, write: &ConversationWrite) -> Result<ConversationOutcome> {
    // Keys before conversations, as everywhere.
    if let keys::Bound::Before(row) = keys::bind(lease, write.key.as_ref()).await? {
        return Ok(ConversationOutcome::KeyTaken(row));
    }
    let query = sqlx::query(LOCK).bind(write.workspace_id.0).bind(write.conversation_id.uuid());
    let Some(row) = lease.row(query).await.map_err(failure::of_read)? else {
        return Ok(ConversationOutcome::Absent);
    };
    let before = read(&row)?;
    let after = match (write.decide)(&before) {
        ConversationDecision::Nothing => before,
        ConversationDecision::Refuse(refusal) => return Ok(ConversationOutcome::Refused(refusal)),
        ConversationDecision::Change { conversation, messages } => {
            change(lease, &conversation).await?;
            if before.closed_at.is_none() && conversation.closed_at.is_some() {
                turns::dismiss(lease, before.conversation_id).await?;
            }
            let first = before.message_count;
            let said = (first..).zip(messages).map(|(index, m)| (before.conversation_id, index, m));
            turns::say(lease, &said.collect::<Vec<_>>()).await?;
            *conversation
        }
        ConversationDecision::Erase { at } => {
            erase::erase(lease, write.workspace_id, write.conversation_id, at).await?;
            before
        }
    };
    Ok(ConversationOutcome::Done(Box::new(after)))
}

async fn change(lease: &mut Lease<'_>, conversation: &Conversation) -> Result<()> {
    let query = sqlx::query(CHANGE)
        .bind(conversation.workspace_id.0)
        .bind(conversation.conversation_id.uuid())
        .bind(rows::json("a conversation's metadata", &conversation.metadata)?)
        .bind(conversation.closed_at.map(Timestamp::millis))
        .bind(conversation.expires_at.map(Timestamp::millis))
        .bind(conversation.message_count)
        .bind(conversation.last_active_at.millis());
    lease.change(query).await.map_err(failure::of_read)?;
    Ok(())
}

/// The conversation out of its columns.
pub(super) fn read(row: &PgRow) -> Result<Conversation> {
    ConversationFields::from_row(row).map_err(failure::of_value)?.conversation()
}
