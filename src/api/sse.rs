//! A run's log as server-sent events: a cursor, and one buffer for all that is there.
//!
//! This is the hottest path of the server. The text of an event is framed once and shared by all its
//! readers; here it is only passed on, page by page. A stream owns no
//! queue: while its client takes nothing it is not polled, and reads nothing.

use std::convert::Infallible;
use std::io::Write as _;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep};
use utoipa::ToSchema;

use crate::app::Caller;
use crate::app::runs::{FollowError, Gap, Next};
use crate::domain::event::EventType;
use crate::domain::ids::RunId;

use super::disconnect::OnDisconnect;
use super::streams::OpenStream;
use super::{ApiError, ApiState, query};

/// After so much silence a comment is sent: proxies close what looks dead, and a write is how a
/// dead client is noticed.
const SILENCE: Duration = Duration::from_secs(15);

/// Between two looks at a clock that has fired, at least.
const TICK: Duration = Duration::from_millis(100);

/// Which types of events a reader wants, as bits by [`EventType::code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFilter(u64);

impl EventFilter {
    /// All of them.
    pub const ALL: Self = Self(u64::MAX);

    /// Reads a list like `run.*,message.delta`.
    ///
    /// # Errors
    /// `validation_failed` for a pattern that matches no type: it is misspelt.
    pub fn parse(patterns: &str) -> Result<Self, ApiError> {
        let mut bits = 0;
        for pattern in patterns.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let matched = EventType::ALL
                .iter()
                .filter(|event_type| matches(pattern, event_type.as_str()))
                .fold(0, |bits, event_type| bits | bit(*event_type));
            // What the server says about the stream itself passes anyway.
            let ours = ["stream.gap", "stream.end"].iter().any(|name| matches(pattern, name));
            if matched == 0 && !ours {
                let must = format!(
                    "has the pattern {pattern:?}, which matches no event type; \
                     write for example types=run.*,message.delta"
                );
                return Err(query::invalid("types", &must));
            }
            bits |= matched;
        }
        Ok(Self(bits))
    }

    /// Final events pass every filter: they are how a reader knows that it is over.
    pub fn lets(self, event_type: EventType) -> bool {
        self.0 & bit(event_type) != 0 || event_type.is_final()
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        Some(prefix) => prefix.ends_with('.') && name.starts_with(prefix),
        None => name == pattern,
    }
}

fn bit(event_type: EventType) -> u64 {
    1_u64.checked_shl(u32::try_from(event_type.code()).unwrap_or(u32::MAX)).unwrap_or(0)
}

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
    const fn as_str(self) -> &'static str {
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
            let rotate_at = Instant::now() + self.state.streams.lifetime();
            let mut last_sent = Instant::now();
            // One timer, looked at when it fires, and not moved at every event.
            let timer = tokio::time::sleep_until(last_sent + SILENCE);
            tokio::pin!(stopped, timer);
            let mut last_seq = self.after;
            yield Ok(hello(self.state.app.clock().chance()));
            let reason = loop {
                let woken = tokio::select! {
                    biased;
                    next = cursor.next() => Woken::Next(next),
                    () = &mut stopped => Woken::Stopped,
                    () = &mut timer => Woken::Timer,
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
                        last_sent = Instant::now();
                        if !chunk.is_empty() {
                            yield Ok(chunk);
                        }
                        if last_sent >= rotate_at {
                            break StreamEndReason::Rotated;
                        }
                    }
                    Woken::Next(Ok(Next::Gap(missing))) => {
                        last_sent = Instant::now();
                        yield Ok(gap(missing));
                    }
                    Woken::Next(Err(error)) => {
                        self.broke_off(&error);
                        break StreamEndReason::Unavailable;
                    }
                    Woken::Stopped => break StreamEndReason::Draining,
                    Woken::Timer => {
                        let now = Instant::now();
                        if now >= rotate_at {
                            break StreamEndReason::Rotated;
                        }
                        if now >= last_sent + SILENCE {
                            last_sent = now;
                            yield Ok(comment());
                        }
                        timer.as_mut().reset((last_sent + SILENCE).min(rotate_at));
                    }
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

/// Something to read when there is nothing to say.
pub const fn comment() -> Bytes {
    Bytes::from_static(b":\n\n")
}

/// What a stream gets for which there is no room.
pub fn no_place() -> ApiError {
    ApiError::new(
        super::ErrorCode::Overloaded,
        "There are as many open event streams as there may be.",
    )
}

/// When a stream has been silent for too long, and when it has been open for long enough. One timer,
/// looked at when it fires, and not moved at every event.
pub struct Pace {
    last_sent: Instant,
    rotate_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Pace {
    /// Of a stream that begins now and may be open for so long.
    pub fn new(lifetime: Duration) -> Self {
        let now = Instant::now();
        Self {
            last_sent: now,
            rotate_at: now + lifetime,
            timer: Box::pin(tokio::time::sleep_until(now + SILENCE)),
        }
    }

    /// Resolves when it is time to look.
    pub async fn tick(&mut self) {
        self.timer.as_mut().await;
        let next = Instant::now().max(self.last_sent + SILENCE).min(self.rotate_at);
        // Never in the past, where it would fire for ever.
        self.timer.as_mut().reset(next.max(Instant::now() + TICK));
    }

    /// Something was sent.
    pub fn sent(&mut self) {
        self.last_sent = Instant::now();
    }

    /// Whether a comment is due.
    pub fn is_silent(&self) -> bool {
        self.last_sent.elapsed() >= SILENCE
    }

    /// Whether the stream has been open for long enough.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.rotate_at
    }
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

/// The first bytes: when to come back, different for everyone, and something to read at once.
pub fn hello(chance: f64) -> Bytes {
    let retry = 1_000 + (chance * 2_000.0) as u32;
    Bytes::from(format!("retry: {retry}\n: stepwell\n\n"))
}

/// What stands for events that retention took: no id, for it is no entry of the log. Passes every
/// filter: nobody is to take what is left for all that there was.
pub fn gap(Gap { from_seq, to_seq }: Gap) -> Bytes {
    Bytes::from(format!(
        "event: stream.gap\ndata: {{\"type\":\"stream.gap\",\"from_seq\":{from_seq},\"to_seq\":{to_seq},\"reason\":\"compacted\"}}\n\n"
    ))
}

/// The last event of a stream that the server ends: no id, for it is no entry of the log.
pub fn end(out: &mut Vec<u8>, reason: StreamEndReason, last_seq: i32) {
    let reason = reason.as_str();
    let _ = write!(
        out,
        "event: stream.end\ndata: {{\"type\":\"stream.end\",\"reason\":\"{reason}\",\"last_seq\":{last_seq}}}\n\n"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_lets_through_what_it_names_and_every_final_event() {
        let filter = EventFilter::parse("run.*, message.delta").unwrap();
        for (event_type, passes) in [
            (EventType::RunQueued, true),
            (EventType::MessageDelta, true),
            (EventType::MessageCompleted, false),
            (EventType::StepStarted, false),
        ] {
            assert_eq!(filter.lets(event_type), passes, "{event_type:?}");
        }
        let filter = EventFilter::parse("message.*").unwrap();
        assert!(filter.lets(EventType::RunCompleted) && !filter.lets(EventType::RunRunning));
        assert!(EventFilter::parse("stream.end").unwrap().lets(EventType::RunFailed));
        assert!(EventFilter::parse("*").unwrap().lets(EventType::StepStarted));
        for wrong in ["runs.*", "message", "message.delt*", "*.delta", "run.*,x"] {
            assert!(EventFilter::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_type_has_a_bit_of_its_own() {
        let all: Vec<u64> = EventType::ALL.iter().map(|t| bit(*t)).collect();
        assert!(all.iter().all(|bit| *bit != 0));
        assert_eq!(all.iter().fold(0, |sum, bit| sum | bit).count_ones() as usize, all.len());
    }

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
