//! Rows as both databases keep them, made into what the rest of the house reads.
//!
//! Column names are the same in both, so one `FromRow` serves both. What is stored and cannot be read
//! is [`StoreError::Corrupt`], never a default.

use std::collections::BTreeMap;

use bytes::Bytes;
use sqlx::types::Uuid;

use crate::domain::agent::{Agent, ManagedBy};
use crate::domain::conversation::Conversation;
use crate::domain::conversation::message::{Message, NewMessage};
use crate::domain::event::{Entry, EventType};
use crate::domain::ids::{ConversationId, NodeId, RunId, WorkspaceId};
use crate::domain::money::Usd;
use crate::domain::run::{OpenApproval, RequiredAction, RunStatus};
use crate::domain::time::Timestamp;
use crate::domain::usage::Usage;

use super::{KeyRow, Past, Result, RunBody, RunRecord, RunRow, StoreError};

/// The columns of `runs` and `run_bodies`, and `last_seq`.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct RunFields {
    run_id: Uuid,
    workspace_id: i32,
    agent_id: String,
    agent_version: i32,
    status: i16,
    node_id: Option<Uuid>,
    rev: i32,
    epoch: i32,
    due_at: Option<i64>,
    crashes: i32,
    fact_seq: i32,
    steps_completed: i32,
    input_tokens: i64,
    cached_input_tokens: i64,
    output_tokens: i64,
    reasoning_tokens: i64,
    cost_micros: Option<i64>,
    children_cost_micros: Option<i64>,
    status_message: Option<String>,
    conversation_id: Option<Uuid>,
    parent_run_id: Option<Uuid>,
    root_run_id: Option<Uuid>,
    forked_from_run_id: Option<Uuid>,
    end_user_id: Option<String>,
    history_of: Option<Uuid>,
    history_length: Option<i32>,
    cost_ceiling_micros: Option<i64>,
    created_at: i64,
    started_at: Option<i64>,
    completed_at: Option<i64>,
    model: String,
    config: String,
    max_steps: i32,
    estimated_cost_micros: Option<i64>,
    metadata: String,
    last_seq: i32,
    /// Only where clients read the run: the texts of `actions`, as a list.
    #[sqlx(default)]
    actions: Option<String>,
}

impl RunFields {
    /// The run, without entries.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub(super) fn record(self) -> Result<RunRecord> {
        let status =
            RunStatus::from_code(self.status).ok_or_else(|| corrupt("runs.status", self.status))?;
        let usage = Usage::new(
            count(self.input_tokens)?,
            count(self.cached_input_tokens)?,
            count(self.output_tokens)?,
            count(self.reasoning_tokens)?,
        );
        let row = RunRow {
            run_id: RunId::from_uuid(self.run_id),
            workspace_id: WorkspaceId(self.workspace_id),
            agent_id: self.agent_id.parse().map_err(|e| corrupt("runs.agent_id", e))?,
            agent_version: self.agent_version,
            status,
            node_id: self.node_id.map(NodeId::from_uuid),
            rev: self.rev,
            epoch: self.epoch,
            due_at: self.due_at.map(Timestamp::from_millis),
            crashes: self.crashes,
            fact_seq: self.fact_seq,
            steps_completed: self.steps_completed,
            usage,
            cost: self.cost_micros.map(Usd::from_micros),
            children_cost: self.children_cost_micros.map(Usd::from_micros),
            status_message: self.status_message,
            conversation_id: self.conversation_id.map(ConversationId::from_uuid),
            parent_run_id: self.parent_run_id.map(RunId::from_uuid),
            root_run_id: self.root_run_id.map(RunId::from_uuid),
            forked_from_run_id: self.forked_from_run_id.map(RunId::from_uuid),
            end_user_id: self.end_user_id,
            past: self.history_of.zip(self.history_length).map(|(id, messages)| Past {
                conversation_id: ConversationId::from_uuid(id),
                messages,
            }),
            cost_ceiling: self.cost_ceiling_micros.map(Usd::from_micros),
            created_at: Timestamp::from_millis(self.created_at),
            started_at: self.started_at.map(Timestamp::from_millis),
            completed_at: self.completed_at.map(Timestamp::from_millis),
        };
        let body = RunBody {
            model: self.model,
            config: serde_json::from_str(&self.config)
                .map_err(|e| corrupt("run_bodies.config", e))?,
            max_steps: u32::try_from(self.max_steps)
                .map_err(|e| corrupt("run_bodies.max_steps", e))?,
            estimated_cost: self.estimated_cost_micros.map(Usd::from_micros),
            metadata: read_metadata(&self.metadata)?,
        };
        let mut actions: Vec<RequiredAction> = match self.actions {
            Some(texts) => serde_json::from_str(&texts).map_err(|e| corrupt("actions.data", e))?,
            None => Vec::new(),
        };
        // Ids of calls are times.
        actions.sort_unstable_by_key(|action| action.call_id);
        let last_seq = self.last_seq;
        Ok(RunRecord { row, body, last_seq, first: None, newest_fact: None, actions })
    }
}

/// The columns of `actions` for an approval, and the agent of its run.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct ApprovalFields {
    agent_id: String,
    created_at: i64,
    data: String,
}

impl ApprovalFields {
    /// The approval.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub(super) fn approval(self) -> Result<OpenApproval> {
        let action: RequiredAction =
            serde_json::from_str(&self.data).map_err(|e| corrupt("actions.data", e))?;
        Ok(OpenApproval {
            action_type: action.action_type,
            run_id: action.run_id,
            call_id: action.call_id,
            tool: action.tool,
            arguments: action.arguments,
            expires_at: action.expires_at,
            agent_id: self.agent_id.parse().map_err(|e| corrupt("runs.agent_id", e))?,
            created_at: Timestamp::from_millis(self.created_at),
        })
    }
}

/// An open action as it is kept, in the form that clients read.
///
/// # Errors
/// [`StoreError::Corrupt`] when it cannot be JSON, which none of our types allows.
pub(super) fn action_text(action: &RequiredAction) -> Result<String> {
    serde_json::to_string(action).map_err(|e| corrupt("an open action", e))
}

/// The columns of `conversations`.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct ConversationFields {
    conversation_id: Uuid,
    workspace_id: i32,
    agent_id: String,
    system_prompt: Option<String>,
    parameters: String,
    metadata: String,
    timeout_seconds: Option<i32>,
    closed_at: Option<i64>,
    expires_at: Option<i64>,
    active_run_id: Option<Uuid>,
    queued_runs: i32,
    turns: i32,
    message_count: i32,
    cost_micros: Option<i64>,
    created_at: i64,
    last_active_at: i64,
}

impl ConversationFields {
    /// The conversation.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub(super) fn conversation(self) -> Result<Conversation> {
        let seconds = self.timeout_seconds.map(u32::try_from).transpose();
        Ok(Conversation {
            conversation_id: ConversationId::from_uuid(self.conversation_id),
            workspace_id: WorkspaceId(self.workspace_id),
            agent_id: self.agent_id.parse().map_err(|e| corrupt("conversations.agent_id", e))?,
            system_prompt: (self.system_prompt.as_deref().map(serde_json::from_str))
                .transpose()
                .map_err(|e| corrupt("conversations.system_prompt", e))?,
            parameters: serde_json::from_str(&self.parameters)
                .map_err(|e| corrupt("conversations.parameters", e))?,
            metadata: serde_json::from_str(&self.metadata)
                .map_err(|e| corrupt("conversations.metadata", e))?,
            timeout_seconds: seconds.map_err(|e| corrupt("conversations.timeout_seconds", e))?,
            closed_at: self.closed_at.map(Timestamp::from_millis),
            expires_at: self.expires_at.map(Timestamp::from_millis),
            active_run_id: self.active_run_id.map(RunId::from_uuid),
            queued_runs: self.queued_runs,
            turns: self.turns,
            message_count: self.message_count,
            cost: self.cost_micros.map(Usd::from_micros),
            created_at: Timestamp::from_millis(self.created_at),
            last_active_at: Timestamp::from_millis(self.last_active_at),
        })
    }
}

/// A conversation's own instructions as they are kept: as JSON, for Postgres has no U+0000 in a text.
///
/// # Errors
/// [`StoreError::Corrupt`] when they cannot be JSON, which no text can be the reason for.
pub(super) fn prompt_text(conversation: &Conversation) -> Result<Option<String>> {
    let prompt = conversation.system_prompt.as_ref();
    prompt.map(|prompt| json("a conversation's prompt", prompt)).transpose()
}

/// A message as it is kept: what clients read, but for its place.
///
/// # Errors
/// [`StoreError::Corrupt`] when it cannot be JSON, which none of our types allows.
pub(super) fn message_text(message: &NewMessage) -> Result<String> {
    json("a message", message)
}

/// A message out of its row.
///
/// # Errors
/// [`StoreError::Corrupt`].
pub(super) fn message(index: i32, data: &str) -> Result<Message> {
    let message: NewMessage =
        serde_json::from_str(data).map_err(|e| corrupt("conversation_messages.data", e))?;
    Ok(message.at(index))
}

/// A value as JSON text.
///
/// # Errors
/// [`StoreError::Corrupt`] when it cannot be JSON, which none of our types allows.
pub(super) fn json(what: &str, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| corrupt(what, e))
}

/// Seconds as the databases keep them, which have no unsigned numbers.
pub(super) fn stored_seconds(seconds: u32) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// A run's metadata.
///
/// # Errors
/// [`StoreError::Corrupt`] when it is no object of texts.
pub(super) fn read_metadata(text: &str) -> Result<BTreeMap<String, String>> {
    serde_json::from_str(text).map_err(|e| corrupt("run_bodies.metadata", e))
}

/// The columns of `agents` and of one of its `agent_versions`.
#[derive(Debug, sqlx::FromRow)]
pub(super) struct AgentFields {
    agent_id: String,
    version: i32,
    settings: String,
    managed_by: i16,
    archived_at: Option<i64>,
    created_at: i64,
    updated_at: i64,
}

impl AgentFields {
    /// The agent.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub(super) fn agent(self) -> Result<Agent> {
        Ok(Agent {
            agent_id: self.agent_id.parse().map_err(|e| corrupt("agents.agent_id", e))?,
            settings: serde_json::from_str(&self.settings)
                .map_err(|e| corrupt("agent_versions.settings", e))?,
            version: self.version,
            managed_by: match self.managed_by {
                1 => ManagedBy::Api,
                2 => ManagedBy::Config,
                other => return Err(corrupt("agents.managed_by", other)),
            },
            archived_at: self.archived_at.map(Timestamp::from_millis),
            created_at: Timestamp::from_millis(self.created_at),
            updated_at: Timestamp::from_millis(self.updated_at),
        })
    }
}

/// The number that the database keeps for who manages an agent. Never changed once given.
pub(super) const fn managed_by_code(managed_by: ManagedBy) -> i16 {
    match managed_by {
        ManagedBy::Api => 1,
        ManagedBy::Config => 2,
    }
}

/// An event of `run_facts`.
///
/// # Errors
/// [`StoreError::Corrupt`] for a kind that this version does not know.
pub(super) fn entry(seq: i32, kind: i16, data: String) -> Result<Entry> {
    let event_type = EventType::from_code(kind).ok_or_else(|| corrupt("run_facts.kind", kind))?;
    Ok(Entry { seq, event_type, data: data.into() })
}

/// A page of a log that came as one text: for each event its seq, its kind (nothing for a delta), the
/// bytes of its text, and the text, with a blank behind each but the last. The events share its memory.
///
/// # Errors
/// [`StoreError::Corrupt`] when it is no such text.
pub(super) fn page(text: String) -> Result<Vec<Entry>> {
    let text = Bytes::from(text);
    let (mut entries, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let entry = entry_at(&text, &mut at);
        entries.push(entry.ok_or_else(|| corrupt("a page of a log, byte", at))?);
    }
    Ok(entries)
}

fn entry_at(text: &Bytes, at: &mut usize) -> Option<Entry> {
    let mut word = || {
        let rest = text.get(*at..)?;
        let end = memchr::memchr(b' ', rest)?;
        *at += end + 1;
        std::str::from_utf8(rest.get(..end)?).ok()
    };
    let (seq, kind, length) = (word()?, word()?, word()?);
    let end = at.checked_add(length.parse().ok()?).filter(|end| *end <= text.len())?;
    let data = text.slice(*at..end);
    let event_type = match kind {
        "" => Entry::type_of(&data)?,
        code => EventType::from_code(code.parse().ok()?)?,
    };
    *at = end;
    Some(Entry { seq: seq.parse().ok()?, event_type, data })
}

/// The columns of `idempotency` that a replay needs.
///
/// # Errors
/// [`StoreError::Corrupt`] when the fingerprint is no SHA-256.
pub(super) fn key_row(fingerprint: &[u8], resource: String) -> Result<KeyRow> {
    let fingerprint = fingerprint
        .try_into()
        .map_err(|_| corrupt("idempotency.fingerprint", fingerprint.len()))?;
    Ok(KeyRow { fingerprint, resource })
}

/// A count as the databases keep it, which have no unsigned numbers.
///
/// # Errors
/// [`StoreError::Corrupt`] when it is negative.
pub(super) fn count(stored: i64) -> Result<u64> {
    u64::try_from(stored).map_err(|_| corrupt("a count", stored))
}

/// A count to be kept; it stops at the largest that the databases have.
pub(super) fn stored_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The error for a stored value that cannot be read.
pub(super) fn corrupt(what: &str, why: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {why}"))
}
