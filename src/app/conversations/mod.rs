//! Conversations: create, read, list, change, close, keep alive, erase; and their [`messages`].

pub mod messages;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::agent::check_metadata;
use crate::domain::conversation::message::NewMessage;
use crate::domain::conversation::{
    self, Conversation, ConversationStatus, ConversationView, Refusal,
};
use crate::domain::ids::{AgentId, ConversationId};
use crate::domain::page::{Listed, Page};
use crate::domain::problem::Problems;
use crate::domain::run::RunConfig;
use crate::store::{
    ConversationDecide, ConversationDecision, ConversationOutcome, ConversationWrite, NewKey,
    Written,
};

use super::agents::check_model;
use super::idempotency::{Answer, RequestKey, taken};
use super::{App, AppError, Caller, Sought};

/// A conversation to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct ConversationRequest {
    /// Who answers in it.
    pub agent_id: AgentId,
    /// Instructions behind the agent's own.
    pub system_prompt: Option<String>,
    /// What its runs change about the agent.
    pub parameters: RunConfig,
    /// The client's notes.
    pub metadata: BTreeMap<String, String>,
    /// How long it stays open when nothing happens; `None`: for ever.
    pub timeout_seconds: Option<u32>,
}

impl App {
    /// Creates a conversation.
    ///
    /// # Errors
    /// [`AppError::Invalid`], also for an agent that is not there; [`AppError::AgentArchived`].
    pub async fn create_conversation(
        &self,
        caller: &Caller,
        mut request: ConversationRequest,
        key: Option<&RequestKey>,
    ) -> Result<Answer<ConversationView>, AppError> {
        let agent = match self.current_agent(caller, &request.agent_id).await {
            Err(AppError::NotFound(Sought::Agent)) => {
                let message = format!("there is no agent {}", request.agent_id);
                return Err(AppError::invalid("/agent_id", message));
            }
            other => other?,
        };
        // What is kept of the agent may be old: what is refused is refused by how it is now.
        let agent = match request.check(self, &agent.agent.settings) {
            Ok(()) => agent,
            Err(_) => {
                let fresh = self.reload_agent(caller, &request.agent_id).await?;
                request.check(self, &fresh.agent.settings).map_err(AppError::Invalid)?;
                fresh
            }
        };
        if agent.agent.archived_at.is_some() {
            return Err(AppError::AgentArchived);
        }
        let now = self.now();
        let mut conversation = Conversation {
            conversation_id: self.clock().conversation_id(),
            workspace_id: caller.workspace_id,
            agent_id: request.agent_id,
            system_prompt: request.system_prompt,
            parameters: request.parameters,
            metadata: request.metadata,
            timeout_seconds: request.timeout_seconds,
            closed_at: None,
            expires_at: None,
            active_run_id: None,
            queued_runs: 0,
            turns: 0,
            message_count: 0,
            cost: Some(crate::domain::money::Usd::ZERO),
            created_at: now,
            last_active_at: now,
        };
        conversation.touch(now);
        let key = self.new_key(caller, key, &conversation.conversation_id);
        match self.store().insert_conversation(&conversation, key.as_ref()).await? {
            Written::Done(()) => Ok(Answer::new(conversation.view(now))),
            Written::KeyTaken(row) => {
                let resource = taken(key.as_ref(), row)?;
                self.replayed_conversation(caller, &resource).await.map(Answer::replay)
            }
        }
    }

    /// The conversation that an earlier request made or changed, as it is today.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when it was deleted since.
    pub async fn replayed_conversation(
        &self,
        caller: &Caller,
        resource: &str,
    ) -> Result<ConversationView, AppError> {
        let id = resource.parse().map_err(|_| AppError::NotFound(Sought::Conversation))?;
        self.get_conversation(caller, id).await
    }

    /// A conversation as it is.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn get_conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
    ) -> Result<ConversationView, AppError> {
        self.conversation(caller, conversation_id).await.map(|found| found.view(self.now()))
    }

    pub(super) async fn conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
    ) -> Result<Conversation, AppError> {
        let found = self.store().load_conversation(caller.workspace_id, conversation_id).await?;
        found.ok_or(AppError::NotFound(Sought::Conversation))
    }

    /// Conversations, of one agent or of all, by `conversation_id`.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn list_conversations(
        &self,
        caller: &Caller,
        agent_id: Option<&AgentId>,
        page: &Page<ConversationId>,
    ) -> Result<Listed<ConversationView>, AppError> {
        let Listed { rows, has_more } =
            self.store().list_conversations(caller.workspace_id, agent_id, page).await?;
        let now = self.now();
        let rows = rows.into_iter().map(|conversation| conversation.view(now)).collect();
        Ok(Listed { rows, has_more })
    }

    /// Changes the metadata of a conversation: a key without a value goes, others are set or stay;
    /// without a patch all of it goes.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::Invalid`].
    pub async fn patch_conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        patch: Option<BTreeMap<String, Option<String>>>,
        key: Option<&RequestKey>,
    ) -> Result<Answer<ConversationView>, AppError> {
        let before = self.conversation(caller, conversation_id).await?;
        let mut problems = Problems::new();
        check_metadata(&merged(&before.metadata, patch.as_ref()), "/metadata", &mut problems);
        problems.into_result().map_err(AppError::Invalid)?;
        let decide: ConversationDecide = Arc::new(move |conversation| {
            let mut after = conversation.clone();
            after.metadata = merged(&conversation.metadata, patch.as_ref());
            change(after, Vec::new())
        });
        self.change(caller, conversation_id, decide, key).await
    }

    /// Closes a conversation: its active run finishes, those that wait are cancelled. Closing again
    /// changes nothing.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn close_conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        key: Option<&RequestKey>,
    ) -> Result<Answer<ConversationView>, AppError> {
        let now = self.now();
        let decide: ConversationDecide = Arc::new(move |conversation| {
            // Expired is final, too.
            if conversation.status(now) != ConversationStatus::Open {
                return ConversationDecision::Nothing;
            }
            let after = Conversation { closed_at: Some(now), ..conversation.clone() };
            change(after, Vec::new())
        });
        let answer = self.change(caller, conversation_id, decide, key).await?;
        self.log.cancel_overtaken_soon().await;
        // Those that waited do not any more.
        let value = self.get_conversation(caller, conversation_id).await?;
        Ok(Answer { value, ..answer })
    }

    /// Keeps a conversation open for another `timeout_seconds`.
    ///
    /// # Errors
    /// [`AppError::NotFound`], and [`AppError::Conversation`] when it is over.
    pub async fn keep_conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        key: Option<&RequestKey>,
    ) -> Result<Answer<ConversationView>, AppError> {
        let now = self.now();
        let decide: ConversationDecide = Arc::new(move |conversation| {
            if let Err(refusal) = conversation.must_be_open(now) {
                return ConversationDecision::Refuse(refusal);
            }
            let mut after = conversation.clone();
            after.touch(now);
            change(after, Vec::new())
        });
        self.change(caller, conversation_id, decide, key).await
    }

    /// Erases a conversation with its messages and runs.
    ///
    /// # Errors
    /// [`AppError::NotFound`], and [`AppError::Conversation`] while a run is under way or waits.
    pub async fn erase_conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        key: Option<&RequestKey>,
    ) -> Result<Answer<()>, AppError> {
        let at = self.now();
        let decide: ConversationDecide =
            Arc::new(move |conversation| match conversation.must_be_free() {
                Err(refusal) => ConversationDecision::Refuse(refusal),
                // In one that is closed some may wait to be cancelled for a moment.
                Ok(()) if conversation.is_busy() => ConversationDecision::Refuse(Refusal::Closed),
                Ok(()) => ConversationDecision::Erase { at },
            });
        let key = self.new_key(caller, key, &conversation_id);
        let workspace_id = caller.workspace_id;
        let write = || {
            let (key, decide) = (key.clone(), decide.clone());
            ConversationWrite { workspace_id, conversation_id, key, decide }
        };
        let mut outcome = self.log.converse(write()).await?;
        if outcome == ConversationOutcome::Refused(Refusal::Closed) {
            self.log.cancel_overtaken_soon().await;
            outcome = self.log.converse(write()).await?;
        }
        match outcome {
            ConversationOutcome::Done(_) => {
                self.log.erase_runs_of(conversation_id).await?;
                Ok(Answer::new(()))
            }
            ConversationOutcome::KeyTaken(row) => {
                taken(key.as_ref(), row).map(|_| Answer::replay(()))
            }
            ConversationOutcome::Absent => Err(AppError::NotFound(Sought::Conversation)),
            ConversationOutcome::Refused(refusal) => {
                Err(AppError::Conversation { conversation_id, refusal })
            }
        }
    }

    async fn change(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        decide: ConversationDecide,
        key: Option<&RequestKey>,
    ) -> Result<Answer<ConversationView>, AppError> {
        let key = self.new_key(caller, key, &conversation_id);
        match self.converse(caller, conversation_id, decide, key).await? {
            Conversed::Done(conversation) => Ok(Answer::new(conversation.view(self.now()))),
            Conversed::Before(resource) => {
                self.replayed_conversation(caller, &resource).await.map(Answer::replay)
            }
        }
    }

    async fn converse(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        decide: ConversationDecide,
        key: Option<NewKey>,
    ) -> Result<Conversed, AppError> {
        let workspace_id = caller.workspace_id;
        let write = ConversationWrite { workspace_id, conversation_id, key: key.clone(), decide };
        match self.log.converse(write).await? {
            ConversationOutcome::Done(conversation) => Ok(Conversed::Done(conversation)),
            ConversationOutcome::KeyTaken(row) => taken(key.as_ref(), row).map(Conversed::Before),
            ConversationOutcome::Absent => Err(AppError::NotFound(Sought::Conversation)),
            ConversationOutcome::Refused(refusal) => {
                Err(AppError::Conversation { conversation_id, refusal })
            }
        }
    }
}

/// What became of a write to a conversation.
enum Conversed {
    Done(Box<Conversation>),
    /// What an earlier request with the same key made.
    Before(String),
}

/// Metadata with a merge patch (RFC 7396) over it.
fn merged(
    before: &BTreeMap<String, String>,
    patch: Option<&BTreeMap<String, Option<String>>>,
) -> BTreeMap<String, String> {
    let Some(patch) = patch else { return BTreeMap::new() };
    let mut after = before.clone();
    for (key, value) in patch {
        match value {
            Some(value) => after.insert(key.clone(), value.clone()),
            None => after.remove(key),
        };
    }
    after
}

fn change(conversation: Conversation, messages: Vec<NewMessage>) -> ConversationDecision {
    ConversationDecision::Change { conversation: Box::new(conversation), messages }
}

impl ConversationRequest {
    fn check(
        &mut self,
        app: &App,
        agent: &crate::domain::agent::AgentSettings,
    ) -> Result<(), Problems> {
        let mut problems = Problems::new();
        let prompt = self.system_prompt.as_ref().map_or(0, |prompt| prompt.chars().count());
        problems.require(
            prompt <= conversation::MAX_SYSTEM_PROMPT_CHARS,
            "/system_prompt",
            format!("at most {} characters", conversation::MAX_SYSTEM_PROMPT_CHARS),
        );
        let has_nul = self.system_prompt.as_ref().is_some_and(|prompt| prompt.contains('\0'));
        problems.require(!has_nul, "/system_prompt", "must not contain U+0000");
        let timeouts = 1..=conversation::MAX_TIMEOUT_SECONDS;
        problems.require(
            self.timeout_seconds.is_none_or(|seconds| timeouts.contains(&seconds)),
            "/timeout_seconds",
            format!("must be 1 to {}, or null for never", conversation::MAX_TIMEOUT_SECONDS),
        );
        check_metadata(&self.metadata, "/metadata", &mut problems);
        if let Err(found) = self.parameters.check(agent, &app.catalogue) {
            problems.extend(found.under("/parameters"));
        }
        if let Some(model) = &self.parameters.model {
            problems.extend(check_model(model, "/parameters/model"));
        }
        problems.into_result()
    }
}
