//! Whether the process is up, and whether it can do its work.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ApiError, ApiState, ErrorCode, reply};

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
/// missing: the database takes no writes, other nodes are not heard, runs wait although slots are free,
/// or the server is stopping. Asks nobody: it tells what the server saw in the last seconds.
#[utoipa::path(get, path = "/readyz", operation_id = "get_readiness", tag = "health",
    responses((status = 200, description = "The database takes writes and the engine is alive.", body = Health, example = json!({"status": "ready"}))))]
pub async fn readyz(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let mut reasons = state.app.what_is_wrong();
    if state.stop.is_cancelled() {
        reasons.push("The server is stopping.".to_owned());
    }
    if reasons.is_empty() {
        return reply::json(StatusCode::OK, &Health { status: "ready" });
    }
    let details = Map::from_iter([("reasons".to_owned(), json!(reasons))]);
    Err(ApiError::new(ErrorCode::Unavailable, "The server cannot take work at the moment.")
        .with_details(details))
}
