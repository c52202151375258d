//! What a request that changes something holds: its JSON body, its query, and the id in its path.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::app::{AppError, Sought, reading};
use crate::domain::depth::is_too_deep;
use crate::domain::ids::{AgentId, ConversationId, RunId};
use crate::domain::limits::MAX_DEPTH;

use super::edge::Noted;
use super::idempotency::Keyed;
use super::query::Query;
use super::{ApiError, ApiState, ErrorCode};

/// Larger bodies are refused.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of a body that is too large which are still read, so that its sender can read the answer.
pub const MAX_DISCARDED_BYTES: usize = 32 * 1024 * 1024;
/// A body that has not arrived by then is not coming: nobody may hold a connection with a drip.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// A parsed body, not yet read as any type: what a repeated request gets is decided before that. The
/// query comes with it, and is refused when the body is read, unless the operation has taken it.
#[derive(Debug)]
pub struct JsonBody {
    /// The document; null when nothing was sent.
    value: Value,
    /// What stands behind the path. Most operations with a body know no parameters.
    query: Query,
    /// What idempotency needs.
    keyed: Keyed,
}

impl JsonBody {
    /// The document.
    pub const fn value(&self) -> &Value {
        &self.value
    }

    /// The document, to be changed before it is read.
    pub const fn value_mut(&mut self) -> &mut Value {
        &mut self.value
    }

    /// What idempotency needs.
    pub const fn keyed(&self) -> &Keyed {
        &self.keyed
    }

    /// The query, for an operation that knows parameters.
    pub fn take_query(&mut self) -> Query {
        std::mem::take(&mut self.query)
    }

    /// Reads the body, which must be there.
    ///
    /// # Errors
    /// `invalid_json`, `unknown_field`, `validation_failed`.
    pub fn read<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        Ok(reading::read(self.document()?)?)
    }

    /// Reads the body; nothing is an empty object.
    ///
    /// # Errors
    /// `unknown_field`, `validation_failed`.
    pub fn read_or_empty<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        self.query.nothing()?;
        let value = if self.value.is_null() { Value::Object(Map::new()) } else { self.value };
        Ok(reading::read(value)?)
    }

    /// The body, which must be there.
    ///
    /// # Errors
    /// `invalid_json`, `unknown_field`.
    pub fn document(self) -> Result<Value, ApiError> {
        self.query.nothing()?;
        if self.value.is_null() {
            return Err(ApiError::new(ErrorCode::InvalidJson, "The body is empty."));
        }
        Ok(self.value)
    }

    /// Makes sure that nothing was sent, or an empty object: this operation takes no fields.
    ///
    /// # Errors
    /// `unknown_field`, `validation_failed`.
    pub fn nothing(&self) -> Result<(), ApiError> {
        self.query.nothing()?;
        match &self.value {
            Value::Null => Ok(()),
            Value::Object(fields) => match fields.keys().next() {
                None => Ok(()),
                Some(field) => Err(AppError::UnknownField {
                    pointer: format!("/{field}"),
                    field: field.clone(),
                }
                .into()),
            },
            _ => Err(AppError::invalid("", "must be an empty object, or nothing").into()),
        }
    }
}

impl FromRequest<ApiState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &ApiState) -> Result<Self, Self::Rejection> {
        let (parts, body) = request.into_parts();
        let query = Query::of(&parts.uri);
        media_type(&parts.headers)?;
        let bytes = collect(body).await?;
        let value = if bytes.is_empty() {
            Value::Null
        } else if parts.headers.contains_key(header::CONTENT_TYPE) {
            parse(&bytes)?
        } else {
            return Err(unsupported());
        };
        let noted = parts.extensions.get::<Noted>().cloned().unwrap_or_default();
        let keyed = Keyed::new(&parts.headers, parts.uri.path(), noted);
        Ok(Self { value, query, keyed })
    }
}

fn media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    let is_json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if is_json { Ok(()) } else { Err(unsupported()) }
}

fn unsupported() -> ApiError {
    ApiError::new(ErrorCode::UnsupportedMediaType, "The body must be sent as application/json.")
}

/// Reads a body. One that is too large is read on for a while and thrown away: a client that is still
/// sending when the connection closes never sees the answer that says why.
async fn collect(mut body: axum::body::Body) -> Result<Bytes, ApiError> {
    let read = async {
        let mut kept = BytesMut::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::new(ErrorCode::InvalidJson, "The body broke off.").closing()
            })?;
            let Ok(data) = frame.into_data() else { continue };
            length += data.len();
            if length > MAX_DISCARDED_BYTES {
                break;
            }
            if length <= MAX_BODY_BYTES {
                kept.extend_from_slice(&data);
            }
        }
        if length > MAX_BODY_BYTES {
            let message = "The body is larger than 4 MiB.";
            return Err(ApiError::new(ErrorCode::BodyTooLarge, message).closing());
        }
        Ok(kept.freeze())
    };
    let late = || ApiError::new(ErrorCode::InvalidJson, "The body did not arrive in time.");
    tokio::time::timeout(BODY_PATIENCE, read).await.unwrap_or_else(|_| Err(late().closing()))
}

/// Parses a document: a syntax error, a lone surrogate, a number beyond all numbers or too deep a
/// nesting is no JSON of ours.
fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidJson, message);
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| invalid(format!("The body is not valid JSON: {error}.")))?;
    if is_too_deep(&value) {
        return Err(invalid(format!("The body is nested more than {MAX_DEPTH} levels deep.")));
    }
    Ok(value)
}

/// A kind of id that stands in paths.
pub trait Named: FromStr {
    /// What it names.
    const WHAT: Sought;
}

impl Named for AgentId {
    const WHAT: Sought = Sought::Agent;
}

impl Named for ConversationId {
    const WHAT: Sought = Sought::Conversation;
}

impl Named for RunId {
    const WHAT: Sought = Sought::Run;
}

/// The id in a path, looked at only when its turn comes: a malformed one is answered like one that
/// nobody has, which comes after a replay.
#[derive(Debug, Clone)]
pub struct PathId<T>(Option<T>);

impl<T: Named> PathId<T> {
    /// The id.
    ///
    /// # Errors
    /// `not_found`.
    pub fn id(self) -> Result<T, ApiError> {
        self.0.ok_or_else(|| AppError::NotFound(T::WHAT).into())
    }
}

impl<T: Named> FromRequestParts<ApiState> for PathId<T> {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &ApiState,
    ) -> Result<Self, Self::Rejection> {
        // Bytes that are no UTF-8 are no id either.
        let Ok(params) = RawPathParams::from_request_parts(parts, state).await else {
            return Ok(Self(None));
        };
        Ok(Self(params.iter().next().and_then(|(_, text)| text.parse().ok())))
    }
}

/// An object's field, taken out of it.
pub fn take_field(value: &mut Value, field: &str) -> Option<Value> {
    value.as_object_mut().and_then(|fields: &mut Map<String, Value>| fields.remove(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_in_brackets() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(parse(nested(MAX_DEPTH + 1).as_bytes()).is_err());
        assert!(parse(nested(100_000).as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["{", "{\"a\":1,}", "\"\\ud800\"", "1e400", "nul", "{} {}", "\u{feff}{}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse(b"\"\xff\"").is_err());
        assert!(parse(b"\"\\u0000\"").is_ok());
    }
}
