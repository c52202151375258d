//! A session with an MCP server, which calls may share. It is closed when nobody has it any more.
//!
//! rmcp runs a session in tasks of its own. Nothing of theirs outlives `life`: when it is cancelled, every
//! connection is closed.

use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
    ErrorCode, Implementation, JsonObject, MetaObject, PaginatedRequestParams, ProtocolVersion,
    RequestMetaObject, ServerResult, Tool,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt, Peer, PeerRequestOptions,
    RequestHandle, RunningService, ServiceError,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::ExponentialBackoff;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::call::Answer;
use super::exchange::Exchange;
use super::trouble::{Trouble, in_short};
use super::usage::{InUse, Usage};
use super::wire::{Connection, Wire};
use crate::domain::limits;
use crate::domain::tool::Listed;
use crate::egress::Departure;
use crate::shutdown::Tasks;

/// How long a server may take to be told that we go: that a call is cancelled, that the session ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Pages of a list that are read: enough for some thousand tools, of which an agent chooses a few.
const MAX_PAGES: usize = 100;
/// Where a broken stream of events is taken up again: how often it is tried at once, and how soon.
const RESUME_TRIES: usize = 2;
const RESUME_PAUSE: Duration = Duration::from_millis(300);
/// What a call carries, so that a server may know it again on another attempt.
const IDEMPOTENCY_KEY: &str = "stepwell/idempotency-key";
/// Bytes that a server may send for a call: pictures are large, and only named.
const MAX_CALL_BYTES: usize = 8 * 1024 * 1024;

/// An open session. When it is dropped, its keeper says good-bye.
pub(super) struct Session {
    peer: Peer<RoleClient>,
    wire: Wire,
    usage: Arc<Usage>,
}

impl Session {
    /// Connects, and exchanges the greetings of the protocol; with a server that does not know them (since
    /// 2026-07-28 the protocol has none), what takes their place. We offer nothing that a server could
    /// ask of its client: no sampling, no elicitation, no roots.
    ///
    /// # Errors
    /// What stood in the way.
    pub(super) async fn open(with: Connection, tasks: &Tasks) -> Result<Self, Trouble> {
        // In this order: servers of today know greetings, those that know both keep a session only
        // where it was opened with them, and some of the older ones fall silent at what they do not know.
        let why = match Self::begun(with.clone(), ClientLifecycleMode::Initialize, tasks).await {
            Ok(session) => return Ok(session),
            Err(NotBegun { why, in_words: false }) => return Err(why),
            Err(NotBegun { why, in_words: true }) => why,
        };
        let discover =
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::LATEST] };
        Self::begun(with, discover, tasks).await.map_err(|_| why)
    }

    async fn begun(
        with: Connection,
        lifecycle: ClientLifecycleMode,
        tasks: &Tasks,
    ) -> Result<Self, NotBegun> {
        let life = CancellationToken::new();
        let end = life.clone().drop_guard();
        let wire = Wire::new(with, life);
        let mut patience = ExponentialBackoff::default();
        patience.base_duration = RESUME_PAUSE;
        patience.max_times = Some(RESUME_TRIES);
        let mut config = StreamableHttpClientTransportConfig::with_uri(wire.url())
            // It would send the call again behind our back.
            .reinit_on_expired_session(false)
            // No call of a step waits for another one.
            .max_concurrent_requests(limits::MAX_CALLS_PER_STEP)
            .control_request_timeout(FAREWELL);
        config.retry_config = Arc::new(patience);
        let transport = StreamableHttpClientTransport::with_client(wire.clone(), config);
        let stepwell = Implementation::new("stepwell", env!("CARGO_PKG_VERSION"));
        let client = ClientConfig::new(ClientCapabilities::default(), stepwell)
            .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE);
        let begun = client.serve_with_lifecycle(transport, lifecycle).await;
        let service = begun.map_err(|error| NotBegun::because(&wire, &error))?;
        let (peer, usage) = (service.peer().clone(), Usage::new(Instant::now()));
        let (stop, used) = (tasks.token(), usage.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = used.over() => {}
                () = stop.cancelled() => used.end(),
            }
            close(service, end).await;
        });
        Ok(Self { peer, wire, usage })
    }

    /// How it is used.
    pub(super) fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    /// A call begins, if the session is still good: it lasts as long as what is returned.
    pub(super) fn begin(&self) -> Option<InUse> {
        if self.wire.is_forgotten() || self.peer.is_transport_closed() {
            return None;
        }
        self.usage.begin()
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
            let page = self.peer.list_tools(Some(from)).await;
            let page = page.map_err(|error| match error {
                ServiceError::McpError(error) => Trouble::lasting(format!(
                    "refused to list its tools: {}",
                    in_short(&error.message)
                )),
                other => trouble(self.wire.small_talk(), &other),
            })?;
            tools.extend(page.tools.into_iter().map(listed));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok((tools, true));
            }
        }
        Ok((tools, false))
    }

    /// Asks for a call. The request is on its way, or will be soon.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn ask(
        &self,
        tool: &str,
        arguments: JsonObject,
        key: String,
        departure: Arc<Departure>,
    ) -> Result<Asked, Answer> {
        let exchange = self.wire.call(departure, MAX_CALL_BYTES);
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let mut request = CallToolRequest::new(params);
        request.extensions.insert(exchange.clone());
        let mut meta = MetaObject::new();
        meta.insert(IDEMPOTENCY_KEY.to_owned(), Value::from(key));
        let options = PeerRequestOptions::no_options().with_meta(RequestMetaObject(meta));
        let request = ClientRequest::CallToolRequest(request);
        match self.peer.send_cancellable_request(request, options).await {
            Ok(handle) => {
                let end = exchange.life().clone().drop_guard();
                Ok(Asked { handle, exchange, _end: end })
            }
            Err(error) => Err(no_result(&exchange, &error)),
        }
    }
}

fn listed(tool: Tool) -> Listed {
    let described = tool.description.map(|text| text.into_owned());
    Listed {
        name: tool.name.into_owned(),
        // A title for people says more than nothing.
        description: described.or(tool.title).unwrap_or_default(),
        parameters: tool.input_schema.as_ref().clone(),
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.usage.end();
    }
}

/// Why a session did not begin.
struct NotBegun {
    why: Trouble,
    /// The server said so, in words of the protocol.
    in_words: bool,
}

impl NotBegun {
    fn because(wire: &Wire, error: &ClientInitializeError) -> Self {
        if let Some(why) = wire.small_talk().trouble() {
            return Self { why, in_words: false };
        }
        match error {
            ClientInitializeError::JsonRpcError(error) => {
                let what = format!("refused the session: {}", in_short(&error.message));
                Self { why: Trouble::lasting(what), in_words: true }
            }
            _ => {
                let why = Trouble::lasting("did not begin in the way of the protocol");
                Self { why, in_words: false }
            }
        }
    }
}

/// A call that was asked for. When it is dropped, its connections are closed; the session goes on.
pub(super) struct Asked {
    handle: RequestHandle<RoleClient>,
    exchange: Arc<Exchange>,
    _end: DropGuard,
}

impl Asked {
    /// Waits for the answer.
    pub(super) async fn answer(&mut self) -> Answer {
        match (&mut self.handle.rx).await.unwrap_or(Err(ServiceError::TransportClosed)) {
            Ok(ServerResult::CallToolResult(result)) => Answer::Result(result),
            Ok(other) => {
                let what = match other {
                    ServerResult::InputRequiredResult(_) => {
                        "asks for more input before it makes the call, and nobody is there to give it"
                    }
                    _ => "answered with something that is no result of a tool",
                };
                let why = Trouble { is_answer: true, ..Trouble::lasting(what) };
                Answer::None { why, left: true }
            }
            Err(error) => no_result(&self.exchange, &error),
        }
    }

    /// Tells the server that nobody waits for this call any more.
    pub(super) async fn cancel(self) {
        let reason = "nobody waits for the result any more".to_owned();
        let _ = timeout(FAREWELL, self.handle.cancel(Some(reason))).await;
    }
}

fn no_result(exchange: &Exchange, error: &ServiceError) -> Answer {
    match error {
        ServiceError::McpError(error) => Answer::Refused {
            words: in_short(&error.message).to_owned(),
            unknown_tool: is_unknown_tool(error.code, &error.message),
        },
        other => Answer::None { why: trouble(exchange, other), left: exchange.has_left() },
    }
}

fn trouble(exchange: &Exchange, error: &ServiceError) -> Trouble {
    exchange.trouble().unwrap_or_else(|| match error {
        ServiceError::TransportClosed | ServiceError::TransportSend(_) => {
            Trouble::passing("broke its answer off")
        }
        _ => Trouble::lasting("did not answer in the way of the protocol"),
    })
}

/// Tells the server that we go. Behind it, nothing of the session is left.
async fn close(mut service: RunningService<RoleClient, ClientConfig>, end: DropGuard) {
    let _ = timeout(FAREWELL, service.close()).await;
    drop(end);
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
