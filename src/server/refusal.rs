//! Answers to requests that no handler ever sees, in the documented shape.

use std::io::Write as _;

use crate::api::ApiError;
use crate::clock::Clock;

/// All of an answer over HTTP/1.1 that says this; the connection is closed after it.
pub(super) fn refusal(error: &ApiError) -> Vec<u8> {
    let request_id = format!("req_{}", Clock::system().uuid().simple());
    let said = error.body(&request_id);
    let retry_after = said.retry_after_seconds;
    // Our own types are always JSON; an empty body would only be less helpful.
    let body = serde_json::to_vec(&said).unwrap_or_default();
    let status = error.code().status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut answer = Vec::with_capacity(512 + body.len());
    // Nothing that is written to memory fails.
    let _ = write!(
        answer,
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        status.as_u16(),
        body.len(),
    );
    if let Some(seconds) = retry_after {
        let _ = write!(answer, "retry-after: {seconds}\r\n");
    }
    let _ = write!(answer, "x-request-id: {request_id}\r\nconnection: close\r\n\r\n");
    answer.extend_from_slice(&body);
    answer
}
