//! Who asks: the key, and what else a request says about its sender.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::app::Caller;

use super::extract::MAX_DISCARDED_BYTES;
use super::{ApiError, ApiState, ErrorCode, accept, edge};

/// The operator's own key, kept as its hash.
#[derive(Debug, Clone, Copy)]
pub struct AdminKey([u8; 32]);

impl AdminKey {
    /// The key of `STEPWELL_ADMIN_KEY`.
    pub fn new(key: &SecretString) -> Self {
        Self(hash(key.expose_secret()))
    }

    /// Whether `shown` is the key, in a time that tells nothing about either: hashes are compared,
    /// so not even the length shows.
    fn is(&self, shown: &str) -> bool {
        self.0.ct_eq(&hash(shown)).into()
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Every handler under `/v1` takes the caller as its first argument; no use case works without.
/// What comes before the body is checked here, in the order of the contract: size, key, `Accept`.
impl FromRequestParts<ApiState> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &ApiState,
    ) -> Result<Self, Self::Rejection> {
        declared_size(&parts.headers)?;
        let mut caller = match &state.admin_key {
            None => Caller::open(),
            Some(key) if bearer(&parts.headers).is_some_and(|shown| key.is(shown)) => {
                Caller::admin()
            }
            Some(_) => {
                return Err(ApiError::new(
                    ErrorCode::Unauthenticated,
                    "This server needs a key, and the request shows no valid one.",
                ));
            }
        };
        accept::anything_we_make(&parts.headers)?;
        caller.caller_agent_id = edge::caller_agent_id(&parts.headers).map(str::to_owned);
        if let (Some(noted), Some(key_id)) = (parts.extensions.get::<edge::Noted>(), &caller.key_id)
        {
            noted.key_id(key_id);
        }
        Ok(Self(caller))
    }
}

/// A caller that has shown its key, where one is asked for.
#[derive(Debug, Clone)]
pub struct Authenticated(pub Caller);

impl std::ops::Deref for Authenticated {
    type Target = Caller;
    fn deref(&self) -> &Caller {
        &self.0
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn declared_size(headers: &HeaderMap) -> Result<(), ApiError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    // What is not much too large is read and refused then: a client that is still sending when the
    // connection closes never sees why.
    if declared.is_some_and(|bytes| bytes > MAX_DISCARDED_BYTES as u64) {
        return Err(
            ApiError::new(ErrorCode::BodyTooLarge, "The body is larger than 4 MiB.").closing()
        );
    }
    Ok(())
}
