//! Forking a run: going on from one of its steps in a new one.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::create_run::object_or_null;
use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId};
use crate::api::{ApiError, ApiState, reply};
use crate::app::forks::ForkRequest;
use crate::app::idempotency::Answer;
use crate::domain::ids::RunId;
use crate::domain::message::Input;
use crate::domain::run::{Run, RunConfig};

const FORK: &str = "POST /v1/runs/{run_id}/fork";

/// Where a new run goes on from.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ForkRunRequest, example = json!({"from_step": 2, "input": "Try it without the tool."}))]
pub struct Fork {
    /// The first step that is made anew: 1 to `steps_completed` + 1. The steps before it are copied.
    #[schema(minimum = 1)]
    from_step: i32,
    /// What differs from the run that is forked; fields that are left out stay as they are there.
    #[serde(default)]
    config: Option<RunConfig>,
    /// What the user says next: a text, or a list of messages of role `user`. The model reads it after
    /// the copied steps.
    #[serde(default)]
    input: Option<Input>,
    /// The same as the header `Idempotency-Key`, for models that cannot set headers.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    #[expect(dead_code, reason = "read before the body is, for a replay is answered first")]
    idempotency_key: Option<String>,
}

/// Fork a run
///
/// Makes a new run that has done what this one did before `from_step`, and goes on from there: to try
/// another model, another instruction or another question without paying for the steps so far. The
/// recorded answers of the model and of its tools are copied; nothing is called for them, and the fork's
/// `usage` and `cost_usd` begin at zero. The fork has the same agent version, `metadata` and
/// `end_user_id`, and ids of its own; `max_steps` counts the copied steps too. `forked_from_run_id` says
/// where it comes from. The run that is forked may have ended or go on; it is not changed. `from_step`
/// `steps_completed` + 1 with an `input` continues a finished run.
#[utoipa::path(post, path = "/v1/runs/{run_id}/fork", operation_id = "fork_run", tag = "runs",
    params(("run_id" = RunId, Path, description = "The run to fork.")),
    request_body = Fork,
    responses((status = 202, description = "The new run.", body = Run)))]
pub async fn fork_run(
    State(state): State<ApiState>,
    caller: Authenticated,
    run_id: PathId<RunId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key_also_in_body(FORK, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(run) => Answer::replay(state.app.replayed_run(&caller, &run).await?),
        None => {
            let run_id = run_id.id()?;
            let request = state.run_first(&caller, run_id, read(body)).await?;
            state.app.fork_run(&caller, run_id, request, key.as_ref()).await?
        }
    };
    let run = state.app.view(&caller, answer.value).await?;
    let mut response = reply::run_response(StatusCode::ACCEPTED, &run)?;
    reply::set(&mut response, header::LOCATION, &state.app.links().run(run.run_id));
    Ok(reply::replayed(response, answer.replayed))
}

fn read(body: JsonBody) -> Result<ForkRequest, ApiError> {
    object_or_null(body.value())?;
    let Fork { from_step, config, input, .. } = body.read()?;
    Ok(ForkRequest { from_step, config: config.unwrap_or_default(), input })
}
