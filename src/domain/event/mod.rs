//! Events: the entries of a run's log, and the exact text that readers get.
//!
//! A stored event is one line of JSON: `type`, `seq`, `run_id`, `created_at`, then the fields of its
//! type. It is serialised once, written once and sent as it is, to everyone. Its JSON only ever
//! grows: `tests/it/corpus` keeps old ones, which must stay readable.
//!
//! *Facts* are what the fold needs; *deltas* are only for the eye, and may go by retention.

mod body;
mod entry;

use utoipa::ToSchema;

pub use body::{
    Approval, ApprovalDecision, Awaits, Delta, MessageCompleted, RunEnded, RunQueued,
    RunRequiresAction, StatusChanged, SteeringInput, StepEnded, StepRestarted, StepStarted,
    ToolCallCompleted, ToolCallCreated, ToolCallFailed, ToolCallOutcomeUnknown, ToolCallStarted,
};
pub use entry::{Entry, Envelope};

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident($body:ident) = $code:literal, $name:literal, $class:ident;)*) => {
        /// What kind of event. The numbers are what the database keeps; never changed once given.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventType { $($(#[$doc])* $variant,)* }

        impl EventType {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number that the database keeps.
            pub const fn code(self) -> i16 { match self { $(Self::$variant => $code,)* } }

            /// The word of the API.
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $name,)* } }

            /// Whether it is only for the eye: never needed to fold.
            pub const fn is_delta(self) -> bool {
                match self { $(Self::$variant => events!(@delta $class),)* }
            }

            /// Whether nothing can follow it.
            pub const fn is_final(self) -> bool {
                match self { $(Self::$variant => events!(@final $class),)* }
            }

            /// Whether nothing follows it by itself: the run has ended, or waits for somebody.
            pub const fn is_rest(self) -> bool {
                self.is_final() || matches!(self, Self::RunRequiresAction)
            }
        }

        /// An event without its envelope.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Event { $($(#[$doc])* $variant($body),)* }

        impl Event {
            /// What kind it is.
            pub const fn event_type(&self) -> EventType {
                match self { $(Self::$variant(_) => EventType::$variant,)* }
            }

            /// How the run ended, if this is its end.
            pub fn into_end(self) -> Option<RunEnded> {
                match self { $(Self::$variant(body) => events!(@end $class body),)* }
            }

            /// Its own fields as a JSON object.
            fn body(&self) -> serde_json::Result<String> {
                match self { $(Self::$variant(body) => serde_json::to_string(body),)* }
            }

            /// Reads a stored event of a known kind.
            ///
            /// # Errors
            /// When the text is not an event of that kind.
            pub fn read(event_type: EventType, data: &[u8]) -> serde_json::Result<Self> {
                match event_type {
                    $(EventType::$variant => serde_json::from_slice(data).map(Self::$variant),)*
                }
            }
        }

        /// Each event's name in the spec, its `type`, and the schema of its own fields.
        pub fn schemas() -> Vec<(&'static str, &'static str, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
            use utoipa::PartialSchema as _;
            vec![$((stringify!($variant), $name, $body::schema()),)*]
        }

        /// Every schema that the events' fields refer to.
        pub fn referred_schemas() -> Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
            let mut all = Vec::new();
            $(<$body as ToSchema>::schemas(&mut all);)*
            all
        }
    };
    (@delta delta) => { true };
    (@delta $other:ident) => { false };
    (@final last) => { true };
    (@final $other:ident) => { false };
    (@end last $body:ident) => { Some($body) };
    (@end $other:ident $body:ident) => {{ let _ = $body; None }};
}

events! {
    /// The run exists.
    RunQueued(RunQueued) = 1, "run.queued", fact;
    /// An engine has begun, or goes on after a pause.
    RunRunning(StatusChanged) = 2, "run.running", fact;
    /// A cancel was asked for; a driver is stopping.
    RunCancelling(StatusChanged) = 3, "run.cancelling", fact;
    /// Nothing executes; somebody must answer.
    RunRequiresAction(RunRequiresAction) = 4, "run.requires_action", fact;
    /// The last open action was answered.
    RunResumed(StatusChanged) = 5, "run.resumed", fact;
    /// The run ended well.
    RunCompleted(RunEnded) = 10, "run.completed", last;
    /// The run ended at a limit.
    RunIncomplete(RunEnded) = 11, "run.incomplete", last;
    /// The run failed.
    RunFailed(RunEnded) = 12, "run.failed", last;
    /// The run was cancelled.
    RunCancelled(RunEnded) = 13, "run.cancelled", last;
    /// The run took longer than it may.
    RunExpired(RunEnded) = 14, "run.expired", last;
    /// A step began.
    StepStarted(StepStarted) = 20, "step.started", fact;
    /// A step's model is called again.
    StepRestarted(StepRestarted) = 21, "step.restarted", fact;
    /// A step is over.
    StepCompleted(StepEnded) = 22, "step.completed", fact;
    /// A step is over without what it was for.
    StepFailed(StepEnded) = 23, "step.failed", fact;
    /// A piece of the model's text.
    MessageDelta(Delta) = 30, "message.delta", delta;
    /// A piece of the model's reasoning.
    ReasoningDelta(Delta) = 31, "reasoning.delta", delta;
    /// A whole message of the model.
    MessageCompleted(MessageCompleted) = 32, "message.completed", fact;
    /// The model asked for a tool call.
    ToolCallCreated(ToolCallCreated) = 40, "tool_call.created", fact;
    /// The call is being made.
    ToolCallStarted(ToolCallStarted) = 41, "tool_call.started", fact;
    /// The call was answered.
    ToolCallCompleted(ToolCallCompleted) = 42, "tool_call.completed", fact;
    /// The call failed.
    ToolCallFailed(ToolCallFailed) = 43, "tool_call.failed", fact;
    /// The call was made and no answer came back.
    ToolCallOutcomeUnknown(ToolCallOutcomeUnknown) = 44, "tool_call.outcome_unknown", fact;
    /// A call waits for somebody's leave.
    ApprovalRequested(Approval) = 50, "approval.requested", fact;
    /// Somebody decided about a call.
    ApprovalDecided(Approval) = 51, "approval.decided", fact;
    /// Nobody decided in time.
    ApprovalExpired(Approval) = 52, "approval.expired", fact;
    /// Somebody steered the run.
    InputReceived(SteeringInput) = 60, "input.received", fact;
    /// The model reads it from this step on.
    InputApplied(SteeringInput) = 61, "input.applied", fact;
}

impl EventType {
    /// The kind of a number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.code() == code)
    }

    /// The kind of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|t| t.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_words_are_unique_and_read_back() {
        for event_type in EventType::ALL {
            assert_eq!(EventType::from_code(event_type.code()), Some(*event_type));
            assert_eq!(EventType::from_word(event_type.as_str()), Some(*event_type));
        }
    }
}
