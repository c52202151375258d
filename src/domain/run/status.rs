//! Where a run is, and the moves that there are.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Waiting for a free slot.
    Queued,
    /// A model or a tool is at work.
    Running,
    /// Waiting for people or programs: see `required_actions`.
    RequiresAction,
    /// Asked to stop; it is stopping.
    Cancelling,
    /// Ended well; `result` has the answer.
    Completed,
    /// Ended at a limit, see `incomplete_reason`; `result` has what there was.
    Incomplete,
    /// Ended by a failure, see `error`.
    Failed,
    /// Ended because somebody cancelled it.
    Cancelled,
    /// Ended because `timeout_seconds` had passed.
    Expired,
}

/// What can move a run from one status to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// An engine begins or goes on.
    Started,
    /// Nothing executes and an action is open.
    Parked,
    /// The last open action was answered.
    Resumed,
    /// Somebody asked to cancel, and a driver must stop first.
    CancelRequested,
    /// It is over, with this end.
    Ended(RunStatus),
}

/// A move that the status machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run that is {from:?} cannot take {signal:?}")]
pub struct IllegalMove {
    /// Where it was.
    pub from: RunStatus,
    /// What was tried.
    pub signal: Signal,
}

impl RunStatus {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Running,
        Self::RequiresAction,
        Self::Cancelling,
        Self::Completed,
        Self::Incomplete,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The number that the database keeps. Never changed once given.
    pub const fn code(self) -> i16 {
        match self {
            Self::Queued => 1,
            Self::Running => 2,
            Self::RequiresAction => 3,
            Self::Cancelling => 4,
            Self::Completed => 10,
            Self::Incomplete => 11,
            Self::Failed => 12,
            Self::Cancelled => 13,
            Self::Expired => 14,
        }
    }

    /// The status of a number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == code)
    }

    /// The word of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::RequiresAction => "requires_action",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The status of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether it is over.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Running | Self::RequiresAction | Self::Cancelling => false,
            Self::Completed | Self::Incomplete | Self::Failed | Self::Cancelled | Self::Expired => {
                true
            }
        }
    }

    /// The status after `signal`.
    ///
    /// # Errors
    /// When the machine has no such move.
    pub const fn after(self, signal: Signal) -> Result<Self, IllegalMove> {
        use RunStatus as S;
        let illegal = Err(IllegalMove { from: self, signal });
        match (self, signal) {
            // A take-over after a crash starts again and changes no status.
            (S::Queued | S::Running, Signal::Started) => Ok(S::Running),
            (S::Cancelling, Signal::Started) => Ok(S::Cancelling),
            // Parked again: something else is asked for.
            (S::Running | S::RequiresAction, Signal::Parked) => Ok(S::RequiresAction),
            (S::RequiresAction, Signal::Resumed) => Ok(S::Queued),
            (S::Running | S::RequiresAction, Signal::CancelRequested) => Ok(S::Cancelling),
            (S::Queued, Signal::Ended(end)) => match end {
                S::Cancelled | S::Incomplete => Ok(end),
                S::Queued
                | S::Running
                | S::RequiresAction
                | S::Cancelling
                | S::Completed
                | S::Failed
                | S::Expired => illegal,
            },
            (S::Running, Signal::Ended(end)) => {
                if end.is_final() {
                    Ok(end)
                } else {
                    illegal
                }
            }
            (S::RequiresAction | S::Cancelling, Signal::Ended(end)) => match end {
                S::Cancelled => Ok(end),
                S::Queued
                | S::Running
                | S::RequiresAction
                | S::Cancelling
                | S::Completed
                | S::Incomplete
                | S::Failed
                | S::Expired => illegal,
            },
            (S::RequiresAction, Signal::Started)
            | (S::Queued, Signal::Parked | Signal::Resumed | Signal::CancelRequested)
            | (S::Running, Signal::Resumed)
            | (S::Cancelling, Signal::Parked | Signal::Resumed | Signal::CancelRequested)
            | (S::Completed | S::Incomplete | S::Failed | S::Cancelled | S::Expired, _) => illegal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_is_ended() {
        let signals = [Signal::Started, Signal::Parked, Signal::Resumed, Signal::CancelRequested];
        let ends = RunStatus::ALL.into_iter().map(Signal::Ended);
        for signal in signals.into_iter().chain(ends) {
            for from in RunStatus::ALL.into_iter().filter(|s| s.is_final()) {
                assert!(from.after(signal).is_err(), "{from:?} {signal:?}");
            }
        }
    }

    #[test]
    fn a_run_that_is_being_cancelled_ends_cancelled_and_no_other_way() {
        for end in RunStatus::ALL {
            let moved = RunStatus::Cancelling.after(Signal::Ended(end));
            assert_eq!(moved.is_ok(), end == RunStatus::Cancelled, "{end:?}");
        }
    }

    #[test]
    fn codes_and_words_read_back() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::from_code(status.code()), Some(status));
            assert_eq!(RunStatus::from_word(status.as_str()), Some(status));
        }
    }
}
