//! The one error shape, from every layer.
//!
//! An [`ApiError`] travels inside a response's extensions until [`super::edge`], which knows the
//! request's id, writes the body. A response that some library made without one gets the error of its
//! status there, so nothing else ever leaves.

use std::any::Any;
use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::app::AppError;
use crate::domain::conversation::Refusal;

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $code:ident = $status:ident, $retry:literal, $action:literal;)*) => {
        /// What went wrong, from a closed list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[doc = $doc])* $code,)* }

        impl ErrorCode {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            /// The HTTP status that it goes with.
            pub const fn status(self) -> StatusCode {
                match self { $(Self::$code => StatusCode::$status,)* }
            }

            /// Whether the same request may succeed later.
            pub const fn retry(self) -> bool {
                match self { $(Self::$code => $retry,)* }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$code => concat!($($doc),*).trim_ascii(),)* }
            }

            /// What a program should do next.
            pub const fn suggested_action(self) -> &'static str {
                match self { $(Self::$code => $action,)* }
            }
        }
    };
}

codes! {
    /// The body is no JSON, or nested too deeply.
    InvalidJson = BAD_REQUEST, false, "Send one valid UTF-8 JSON document, nested at most 64 levels deep.";
    /// A header has a value that is not allowed.
    InvalidHeader = BAD_REQUEST, false, "Correct the header that the message names.";
    /// A cursor of a list or a stream is malformed or past the end.
    InvalidCursor = BAD_REQUEST, false, "Use a cursor that this server gave you, or none to begin at the start.";
    /// No key, or one that is not valid.
    Unauthenticated = UNAUTHORIZED, false, "Send the header Authorization: Bearer YOUR_KEY with a valid key.";
    /// A spend cap is used up; waiting does not help.
    BudgetExhausted = PAYMENT_REQUIRED, false, "Raise the cap, or stop.";
    /// The key may not do this.
    InsufficientScope = FORBIDDEN, false, "Use a key with the scope that the message names.";
    /// There is no such thing, or it is not yours.
    NotFound = NOT_FOUND, false, "Check the path and the id in it.";
    /// The path exists, but not with this method.
    MethodNotAllowed = METHOD_NOT_ALLOWED, false, "Use one of the methods in the Allow header.";
    /// `Accept` allows none of the types that this operation answers with.
    NotAcceptable = NOT_ACCEPTABLE, false, "Send Accept: application/json, or text/event-stream for streams, or leave it out.";
    /// The id is taken.
    AlreadyExists = CONFLICT, false, "Choose another id, or change the existing one with PATCH.";
    /// The server's configuration file owns it.
    ReadOnly = CONFLICT, false, "Ask the operator to change it in stepwell.yaml.";
    /// The agent takes no new runs and no changes.
    AgentArchived = CONFLICT, false, "Use another agent: GET /v1/agents lists those that take runs.";
    /// It was changed since you read it.
    VersionConflict = CONFLICT, false, "Read it again, apply your change to the current version, and try again.";
    /// Another run is active in the conversation.
    ConversationBusy = CONFLICT, true, "Wait for that run, or send on_busy=\"enqueue\".";
    /// The conversation was closed.
    ConversationClosed = CONFLICT, false, "Start a new conversation.";
    /// The conversation expired.
    ConversationExpired = CONFLICT, false, "Start a new conversation.";
    /// The run has not ended yet.
    RunActive = CONFLICT, true, "Wait until the run has ended, or cancel it first.";
    /// The run has ended.
    RunEnded = CONFLICT, false, "Read the run for its result. To go on from it, fork it; else start a new run.";
    /// Somebody else decided already.
    AlreadyDecided = CONFLICT, false, "Nothing is left to answer: GET /v1/runs/{run_id}/steps says what became of the call.";
    /// The body is larger than 4 MiB.
    BodyTooLarge = PAYLOAD_TOO_LARGE, false, "Send at most 4 MiB; pass large files by url.";
    /// The address is longer than 8 KiB.
    UriTooLong = URI_TOO_LONG, false, "Shorten the query.";
    /// The body is not declared as JSON.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, false, "Send the header Content-Type: application/json.";
    /// The headers are larger than 16 KiB.
    HeadersTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE, false, "Send fewer or shorter headers.";
    /// Values that are not allowed; `details.errors` lists them.
    ValidationFailed = UNPROCESSABLE_ENTITY, false, "Correct the values listed in details.errors and send the request again.";
    /// A field or a query parameter that is not known.
    UnknownField = UNPROCESSABLE_ENTITY, false, "Remove the field, or correct its name.";
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = UNPROCESSABLE_ENTITY, false, "Use a new key for a new request; repeat a request unchanged under its own key.";
    /// The address must not be called.
    DestinationNotAllowed = UNPROCESSABLE_ENTITY, false, "Use a public https address, or ask the operator to allow this one.";
    /// A limit was reached.
    RateLimitExceeded = TOO_MANY_REQUESTS, true, "Wait retry_after_seconds, then send the same request.";
    /// A defect of this server.
    Internal = INTERNAL_SERVER_ERROR, false, "Report it with the request_id. Repeat the request only under an idempotency key.";
    /// The server cannot do this at the moment.
    Unavailable = SERVICE_UNAVAILABLE, true, "Wait retry_after_seconds, then send the same request.";
    /// The server has too much to do.
    Overloaded = SERVICE_UNAVAILABLE, true, "Wait retry_after_seconds, then send the same request.";
    /// The database does not answer.
    StorageUnavailable = SERVICE_UNAVAILABLE, true, "Wait retry_after_seconds, then send the same request, under the same idempotency key if it had one.";
}

/// What every failed request answers with.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiError)]
pub struct ErrorBody<'a> {
    /// What went wrong. Decide by this, never by `message`.
    pub error: ErrorCode,
    /// For people. May change at any time.
    pub message: &'a str,
    /// More about it, by kind of error; empty when there is nothing more.
    #[schema(value_type = Object)]
    pub details: &'a Map<String, Value>,
    /// What to do next.
    pub suggested_action: &'a str,
    /// Whether the same request may succeed later.
    pub retry: bool,
    /// Seconds to wait before that, where there is something to wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
    /// Identifies the request; quote it when you report a problem.
    pub request_id: &'a str,
}

/// A failed request.
#[derive(Debug, Clone)]
pub struct ApiError(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    code: ErrorCode,
    message: Cow<'static, str>,
    details: Map<String, Value>,
    suggested_action: Cow<'static, str>,
    retry_after_seconds: Option<u32>,
    closes: bool,
}

impl ApiError {
    /// An error of this kind.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Parts {
            code,
            message: message.into(),
            details: Map::new(),
            suggested_action: Cow::Borrowed(code.suggested_action()),
            // Everything that may succeed later is worth a second's wait.
            retry_after_seconds: code.retry().then_some(1),
            closes: false,
        }))
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: Map<String, Value>) -> Self {
        self.0.details = details;
        self
    }

    /// The same; the connection cannot be used for another request.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.0.closes = true;
        self
    }

    /// What kind of error it is.
    pub const fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// The body, for the request of this id.
    pub fn body<'a>(&'a self, request_id: &'a str) -> ErrorBody<'a> {
        ErrorBody {
            error: self.0.code,
            message: &self.0.message,
            details: &self.0.details,
            suggested_action: &self.0.suggested_action,
            retry: self.0.code.retry(),
            retry_after_seconds: self.0.retry_after_seconds,
            request_id,
        }
    }

    /// The error of a status that some library answered with.
    pub fn of_status(status: StatusCode) -> Self {
        let (code, message) = match status {
            StatusCode::NOT_FOUND => (ErrorCode::NotFound, "There is nothing at this path."),
            StatusCode::METHOD_NOT_ALLOWED => {
                (ErrorCode::MethodNotAllowed, "This path does not take this method.")
            }
            StatusCode::NOT_ACCEPTABLE => {
                (ErrorCode::NotAcceptable, "No acceptable type can be given.")
            }
            StatusCode::PAYLOAD_TOO_LARGE => (ErrorCode::BodyTooLarge, "The body is too large."),
            StatusCode::URI_TOO_LONG => (ErrorCode::UriTooLong, "The address is too long."),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                (ErrorCode::UnsupportedMediaType, "The body must be JSON.")
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
                (ErrorCode::HeadersTooLarge, "The headers are too large.")
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                (ErrorCode::Unavailable, "The server cannot do this at the moment.")
            }
            other if other.is_client_error() => {
                (ErrorCode::InvalidHeader, "The request cannot be understood.")
            }
            _ => (ErrorCode::Internal, "Something went wrong inside the server."),
        };
        Self::new(code, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.0.code.status().into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.code == ErrorCode::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.0.closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<AppError> for ApiError {
    fn from(error: AppError) -> Self {
        let code = match &error {
            AppError::NotFound(_) => ErrorCode::NotFound,
            AppError::AlreadyExists(_) => ErrorCode::AlreadyExists,
            AppError::ReadOnly => ErrorCode::ReadOnly,
            AppError::AgentArchived => ErrorCode::AgentArchived,
            AppError::VersionConflict { .. } => ErrorCode::VersionConflict,
            AppError::RunActive { .. } => ErrorCode::RunActive,
            AppError::RunEnded { .. } => ErrorCode::RunEnded,
            AppError::Conversation { refusal, .. } => match refusal {
                Refusal::Busy { .. } | Refusal::Full { .. } => ErrorCode::ConversationBusy,
                Refusal::Closed => ErrorCode::ConversationClosed,
                Refusal::Expired => ErrorCode::ConversationExpired,
                Refusal::Spent { .. } => ErrorCode::BudgetExhausted,
                Refusal::TooLong | Refusal::NothingToAnswer => ErrorCode::ValidationFailed,
            },
            AppError::AlreadyDecided(_) => ErrorCode::AlreadyDecided,
            AppError::Invalid(_) => ErrorCode::ValidationFailed,
            AppError::DestinationNotAllowed(_) => ErrorCode::DestinationNotAllowed,
            AppError::UnknownField { .. } | AppError::UnknownParameter(_) => {
                ErrorCode::UnknownField
            }
            AppError::UnknownCursor => ErrorCode::InvalidCursor,
            AppError::KeyReused => ErrorCode::IdempotencyKeyReused,
            AppError::Contended => ErrorCode::Unavailable,
            AppError::Store(store) if store.is_passing() => ErrorCode::StorageUnavailable,
            AppError::Store(_) | AppError::Fold(_) | AppError::Event(_) => ErrorCode::Internal,
        };
        let message = match code {
            ErrorCode::Internal => {
                // Logged here, where it is handled: the answer says nothing about the inside.
                tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
                "Something went wrong inside the server.".to_owned()
            }
            ErrorCode::StorageUnavailable => "The database does not answer.".to_owned(),
            _ => error.to_string(),
        };
        let mut api = Self::new(code, message).with_details(error.details());
        if let Some(action) = error.suggested_action() {
            api.0.suggested_action = Cow::Owned(action);
        }
        api
    }
}

/// What a path gets that no route has.
pub async fn unknown_route() -> ApiError {
    ApiError::of_status(StatusCode::NOT_FOUND)
}

/// What a request gets whose handler panicked. The panic hook has logged where.
pub fn panicked(_payload: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR).into_response()
}
