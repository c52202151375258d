//! Turns of conversations: runs in them, and what is said to them.

use serde_json::Value;

use crate::domain::answer::{Report, Said};
use crate::domain::conversation::message::{Message, NewMessage, answer_id};
use crate::domain::conversation::{Conversation, OnBusy, Refusal};
use crate::domain::fold::{CallState, Folded};
use crate::domain::ids::{CallId, ConversationId, MessageId, RunId};
use crate::domain::message::{Content, Part, Role};
use crate::domain::run::ActionType;
use crate::domain::transcript;
pub use crate::log::{ConversationCursor, Heard};
use crate::store::{FindTurn, MessageRange, NewTurn, RunRecord, TurnPlace};

use super::idempotency::{Answer, RequestKey};
use super::runs::RunRequest;
use super::{App, AppError, Caller, Sought};

/// Instructions that may stand behind the question that a turn without an input answers.
const MAX_INSTRUCTIONS: i64 = 100;

/// A turn that a run asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// The conversation, as it was when it was looked up: what never changes of it counts.
    pub conversation: Box<Conversation>,
    /// What becomes of the turn while another run is under way.
    pub on_busy: OnBusy,
}

impl Turn {
    pub(super) fn new_turn(&self) -> NewTurn {
        NewTurn { conversation_id: self.conversation.conversation_id, on_busy: self.on_busy }
    }
}

/// What a tool's message came to: the result is the run's.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolMessage {
    /// The call that it answers.
    pub call_id: CallId,
    /// What the tool said.
    pub content: Content,
}

impl App {
    /// The conversation of a turn, by its id in a path.
    ///
    /// # Errors
    /// [`AppError::NotFound`].
    pub async fn turn_in(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        on_busy: OnBusy,
    ) -> Result<Turn, AppError> {
        let conversation = Box::new(self.conversation(caller, conversation_id).await?);
        Ok(Turn { conversation, on_busy })
    }

    /// A run in a conversation, of the conversation's agent.
    ///
    /// # Errors
    /// As [`App::create_run`], and [`AppError::Conversation`].
    pub async fn create_turn(
        &self,
        caller: &Caller,
        request: RunRequest,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        let turn = request.turn.as_ref().ok_or(AppError::NotFound(Sought::Conversation))?;
        let agent = self.current_agent(caller, &turn.conversation.agent_id).await?;
        if request.input.is_none() {
            self.must_wait_for_an_answer(caller, &turn.conversation).await?;
        }
        self.create_run(caller, agent, request, key).await
    }

    /// A turn without an input answers what was said before: then something must have been said that
    /// is not the model's own.
    async fn must_wait_for_an_answer(
        &self,
        caller: &Caller,
        conversation: &Conversation,
    ) -> Result<(), AppError> {
        let conversation_id = conversation.conversation_id;
        let now = self.now();
        let refuse = |refusal| Err(AppError::Conversation { conversation_id, refusal });
        // Why it takes nothing at all says more.
        if let Err(refusal) = conversation.must_be_open(now) {
            return refuse(refusal);
        }
        let (above, below) = (-1, i32::MAX);
        let range = MessageRange { above, below, limit: MAX_INSTRUCTIONS, descending: true };
        let last = self.store().read_messages(caller.workspace_id, conversation_id, range).await?;
        // Instructions behind a question do not answer it.
        let said = last.iter().map(|message| message.role).find(|role| *role != Role::System);
        match said {
            Some(Role::User | Role::Tool) => Ok(()),
            // While another run is under way the last word is not said.
            _ if conversation.is_busy() => Ok(()),
            Some(Role::Assistant | Role::System) | None => refuse(Refusal::NothingToAnswer),
        }
    }

    /// Hands in what a tool answered to the run of the conversation that waits for it.
    ///
    /// # Errors
    /// [`AppError::NotFound`] for a call that no active run of it has, and as
    /// [`App::post_tool_result`].
    pub async fn post_tool_result_to(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        report: Report,
        key: Option<&RequestKey>,
    ) -> Result<Answer<RunRecord>, AppError> {
        let conversation = self.conversation(caller, conversation_id).await?;
        // A call of a step that is over has its answer among the messages, which knows its run.
        let answer = answer_id(report.call_id);
        let answered = self.message(caller, conversation_id, answer).await?;
        let run_id = match answered.and_then(|message| message.run_id) {
            Some(run_id) => Some(run_id),
            None if conversation.active_run_id.is_some() => conversation.active_run_id,
            None => self.last_run_of(caller, conversation_id).await?,
        };
        let run_id = run_id.ok_or(AppError::NotFound(Sought::Call))?;
        self.post_tool_result(caller, run_id, report, key).await
    }

    async fn last_run_of(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
    ) -> Result<Option<RunId>, AppError> {
        let last = self.find_turn(caller, conversation_id, FindTurn::Last).await?;
        Ok(last.map(|turn| turn.run_id))
    }

    async fn find_turn(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        find: FindTurn,
    ) -> Result<Option<TurnPlace>, AppError> {
        Ok(self.store().find_turn(caller.workspace_id, conversation_id, find).await?)
    }

    /// A message of a tool: the result of a call that the active run waits for. It enters the
    /// conversation with the run's step.
    ///
    /// # Errors
    /// [`AppError::Invalid`] when no run waits for that call, and as [`App::post_tool_result`].
    pub async fn post_tool_message(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        message: ToolMessage,
        key: Option<&RequestKey>,
    ) -> Result<Answer<Message>, AppError> {
        let (waits, said) = self.answering(caller, conversation_id, &message).await?;
        let Some(run_id) = said.run_id.filter(|_| waits) else { return Err(no_such_call()) };
        let report = Report {
            call_id: message.call_id,
            said: Said::Result(result(&message.content)),
            said_by: None,
        };
        let answer = self.post_tool_result(caller, run_id, report, key).await?;
        Ok(Answer { value: said, replayed: answer.replayed })
    }

    /// The same message again, after it was taken: as it stands in the conversation, or will.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when the conversation was deleted since.
    pub async fn tool_message(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        message: ToolMessage,
    ) -> Result<Message, AppError> {
        let id = answer_id(message.call_id);
        match self.message(caller, conversation_id, id).await? {
            Some(message) => Ok(message),
            None => self.answering(caller, conversation_id, &message).await.map(|(_, said)| said),
        }
    }

    /// A tool's message in the place that it gets when the active run's step ends, and whether that run
    /// waits for it.
    async fn answering(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        message: &ToolMessage,
    ) -> Result<(bool, Message), AppError> {
        let conversation = self.conversation(caller, conversation_id).await?;
        let run_id = conversation.active_run_id.ok_or_else(no_such_call)?;
        let facts = self.store().read_facts(caller.workspace_id, run_id, 0).await?;
        let folded = Folded::read(&facts)?;
        let turn = folded.open_step().ok_or_else(no_such_call)?;
        let place = turn.calls.iter().position(|call| call.call_id == message.call_id);
        let place = place.ok_or_else(no_such_call)?;
        let call = turn.calls.get(place).ok_or_else(no_such_call)?;
        // In front of it come what was said to the step's model, and that model's own message.
        let read = folded.steering.iter().filter(|s| s.applied_in == Some(turn.step)).count();
        let offset = i32::try_from(read + 1 + place).unwrap_or(0);
        let said = NewMessage {
            call_id: Some(message.call_id),
            tool: Some(call.tool.clone()),
            run_id: Some(run_id),
            ..NewMessage::new(
                answer_id(message.call_id),
                Role::Tool,
                Content::Text(transcript::text_of(&result(&message.content))),
                self.now(),
            )
        };
        let waits = matches!(call.state, CallState::Waiting(ActionType::ToolResult, _));
        Ok((waits, said.at(conversation.message_count.saturating_add(offset))))
    }

    /// The message that answers a turn that has ended; `None` when its model has said nothing.
    ///
    /// # Errors
    /// [`AppError::NotFound`] when it was deleted since.
    pub async fn answer_of(
        &self,
        caller: &Caller,
        run_id: RunId,
    ) -> Result<Option<MessageId>, AppError> {
        let facts = self.store().read_facts(caller.workspace_id, run_id, 0).await?;
        if facts.is_empty() {
            return Err(AppError::NotFound(Sought::Run));
        }
        let folded = Folded::read(&facts)?;
        let mut messages = folded.steps.iter().rev().filter_map(|turn| turn.message.as_ref());
        Ok(messages.find(|said| !said.content.is_empty()).map(|said| said.message_id))
    }

    /// A cursor over a conversation's runs, one after another: behind event `after` of that run, or
    /// (without one) from the start of the active run, or from the next.
    ///
    /// # Errors
    /// [`AppError::NotFound`], and [`AppError::UnknownCursor`] for a run that it does not have, or an
    /// event that the run does not have.
    pub async fn follow_conversation(
        &self,
        caller: &Caller,
        conversation_id: ConversationId,
        after: Option<(RunId, i32)>,
    ) -> Result<ConversationCursor, AppError> {
        let conversation = self.conversation(caller, conversation_id).await?;
        let workspace_id = caller.workspace_id;
        let after = match (after, conversation.active_run_id) {
            (Some((run_id, seq)), _) => {
                let turn = self.find_turn(caller, conversation_id, FindTurn::Of(run_id)).await?;
                let turn = turn.ok_or(AppError::UnknownCursor)?;
                // Behind a final event there is nothing to wait for, nor in a run that was erased since.
                let is_read = match self.log.load_run(workspace_id, run_id).await? {
                    Some(record) if seq > record.last_seq => return Err(AppError::UnknownCursor),
                    Some(record) => record.row.status.is_final() && seq == record.last_seq,
                    None => true,
                };
                Some((turn, if is_read { i32::MAX } else { seq }))
            }
            (None, Some(active)) => {
                let turn = self.find_turn(caller, conversation_id, FindTurn::Of(active)).await?;
                turn.map(|turn| (turn, 0))
            }
            (None, None) => {
                let last = self.find_turn(caller, conversation_id, FindTurn::Last).await?;
                last.map(|turn| (turn, i32::MAX))
            }
        };
        Ok(self.log.follow_conversation(workspace_id, conversation_id, after))
    }
}

fn no_such_call() -> AppError {
    AppError::invalid("/call_id", "no run of this conversation waits for the result of this call")
}

/// A tool's words as the result of its call.
fn result(content: &Content) -> Value {
    match content {
        Content::Parts(parts) => match parts.as_slice() {
            [Part::Data { data }] => Value::Object(data.clone()),
            _ => Value::String(content.text().into_owned()),
        },
        Content::Text(text) => Value::String(text.clone()),
    }
}
