//! Bodies of answers, as far as the exchange that they belong to may go.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use rmcp::model::{ErrorData, RequestId, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::SseError;
use sse_stream::{Sse, SseStream};

use super::exchange::Exchange;
use super::trouble::Trouble;

/// The shortest and the longest time that a server may make us wait before we take its answer up again,
/// in milliseconds.
const RESUME_AFTER: (u64, u64) = (100, 5_000);

/// For rmcp, which only passes it on: [`Exchange::trouble`] is what we go by.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WireError(pub String);

/// What comes in, as long as the exchange lives and has bytes left.
pub(super) fn bounded<E: std::error::Error>(
    exchange: Arc<Exchange>,
    body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, WireError>> + Send + 'static {
    let end = exchange.life().clone().cancelled_owned();
    let take = move |chunk: Result<Bytes, E>| {
        let trouble = match chunk {
            Ok(bytes) if exchange.takes(bytes.len()) => return Ok(bytes),
            Ok(_) => Trouble::lasting("sent too much"),
            Err(_) => Trouble::passing("broke its answer off"),
        };
        let error = WireError(trouble.what.clone());
        exchange.note(trouble);
        Err(error)
    };
    body.map(take).take_until(end)
}

/// The events of the stream of this number, with it in their ids. How long a server wants us to wait
/// before we take it up again is kept within reason.
pub(super) fn events(
    number: u64,
    body: impl Stream<Item = Result<Bytes, WireError>> + Send + 'static,
) -> BoxStream<'static, Result<Sse, SseError>> {
    let ours = move |event: Result<Sse, SseError>| {
        event.map(|mut event| {
            event.id = event.id.map(|id| format!("{number}:{id}"));
            event.retry = event.retry.map(|wait| wait.clamp(RESUME_AFTER.0, RESUME_AFTER.1));
            event
        })
    };
    SseStream::from_bytes_stream(body).map(ours).boxed()
}

/// The whole body, or its first `most` bytes.
pub(super) async fn read(
    body: impl Stream<Item = Result<Bytes, WireError>>,
    most: usize,
) -> Result<Vec<u8>, WireError> {
    let mut body = std::pin::pin!(body);
    let mut whole = Vec::new();
    while let Some(bytes) = body.next().await {
        whole.extend_from_slice(&bytes?);
        if whole.len() >= most {
            whole.truncate(most);
            break;
        }
    }
    Ok(whole)
}

/// The answer to the request `id` in a body; `None` if it is none.
pub(super) fn answer_to(id: &RequestId, body: &[u8]) -> Option<ServerJsonRpcMessage> {
    let mut message: ServerJsonRpcMessage = serde_json::from_slice(body).ok()?;
    let theirs = match &mut message {
        ServerJsonRpcMessage::Response(response) => &response.id,
        // A server that could not read the request cannot say which it was.
        ServerJsonRpcMessage::Error(error) => error.id.get_or_insert_with(|| id.clone()),
        ServerJsonRpcMessage::Request(_) | ServerJsonRpcMessage::Notification(_) => return None,
    };
    // Some servers give a number back as a string.
    (theirs.to_string() == id.to_string()).then_some(message)
}

/// The error of the protocol in an answer that is no success, if there is one.
pub(super) fn error(body: &[u8]) -> Option<ErrorData> {
    match serde_json::from_slice(body) {
        Ok(ServerJsonRpcMessage::Error(error)) => Some(error.error),
        Ok(_) | Err(_) => None,
    }
}
