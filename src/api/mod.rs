//! OUR HTTP API.
//!
//! A request comes through [`edge`] (its id, its size, its log line), is matched to a route of
//! [`v1`], proves who it is ([`auth`]), is read ([`extract`], [`accept`]), asks [`crate::app`] for
//! one thing, and gets its answer ([`reply`], [`sse`]) or its error ([`error`]). [`openapi`] is made
//! from the same routes, so a route and its documentation cannot drift apart.
//!
//! What this room must never do: decide anything about agents or runs, touch the store, or answer
//! with anything but JSON, an event stream or the documentation page.
//!
//! To add an operation: a handler of at most 15 lines in `v1/`, with `#[utoipa::path]` and a
//! description written for a reader that is a language model; its line in `v1/mod.rs`; its errors in
//! `openapi/errors.rs`; then `cargo run -- openapi > openapi.yaml`.

pub mod accept;
pub mod auth;
pub mod disconnect;
pub mod docs;
pub mod edge;
pub mod error;
pub mod extract;
pub mod health;
pub mod idempotency;
pub mod openapi;
pub mod pages;
pub mod query;
pub mod reply;
pub mod sse;
pub mod streams;
pub mod v1;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::shutdown::Tasks;

pub use auth::AdminKey;
pub use error::{ApiError, ErrorCode};
use streams::Streams;

/// Everything that handlers need.
#[derive(Clone)]
pub struct ApiState {
    /// The use cases.
    pub app: Arc<App>,
    /// Where work that outlives its request goes: cancels of clients that went away.
    pub tasks: Tasks,
    /// Cancelled when the server stops: streams and waits end then, and say so.
    pub stop: CancellationToken,
    /// With a key, every request under `/v1` must show it; without one, the server is open.
    pub admin_key: Option<AdminKey>,
    /// The event streams that are open.
    pub streams: Streams,
    /// Web pages of these origins may call; empty means none.
    pub cors_origins: Arc<[HeaderValue]>,
}

/// The whole API as a service.
pub fn router(state: ApiState) -> Router {
    let (documented, _) = documented().split_for_parts();
    let mut router = documented
        .merge(docs::router())
        .fallback(error::unknown_route)
        .layer(CatchPanicLayer::custom(error::panicked));
    if !state.cors_origins.is_empty() {
        router = router.layer(cors(&state.cors_origins));
    }
    router.layer(middleware::from_fn_with_state(state.clone(), edge::edge)).with_state(state)
}

/// The routes that the spec describes.
fn documented() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().merge(v1::router()).merge(health::router())
}

fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let exposed = [
        header::LOCATION,
        header::RETRY_AFTER,
        header::ETAG,
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("idempotent-replayed"),
        HeaderName::from_static("preference-applied"),
    ];
    let allowed = [
        header::AUTHORIZATION,
        header::CONTENT_TYPE,
        header::ACCEPT,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        HeaderName::from_static("idempotency-key"),
        HeaderName::from_static("last-event-id"),
        HeaderName::from_static("prefer"),
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("x-agent-id"),
        HeaderName::from_static("traceparent"),
    ];
    // A list does not take the star.
    let origins = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.to_vec())
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(allowed)
        .expose_headers(exposed)
}
