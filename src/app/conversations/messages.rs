//! Messages of conversations that no run says: post, read, list.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::agent::check_metadata;
use crate::domain::conversation::message::{Message, NewMessage};
use crate::domain::ids::{ConversationId, MessageId};
use crate::domain::message::{Content, Role};
use crate::domain::page::{From, Listed, Order, Page};
use crate::domain::problem::Problems;
use crate::store::{ConversationDecide, ConversationDecision, MessageRange};

use super::{Conversed, change};
use crate::app::idempotency::{Answer, RequestKey};
use crate::app::{App, AppError, Caller, Sought};

/// A message to be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct MessageRequest {
    /// Who says it: anybody but a tool.
    pub role: Role,
    /// What is said.
    pub content: Content,
    /// The client's notes.
    pub metadata: BTreeMap<String, String>,
}

impl App {
    /// Stores a message without starting anything.
    ///
    /// # Errors
    /// [`AppError::NotFound`], [`AppError::Invalid`], and [`AppError::Conversation`] when it is over or a
    /// run is under way.
    pub async fn post_message(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        request: MessageRequest,
        key: Option<&RequestKey>,
    ) -> Result<Answer<Message>, AppError> {
        let mut problems = Problems::new();
        request.content.check("/content", &mut problems);
        check_metadata(&request.metadata, "/metadata", &mut problems);
        problems.into_result().map_err(AppError::Invalid)?;
        let now = self.now();
        let message_id = MessageId::from_uuid(self.clock().uuid());
        let message = NewMessage {
            metadata: request.metadata,
            ..NewMessage::new(message_id, request.role, request.content, now)
        };
        let said = message.clone();
        let decide: ConversationDecide = Arc::new(move |conversation| {
            let fits = conversation
                .must_be_open(now)
                .and_then(|()| conversation.must_be_free())
                .and_then(|()| conversation.must_have_room(1));
            if let Err(refusal) = fits {
                return ConversationDecision::Refuse(refusal);
            }
            let mut after = conversation.clone();
            after.touch(now);
            after.take_indexes(1);
            change(after, vec![said.clone()])
        });
        let key = self.new_key(caller, key, &message_id);
        match self.converse(caller, conversation_id, decide, key).await? {
            Conversed::Done(conversation) => {
                Ok(Answer::new(message.at(conversation.message_count.saturating_sub(1))))
            }
            Conversed::Before(resource) => self
                .replayed_message_of(caller, conversation_id, &resource)
                .await
                .map(Answer::replay),
        }
    }

    /// The message that an earlier request stored.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when its conversation was deleted since.
    pub async fn replayed_message_of(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        resource: &str,
    ) -> Result<Message, AppError> {
        let gone = || AppError::NotFound(Sought::Conversation);
        let message_id: MessageId = resource.parse().map_err(|_| gone())?;
        self.message(caller, conversation_id, message_id).await?.ok_or_else(gone)
    }

    /// A message of a conversation.
    ///
    /// # Errors
    /// Only the store's.
    pub async fn message(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<Option<Message>, AppError> {
        let place = self.store().message_index(caller.workspace_id, conversation_id, message_id);
        let Some(index) = place.await? else { return Ok(None) };
        let range = MessageRange {
            above: index.saturating_sub(1),
            below: index.saturating_add(1),
            limit: 1,
            descending: false,
        };
        let found = self.store().read_messages(caller.workspace_id, conversation_id, range).await?;
        Ok(found.into_iter().next())
    }

    /// A page of a conversation's messages.
    ///
    /// # Errors
    /// [`AppError::NotFound`], and [`AppError::UnknownCursor`] for a message that it does not have.
    pub async fn list_messages(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        page: &Page<MessageId>,
    ) -> Result<Listed<Message>, AppError> {
        self.conversation(caller, conversation_id).await?;
        let from = match page.from {
            From::Start => From::Start,
            From::After(id) => From::After(self.index_of(caller, conversation_id, id).await?),
            From::Before(id) => From::Before(self.index_of(caller, conversation_id, id).await?),
        };
        let page = Page { limit: page.limit, from, order: page.order };
        let scan = page.scan();
        let range = MessageRange {
            above: scan.above.unwrap_or(-1),
            below: scan.below.unwrap_or(i32::MAX),
            limit: scan.limit,
            descending: scan.order == Order::Desc,
        };
        let messages =
            self.store().read_messages(caller.workspace_id, conversation_id, range).await?;
        Ok(page.finish(messages))
    }

    async fn index_of(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        message_id: MessageId,
    ) -> Result<i32, AppError> {
        let place = self.store().message_index(caller.workspace_id, conversation_id, message_id);
        place.await?.ok_or(AppError::UnknownCursor)
    }
}
