//! A run's log as server-sent events: a cursor, and one buffer for all that is there.
//!
//! This is the hottest path of the server. The text of an event is framed once and shared by all its
//! readers; here it is only passed on, page by page. A stream owns no
//! queue: while its client takes nothing it is not polled, and reads nothing.

mod filter;
mod pace;
mod words;

use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;

use crate::app::Caller;
use crate::app::runs::{FollowError, Gap, Next};
use crate::domain::ids::RunId;

use super::disconnect::OnDisconnect;
use super::streams::OpenStream;
use super::{ApiError, ApiState};
pub use filter::EventFilter;
pub use pace::Pace;
pub use words::{StreamEndReason, comment, end, gap, hello};

/// Where a reader was: `Last-Event-ID` beats `?after=`, and an empty one is none.
///
/// # Errors
/// `invalid_cursor` for what is no number.
pub fn cursor(last_event_id: Option<&HeaderValue>, after: Option<&str>) -> Result<i32, ApiError> {
    let header = last_event_id.map(|value| value.to_str().unwrap_or("?"));
    let given = header.filter(|text| !text.is_empty()).or(after.filter(|text| !text.is_empty()));
    let Some(text) = given else { return Ok(0) };
    // Digits alone: "+5" would parse, and was never an id of ours.
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(past_or_malformed)
}

/// What a cursor gets that this log never gave.
pub fn past_or_malformed() -> ApiError {
    ApiError::new(
        super::ErrorCode::InvalidCursor,
        "The cursor is not the id of an event that this run has had.",
    )
}

/// A stream to be opened. The caller has been seen to own the run.
pub struct EventStream {
    /// Everything else.
    pub state: ApiState,
    /// Who reads.
    pub caller: Caller,
    /// Which run.
    pub run_id: RunId,
    /// After which event.
    pub after: i32,
    /// Which types.
    pub filter: EventFilter,
    /// Its place among the streams of this node.
    pub place: OpenStream,
    /// Held until the stream has ended, when the client's going away cancels the run.
    pub on_disconnect: Option<OnDisconnect>,
}

impl EventStream {
    /// The answer whose body is the stream.
    pub fn response(self) -> Response {
        stream_of(Body::from_stream(self.chunks()))
    }

    fn chunks(mut self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
        async_stream::stream! {
            let mut cursor = self.state.app.follow(&self.caller, self.run_id, self.after);
            let stop = self.state.stop.clone();
            let stopped = stop.cancelled();
            tokio::pin!(stopped);
            let mut pace = Pace::new(self.state.streams.lifetime());
            let mut last_seq = self.after;
            yield Ok(hello(self.state.app.clock().chance()));
            let reason = loop {
                let woken = tokio::select! {
                    biased;
                    next = cursor.next() => Woken::Next(next),
                    () = &mut stopped => Woken::Stopped,
                    () = pace.tick() => Woken::Timer,
                };
                match woken {
                    Woken::Next(Ok(Next::Events(page))) => {
                        last_seq = page.last_seq();
                        let chunk = page.only(|event_type| self.filter.lets(event_type));
                        if page.ends() {
                            self.done();
                            let mut last = chunk.to_vec();
                            end(&mut last, StreamEndReason::RunEnded, last_seq);
                            yield Ok(Bytes::from(last));
                            return;
                        }
                        if !chunk.is_empty() {
                            pace.sent();
                            yield Ok(chunk);
                        }
                    }
                    Woken::Next(Ok(Next::Gap(missing))) => {
                        pace.sent();
                        yield Ok(gap(missing));
                    }
                    Woken::Next(Err(error)) => {
                        self.broke_off(&error);
                        break StreamEndReason::Unavailable;
                    }
                    Woken::Stopped => break StreamEndReason::Draining,
                    Woken::Timer => {
                        if pace.is_silent() {
                            yield Ok(comment());
                        }
                    }
                }
                if pace.is_over() {
                    break StreamEndReason::Rotated;
                }
            };
            self.done();
            let mut chunk = Vec::new();
            end(&mut chunk, reason, last_seq);
            yield Ok(Bytes::from(chunk));
        }
    }

    fn broke_off(&self, error: &FollowError) {
        let run_id = self.run_id;
        match error {
            FollowError::Hole(Gap { from_seq, to_seq }) => {
                tracing::error!(%run_id, from_seq, to_seq, "events of a log are missing");
            }
            FollowError::Gone => tracing::info!(%run_id, "a run was deleted under its reader"),
            FollowError::Store(error) => {
                let error = error as &dyn std::error::Error;
                tracing::warn!(%run_id, error, "a stream broke off");
            }
        }
    }

    /// From here on it is the server that ends the stream.
    fn done(&mut self) {
        if let Some(on_disconnect) = &mut self.on_disconnect {
            on_disconnect.done();
        }
    }
}

enum Woken {
    Next(Result<Next, FollowError>),
    Stopped,
    Timer,
}

/// What a stream gets for which there is no room.
pub fn no_place() -> ApiError {
    ApiError::new(
        super::ErrorCode::Overloaded,
        "There are as many open event streams as there may be.",
    )
}

/// Stands in the extensions of an answer whose body is a stream: long, and silent most of its time.
/// The server keeps less memory for one.
#[derive(Debug, Clone, Copy)]
pub struct IsStream;

/// A stream that cannot begin now, with a cursor to come back with. An error would tell the same, but
/// a browser's `EventSource` gives up for good on one.
pub fn come_back(chance: f64, after: i32) -> Response {
    let mut chunk = hello(chance).to_vec();
    end(&mut chunk, StreamEndReason::Unavailable, after);
    stream_of(Body::from(chunk))
}

/// The answer whose body is a stream.
pub fn stream_of(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.extensions_mut().insert(IsStream);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_beats_the_query_and_empty_is_none() {
        let at = |header: Option<&'static str>, after| {
            cursor(header.map(HeaderValue::from_static).as_ref(), after).ok()
        };
        assert_eq!(at(None, None), Some(0));
        assert_eq!(at(Some("17"), Some("3")), Some(17));
        assert_eq!(at(Some(""), Some("3")), Some(3));
        assert_eq!(at(None, Some("")), Some(0));
        for wrong in ["x", "-1", "+1", "1.5", "99999999999", " 1"] {
            assert_eq!(at(None, Some(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn the_end_says_why_and_has_no_id() {
        let mut chunk = Vec::new();
        end(&mut chunk, StreamEndReason::RunEnded, 9);
        assert_eq!(
            String::from_utf8(chunk).unwrap(),
            "event: stream.end\ndata: {\"type\":\"stream.end\",\"reason\":\"run_ended\",\"last_seq\":9}\n\n"
        );
        for reason in [StreamEndReason::Rotated, StreamEndReason::SlowReader] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
    }

    #[test]
    fn a_gap_says_what_is_missing_and_has_no_id() {
        assert_eq!(
            gap(Gap { from_seq: 4, to_seq: 9 }),
            "event: stream.gap\ndata: {\"type\":\"stream.gap\",\"from_seq\":4,\"to_seq\":9,\"reason\":\"compacted\"}\n\n"
        );
    }

    #[test]
    fn the_first_bytes_ask_to_come_back_in_one_to_three_seconds() {
        assert_eq!(hello(0.0), "retry: 1000\n: stepwell\n\n");
        assert_eq!(hello(0.9999), "retry: 2999\n: stepwell\n\n");
    }
}
