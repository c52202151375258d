//! Agents: a model, instructions, tools and limits under a name.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::auth::Authenticated;
use crate::api::extract::{JsonBody, PathId, take_field};
use crate::api::openapi::agents::{CreateAgentRequest, UpdateAgentRequest};
use crate::api::pages::{AgentList, AgentVersionList, PageQuery};
use crate::api::query::{self, Query};
use crate::api::{ApiError, ApiState, ErrorCode, reply};
use crate::app::AppError;
use crate::app::agents::{AgentPatch, NewAgent};
use crate::app::idempotency::Answer;
use crate::app::reading;
use crate::domain::agent::Agent;
use crate::domain::ids::AgentId;
use crate::domain::page::Order;

const CREATE: &str = "POST /v1/agents";
const UPDATE: &str = "PATCH /v1/agents/{agent_id}";
const ARCHIVE: &str = "DELETE /v1/agents/{agent_id}";

/// Create an agent
///
/// Call this once for each agent that you want to run; runs are then created with
/// `POST /v1/agents/{agent_id}/runs`. Only `agent_id` and `model` are required. The `agent_id` is
/// yours to choose and is never free again, not even after archiving. If it is taken you get 409
/// `already_exists`: change that agent with PATCH instead.
#[utoipa::path(post, path = "/v1/agents", operation_id = "create_agent", tag = "agents",
    request_body = CreateAgentRequest,
    responses((status = 201, description = "The agent at version 1.", body = Agent)))]
pub async fn create_agent(
    State(state): State<ApiState>,
    caller: Authenticated,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(CREATE, body.value())?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(resource) => Answer::replay(state.app.replayed_agent(&caller, &resource).await?),
        None => state.app.create_agent(&caller, new_agent(body)?, key.as_ref()).await?,
    };
    let mut response = reply::agent(StatusCode::CREATED, &answer)?;
    let location = state.app.links().agent(&answer.value.agent_id);
    reply::set(&mut response, header::LOCATION, &location);
    Ok(response)
}

/// `agent_id` beside the settings: serde can flatten or refuse unknown fields, and not both.
fn new_agent(body: JsonBody) -> Result<NewAgent, ApiError> {
    let mut document = body.document()?;
    let agent_id = take_field(&mut document, "agent_id");
    let settings = reading::read(document)?;
    let Some(agent_id) = agent_id else {
        return Err(AppError::invalid("/agent_id", "is required").into());
    };
    Ok(NewAgent { agent_id: reading::read_under("/agent_id", agent_id)?, settings })
}

/// List agents
///
/// Call this to find out which agents there are; `description` says what each is for. Sorted by
/// `agent_id`; archived agents are not listed.
#[utoipa::path(get, path = "/v1/agents", operation_id = "list_agents", tag = "agents",
    params(PageQuery),
    responses((status = 200, description = "A page of agents.", body = AgentList)))]
pub async fn list_agents(
    State(state): State<ApiState>,
    caller: Authenticated,
    query: Query,
) -> Result<Response, ApiError> {
    let page = query.read::<PageQuery>()?.page(Order::Asc)?;
    let listed = state.app.list_agents(&caller, &page).await?;
    reply::json(StatusCode::OK, &AgentList::from(listed))
}

/// Which version of an agent.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AgentQuery {
    /// A version; the current one when left out.
    #[param(value_type = Option<i32>, minimum = 1)]
    version: Option<String>,
}

/// Get an agent
///
/// Gives the agent at its current version, or at the one that `version` names. Archived agents can
/// be read; `archived_at` is set on them.
#[utoipa::path(get, path = "/v1/agents/{agent_id}", operation_id = "get_agent", tag = "agents",
    params(("agent_id" = AgentId, Path, description = "The agent."), AgentQuery),
    responses((status = 200, description = "The agent.", body = Agent)))]
pub async fn get_agent(
    State(state): State<ApiState>,
    caller: Authenticated,
    agent_id: PathId<AgentId>,
    query: Query,
) -> Result<Response, ApiError> {
    let agent_id = agent_id.id()?;
    let must = "must be a version: 1 or more";
    let version = query
        .read::<AgentQuery>()
        .and_then(|query| query::parse("version", query.version.as_deref(), must));
    let version = state.agent_first(&caller, &agent_id, version).await?;
    let agent = state.app.get_agent(&caller, &agent_id, version).await?;
    reply::agent(StatusCode::OK, &Answer::new(agent))
}

/// Change an agent
///
/// A JSON Merge Patch (RFC 7386): send only the fields to change; null takes a field back to its
/// default, objects are merged, `tools` and other lists are replaced whole. Each change makes a new
/// version; without a difference nothing happens. Runs that have begun keep the version that they
/// started with. Send `If-Match: "3"` with the version that you read, and you get 409
/// `version_conflict` instead of overwriting somebody else's change.
#[utoipa::path(patch, path = "/v1/agents/{agent_id}", operation_id = "update_agent", tag = "agents",
    params(("agent_id" = AgentId, Path, description = "The agent."),
        ("If-Match" = Option<String>, Header, description = "The version that the change was made for, in quotes.", example = "\"3\"")),
    request_body = UpdateAgentRequest,
    responses((status = 200, description = "The agent at its current version.", body = Agent)))]
pub async fn update_agent(
    State(state): State<ApiState>,
    caller: Authenticated,
    agent_id: PathId<AgentId>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(UPDATE, body.value())?;
    let if_match = if_match(&headers)?;
    let answer = match state.app.find_key(&caller, key.as_ref()).await? {
        Some(resource) => Answer::replay(state.app.replayed_agent(&caller, &resource).await?),
        None => {
            let patch = AgentPatch { patch: body.document()?, if_match };
            state.app.patch_agent(&caller, &agent_id.id()?, &patch, key.as_ref()).await?
        }
    };
    reply::agent(StatusCode::OK, &answer)
}

/// The version in `If-Match`; `*` is any, which is what nothing means too.
fn if_match(headers: &HeaderMap) -> Result<Option<i32>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    version.and_then(|version| version.parse().ok()).map(Some).ok_or_else(|| {
        let message = "If-Match must be one version in quotes, for example \"3\".";
        ApiError::new(ErrorCode::InvalidHeader, message)
    })
}

/// Archive an agent
///
/// Takes the agent out of use: it can still be read, is not listed any more, and new runs of it get
/// 409 `agent_archived`. Runs that have begun go on. There is no way back, and the `agent_id` is not
/// free again. Archiving again is fine.
#[utoipa::path(delete, path = "/v1/agents/{agent_id}", operation_id = "archive_agent", tag = "agents",
    params(("agent_id" = AgentId, Path, description = "The agent.")),
    responses((status = 204, description = "The agent is archived.")))]
pub async fn archive_agent(
    State(state): State<ApiState>,
    caller: Authenticated,
    agent_id: PathId<AgentId>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let key = body.keyed().key(ARCHIVE, body.value())?;
    if state.app.find_key(&caller, key.as_ref()).await?.is_some() {
        return Ok(reply::no_content(&Answer::replay(())));
    }
    let agent_id = agent_id.id()?;
    state.agent_first(&caller, &agent_id, body.nothing()).await?;
    let answer = state.app.archive_agent(&caller, &agent_id, key.as_ref()).await?;
    Ok(reply::no_content(&answer))
}

/// List the versions of an agent
///
/// Every change of an agent is kept. Call this to see what changed, or to find out what a run with
/// an older `agent_version` was told. Oldest first; the ids of this list are version numbers.
#[utoipa::path(get, path = "/v1/agents/{agent_id}/versions", operation_id = "list_agent_versions", tag = "agents",
    params(("agent_id" = AgentId, Path, description = "The agent."), PageQuery),
    responses((status = 200, description = "A page of versions.", body = AgentVersionList)))]
pub async fn list_agent_versions(
    State(state): State<ApiState>,
    caller: Authenticated,
    agent_id: PathId<AgentId>,
    query: Query,
) -> Result<Response, ApiError> {
    let agent_id = agent_id.id()?;
    let page = query.read::<PageQuery>().and_then(|query| query.page(Order::Asc));
    let page = state.agent_first(&caller, &agent_id, page).await?;
    let listed = state.app.list_agent_versions(&caller, &agent_id, &page).await?;
    reply::json(StatusCode::OK, &AgentVersionList::from(listed))
}
