//! Whether the process is up, and whether it can do its work.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiState, ErrorCode, reply};

/// A database that takes longer to answer is not ready.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a health check answers when all is well.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok` or `ready`.
    #[schema(examples("ok"))]
    status: &'static str,
}

/// The routes, which need no key.
pub fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz))
}

/// Check that the process is up
///
/// Answers as long as the process does, whatever the state of its database. Restart the process when
/// it does not.
#[utoipa::path(get, path = "/healthz", operation_id = "get_health", tag = "health",
    responses((status = 200, description = "The process is up.", body = Health, example = json!({"status": "ok"}))))]
pub async fn healthz() -> Result<Response, ApiError> {
    reply::json(StatusCode::OK, &Health { status: "ok" })
}

/// Check that the server can take work
///
/// Send traffic to this server only while it answers 200. On 503, `details.reasons` says what is
/// missing.
#[utoipa::path(get, path = "/readyz", operation_id = "get_readiness", tag = "health",
    responses((status = 200, description = "The database answers and the engine is alive.", body = Health, example = json!({"status": "ready"}))))]
pub async fn readyz(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let mut reasons = Vec::new();
    if !matches!(tokio::time::timeout(PATIENCE, state.app.ping()).await, Ok(Ok(()))) {
        reasons.push("The database does not answer.");
    }
    if !state.engine_alive.load(Ordering::Relaxed) {
        reasons.push("The engine is not alive.");
    }
    if state.stop.is_cancelled() {
        reasons.push("The server is stopping.");
    }
    if reasons.is_empty() {
        return reply::json(StatusCode::OK, &Health { status: "ready" });
    }
    let details = Map::from_iter([("reasons".to_owned(), json!(reasons))]);
    Err(ApiError::new(ErrorCode::Unavailable, "The server cannot take work at the moment.")
        .with_details(details))
}
