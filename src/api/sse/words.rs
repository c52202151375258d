//! What the server itself says in a stream, beside the log: no id, for none of it is an entry there.

use std::io::Write as _;

use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::runs::Gap;

/// The first bytes: when to come back, different for everyone, and something to read at once.
pub fn hello(chance: f64) -> Bytes {
    let retry = 1_000 + (chance * 2_000.0) as u32;
    Bytes::from(format!("retry: {retry}\n: stepwell\n\n"))
}

/// Something to read when there is nothing to say.
pub const fn comment() -> Bytes {
    Bytes::from_static(b":\n\n")
}

/// What stands for events that retention took. Passes every filter: nobody is to take what is left for
/// all that there was.
pub fn gap(Gap { from_seq, to_seq }: Gap) -> Bytes {
    Bytes::from(format!(
        "event: stream.gap\ndata: {{\"type\":\"stream.gap\",\"from_seq\":{from_seq},\"to_seq\":{to_seq},\"reason\":\"compacted\"}}\n\n"
    ))
}

/// The last event of a stream that the server ends.
pub fn end(out: &mut Vec<u8>, reason: StreamEndReason, last_seq: i32) {
    let reason = reason.as_str();
    let _ = write!(
        out,
        "event: stream.end\ndata: {{\"type\":\"stream.end\",\"reason\":\"{reason}\",\"last_seq\":{last_seq}}}\n\n"
    );
}

/// Why the server ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StreamEndReason {
    /// The run is over, and everything was sent.
    RunEnded,
    /// The conversation is over.
    ConversationClosed,
    /// The stream was open for long enough: come back with your cursor.
    Rotated,
    /// Nothing was read for 30 s: come back with your cursor.
    SlowReader,
    /// The server is stopping: come back with your cursor.
    Draining,
    /// The database does not answer: come back with your cursor.
    Unavailable,
    /// The key is not valid any more.
    Unauthorized,
}

impl StreamEndReason {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::RunEnded => "run_ended",
            Self::ConversationClosed => "conversation_closed",
            Self::Rotated => "rotated",
            Self::SlowReader => "slow_reader",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
        }
    }
}
