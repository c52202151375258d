//! A session with an MCP server: opened for one purpose, and closed behind it.
//!
//! rmcp runs a session in tasks of its own. Nothing of theirs outlives `life`: when it is cancelled, every
//! connection is closed.

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
    ErrorCode, Implementation, JsonObject, MetaObject, PaginatedRequestParams, ProtocolVersion,
    RequestMetaObject, ServerResult,
};
use rmcp::service::{PeerRequestOptions, RequestHandle, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{RoleClient, ServiceExt};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::call::Answer;
use super::wire::{Connection, Trouble, Wire, in_short};
use crate::domain::tool::Listed;

/// How long a server may take to be told that we go: that a call is cancelled, that the session ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pages of a list that are read.
const MAX_PAGES: usize = 32;
/// Where a broken stream of events is taken up again: how often it is tried at once, and how soon.
const RESUME_TRIES: usize = 2;
const RESUME_PAUSE: Duration = Duration::from_millis(300);
/// What a call carries, so that a server may know it again on another attempt.
const IDEMPOTENCY_KEY: &str = "stepwell/idempotency-key";

/// An open session.
pub(super) struct Session {
    service: RunningService<RoleClient, ClientConfig>,
    wire: Wire,
    /// Closes every connection, however this ends.
    _end: DropGuard,
}

impl Session {
    /// Connects, and exchanges the greetings of the protocol. We offer nothing that a server could ask
    /// of its client: no sampling, no elicitation, no roots.
    ///
    /// # Errors
    /// What stood in the way.
    pub(super) async fn open(with: Connection) -> Result<Self, Trouble> {
        let life = CancellationToken::new();
        let end = life.clone().drop_guard();
        let wire = Wire::new(with, life);
        let mut patience = ExponentialBackoff::default();
        patience.base_duration = RESUME_PAUSE;
        patience.max_times = Some(RESUME_TRIES);
        let mut config = StreamableHttpClientTransportConfig::with_uri(wire.url())
            // It would send the call again behind our back.
            .reinit_on_expired_session(false)
            .control_request_timeout(FAREWELL);
        config.retry_config = Arc::new(patience);
        let transport = StreamableHttpClientTransport::with_client(wire.clone(), config);
        let stepwell = Implementation::new("stepwell", env!("CARGO_PKG_VERSION"));
        let client = ClientConfig::new(ClientCapabilities::default(), stepwell)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE);
        match client.serve(transport).await {
            Ok(service) => Ok(Self { service, wire, _end: end }),
            Err(error) => Err(wire.trouble().unwrap_or_else(|| match error {
                rmcp::service::ClientInitializeError::JsonRpcError(error) => {
                    Trouble::lasting(format!("refused the session: {}", in_short(&error.message)))
                }
                _ => Trouble::lasting("did not begin in the way of the protocol"),
            })),
        }
    }

    /// The server's tools, in its order, and whether these are all: a list has as many pages as a
    /// server likes.
    ///
    /// # Errors
    /// What stood in the way.
    pub(super) async fn tools(&self) -> Result<(Vec<Listed>, bool), Trouble> {
        let (mut tools, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let from = PaginatedRequestParams::default().with_cursor(cursor);
            let page = self.service.list_tools(Some(from)).await;
            let page = page.map_err(|error| match error {
                ServiceError::McpError(error) => Trouble::lasting(format!(
                    "refused to list its tools: {}",
                    in_short(&error.message)
                )),
                other => self.trouble(&other),
            })?;
            tools.extend(page.tools.into_iter().map(|tool| Listed {
                name: tool.name.into_owned(),
                description: tool.description.map_or_else(String::new, |text| text.into_owned()),
                parameters: tool.input_schema.as_ref().clone(),
            }));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok((tools, true));
            }
        }
        Ok((tools, false))
    }

    /// Asks for the session's one call. The request is on its way, or will be soon.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn ask(
        &self,
        tool: &str,
        arguments: JsonObject,
        key: String,
    ) -> Result<RequestHandle<RoleClient>, Answer> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let mut meta = MetaObject::new();
        meta.insert(IDEMPOTENCY_KEY.to_owned(), Value::from(key));
        let options = PeerRequestOptions::no_options().with_meta(RequestMetaObject(meta));
        let asked = self.service.send_cancellable_request(request, options).await;
        asked.map_err(|error| self.no_result(&error))
    }

    /// Waits for the answer to a call.
    pub(super) async fn answer(&self, call: &mut RequestHandle<RoleClient>) -> Answer {
        match (&mut call.rx).await.unwrap_or(Err(ServiceError::TransportClosed)) {
            Ok(ServerResult::CallToolResult(result)) => Answer::Result(result),
            Ok(_) => {
                let why = Trouble::lasting("answered with something that is no result of a tool");
                Answer::None { why: Trouble { is_answer: true, ..why }, left: true }
            }
            Err(error) => self.no_result(&error),
        }
    }

    fn no_result(&self, error: &ServiceError) -> Answer {
        match error {
            ServiceError::McpError(error) => Answer::Refused {
                words: in_short(&error.message),
                unknown_tool: is_unknown_tool(error.code, &error.message),
            },
            other => Answer::None { why: self.trouble(other), left: self.wire.call_left() },
        }
    }

    fn trouble(&self, error: &ServiceError) -> Trouble {
        self.wire.trouble().unwrap_or_else(|| match error {
            ServiceError::TransportClosed | ServiceError::TransportSend(_) => {
                Trouble::passing("broke its answer off")
            }
            _ => Trouble::lasting("did not answer in the way of the protocol"),
        })
    }

    /// Tells the server that nobody waits for this call any more, and that we go.
    pub(super) async fn cancel(self, call: RequestHandle<RoleClient>) {
        let reason = "nobody waits for the result any more".to_owned();
        let _ = timeout(FAREWELL, call.cancel(Some(reason))).await;
        self.close().await;
    }

    /// Tells the server that we go. Behind it, nothing of the session is left.
    pub(super) async fn close(mut self) {
        let _ = timeout(FAREWELL, self.service.close()).await;
    }
}

/// Whether a server says that it has no such tool. The protocol has no code of its own for that:
/// servers say "invalid params" or "method not found", and the rest in words.
fn is_unknown_tool(code: ErrorCode, message: &str) -> bool {
    let message = message.to_lowercase();
    let may_mean_it = matches!(code, ErrorCode::INVALID_PARAMS | ErrorCode::METHOD_NOT_FOUND);
    may_mean_it
        && message.contains("tool")
        && (message.contains("unknown") || message.contains("not found"))
}
