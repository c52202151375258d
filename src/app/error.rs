//! Why a use case was refused or failed. Each variant is one line of the API's error table.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::domain::conversation::{MAX_MESSAGES, MAX_WAITING, Refusal};
use crate::domain::fold::FoldError;
use crate::domain::ids::{AgentId, CallId, ConversationId, RunId};
use crate::domain::problem::Problems;
use crate::domain::run::RunStatus;
use crate::store::StoreError;

/// What a caller names by an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought {
    /// An agent.
    Agent,
    /// A tool call of a run.
    Call,
    /// A conversation.
    Conversation,
    /// A run.
    Run,
}

impl fmt::Display for Sought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Call => "call",
            Self::Conversation => "conversation",
            Self::Run => "run",
        })
    }
}

/// Why a use case was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// There is no such thing in the caller's workspace. Says nothing about which id was asked for,
    /// so that another workspace's is answered like one that nobody has.
    #[error("There is no such {0}.")]
    NotFound(Sought),
    /// The id is taken.
    #[error("An agent with the id {0} exists already.")]
    AlreadyExists(AgentId),
    /// `stepwell.yaml` owns the agent.
    #[error("The agent is managed by the server's configuration file.")]
    ReadOnly,
    /// The agent takes no new runs and no changes.
    #[error("The agent is archived.")]
    AgentArchived,
    /// The agent was changed by somebody else.
    #[error("The agent is at version {current}.")]
    VersionConflict {
        /// Its current version.
        current: i32,
    },
    /// The run has not ended.
    #[error("The run {run_id} has not ended yet.")]
    RunActive {
        /// Which.
        run_id: RunId,
        /// Where it is.
        status: RunStatus,
    },
    /// The run is over, or about to be.
    #[error("The run {run_id} is {}.", status.as_str())]
    RunEnded {
        /// Which.
        run_id: RunId,
        /// Where it is.
        status: RunStatus,
    },
    /// Its conversation does not take it.
    #[error("{}", refused(*.conversation_id, *.refusal))]
    Conversation {
        /// Which.
        conversation_id: ConversationId,
        /// Why.
        refusal: Refusal,
    },
    /// The call has another answer already.
    #[error("The call {0} has another answer already, or it was answered too late.")]
    AlreadyDecided(CallId),
    /// Values that are not allowed.
    #[error("{0}")]
    Invalid(Problems),
    /// Places that a tool must not call.
    #[error("{0}")]
    DestinationNotAllowed(Problems),
    /// A field that is not known.
    #[error("The field {field:?} at {pointer} is not known.")]
    UnknownField {
        /// Where, as a JSON pointer.
        pointer: String,
        /// Its name.
        field: String,
    },
    /// A query parameter that is not known.
    #[error("The query parameter {0:?} is not known.")]
    UnknownParameter(String),
    /// A cursor that names nothing in the list.
    #[error("The cursor is not an id that this list has had.")]
    UnknownCursor,
    /// The idempotency key was used for another request.
    #[error("This idempotency key was used for a different request.")]
    KeyReused,
    /// Others changed the same thing again and again.
    #[error("The agent is being changed by others at this moment.")]
    Contended,
    /// The database.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A stored log that cannot be read: a defect.
    #[error("a stored log cannot be read")]
    Fold(#[from] FoldError),
    /// A stored or new event that cannot be read or written: a defect.
    #[error("an event cannot be read or written")]
    Event(#[from] serde_json::Error),
}

impl AppError {
    /// Whether the same may be asked for again, without anybody doing anything.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Store(store) if store.is_passing())
    }

    /// One thing that is wrong, at a place in the request.
    pub fn invalid(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(Problems::one(pointer, message))
    }

    /// What a program may want to know beside the kind of error.
    pub fn details(&self) -> Map<String, Value> {
        let details = match self {
            Self::Invalid(problems) | Self::DestinationNotAllowed(problems) => {
                json!({ "errors": problems.clone().into_vec() })
            }
            Self::UnknownField { pointer, field } => json!({ "pointer": pointer, "field": field }),
            Self::UnknownParameter(name) => json!({ "pointer": format!("/{name}"), "field": name }),
            Self::VersionConflict { current } => json!({ "current_version": current }),
            Self::AlreadyDecided(call_id) => json!({ "call_id": call_id }),
            Self::RunActive { run_id, status } | Self::RunEnded { run_id, status } => {
                json!({ "run_id": run_id, "status": status })
            }
            Self::AlreadyExists(agent_id) => json!({ "agent_id": agent_id }),
            Self::Conversation { conversation_id, refusal } => match refusal {
                Refusal::Busy { active_run_id } => json!({
                    "conversation_id": conversation_id, "active_run_id": active_run_id,
                }),
                Refusal::Full { active_run_id } => json!({
                    "conversation_id": conversation_id, "active_run_id": active_run_id,
                    "max_queued_runs": MAX_WAITING,
                }),
                Refusal::Spent { cap } => json!({
                    "conversation_id": conversation_id, "max_cost_usd": cap,
                }),
                Refusal::TooLong | Refusal::NothingToAnswer => {
                    let problems = Problems::one("", refused(*conversation_id, *refusal));
                    json!({ "conversation_id": conversation_id, "errors": problems.into_vec() })
                }
                Refusal::Closed | Refusal::Expired => {
                    json!({ "conversation_id": conversation_id })
                }
            },
            Self::NotFound(_)
            | Self::UnknownCursor
            | Self::ReadOnly
            | Self::AgentArchived
            | Self::KeyReused
            | Self::Contended
            | Self::Store(_)
            | Self::Fold(_)
            | Self::Event(_) => Value::Null,
        };
        match details {
            Value::Object(details) => details,
            _ => Map::new(),
        }
    }

    /// What to do next, where it differs from what the kind of error always asks for.
    pub fn suggested_action(&self) -> Option<String> {
        match self {
            Self::NotFound(Sought::Agent) => {
                Some("List the agents with GET /v1/agents and use one of their ids.".to_owned())
            }
            Self::NotFound(Sought::Run) => Some(
                "Check the run_id, or list the runs with GET /v1/runs; it may have been deleted."
                    .to_owned(),
            ),
            Self::NotFound(Sought::Conversation) => Some(
                "Check the conversation_id, or list the conversations with GET /v1/conversations; it may \
                 have been deleted."
                    .to_owned(),
            ),
            Self::Conversation { refusal: Refusal::Full { active_run_id }, .. } => Some(format!(
                "Wait until runs of this conversation have ended (GET /v1/runs/{active_run_id} is the \
                 first), or send on_busy=\"interrupt\"."
            )),
            Self::Conversation { refusal: Refusal::NothingToAnswer, .. } => {
                Some("Send input, or post a message of the user first.".to_owned())
            }
            Self::Conversation { refusal: Refusal::TooLong, .. } => {
                Some("Go on in a new conversation.".to_owned())
            }
            Self::NotFound(Sought::Call) => {
                Some("Use a call_id of the run's required_actions: GET the run to see them.".to_owned())
            }
            Self::RunEnded { status: RunStatus::Cancelling, .. } => {
                Some("Wait until the run has ended, then start or fork a new one.".to_owned())
            }
            Self::UnknownParameter(_) => {
                Some("Remove the query parameter, or correct its name.".to_owned())
            }
            Self::VersionConflict { current } => Some(format!(
                "Read the agent again, apply your change to version {current}, and send If-Match: \"{current}\"."
            )),
            _ => None,
        }
    }
}

fn refused(conversation_id: ConversationId, refusal: Refusal) -> String {
    match refusal {
        Refusal::Busy { active_run_id } => {
            format!("Run {active_run_id} is still active in this conversation.")
        }
        Refusal::Full { active_run_id } => format!(
            "Run {active_run_id} is still active in this conversation, and {MAX_WAITING} others wait \
             already."
        ),
        Refusal::Closed => format!("The conversation {conversation_id} is closed."),
        Refusal::Expired => format!("The conversation {conversation_id} has expired."),
        Refusal::Spent { .. } => {
            "The runs of this conversation have cost what they may cost together.".to_owned()
        }
        Refusal::TooLong => {
            format!("The conversation would have more than {MAX_MESSAGES} messages.")
        }
        Refusal::NothingToAnswer => {
            "The conversation has no message that waits for an answer.".to_owned()
        }
    }
}
