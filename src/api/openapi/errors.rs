//! The errors of every operation: those that all have, and a table of each one's own.

use std::collections::BTreeMap;

use serde_json::{Map, json};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response};
use utoipa::{PartialSchema as _, ToSchema as _};

use crate::api::error::{ApiError, ErrorBody, ErrorCode};

use ErrorCode as E;

/// What any operation under `/v1` may answer.
const ALL: [E; 7] = [
    E::Unauthenticated,
    E::NotAcceptable,
    E::UriTooLong,
    E::HeadersTooLarge,
    E::Internal,
    E::Unavailable,
    E::StorageUnavailable,
];

/// What an operation that takes a body may answer beside.
const WRITES: [E; 6] = [
    E::InvalidJson,
    E::InvalidHeader,
    E::BodyTooLarge,
    E::UnsupportedMediaType,
    E::UnknownField,
    E::IdempotencyKeyReused,
];

/// What each operation may answer beside those.
fn own(operation_id: &str) -> &'static [E] {
    match operation_id {
        "create_agent" => {
            &[E::AlreadyExists, E::ValidationFailed, E::DestinationNotAllowed, E::NotFound]
        }
        "list_agents" | "list_runs" => &[E::InvalidCursor, E::ValidationFailed, E::UnknownField],
        "get_agent" | "get_run" => &[E::NotFound, E::ValidationFailed, E::UnknownField],
        "update_agent" => &[
            E::NotFound,
            E::ReadOnly,
            E::AgentArchived,
            E::VersionConflict,
            E::ValidationFailed,
            E::DestinationNotAllowed,
        ],
        "archive_agent" => &[E::NotFound, E::ReadOnly, E::ValidationFailed],
        "list_agent_versions" | "list_run_log" | "list_run_steps" | "stream_run_events" => {
            &[E::NotFound, E::InvalidCursor, E::ValidationFailed, E::UnknownField]
        }
        "create_conversation" => &[E::NotFound, E::AgentArchived, E::ValidationFailed],
        "list_conversations" => &[E::InvalidCursor, E::ValidationFailed, E::UnknownField],
        "get_conversation" => &[E::NotFound, E::UnknownField],
        "update_conversation" | "close_conversation" => &[E::NotFound, E::ValidationFailed],
        "delete_conversation" => &[E::NotFound, E::ConversationBusy, E::ValidationFailed],
        "keep_conversation" => {
            &[E::NotFound, E::ConversationClosed, E::ConversationExpired, E::ValidationFailed]
        }
        "post_message" => &[
            E::NotFound,
            E::ConversationBusy,
            E::ConversationClosed,
            E::ConversationExpired,
            E::AlreadyDecided,
            E::RunEnded,
            E::ValidationFailed,
        ],
        "list_messages" | "stream_conversation_events" => {
            &[E::NotFound, E::InvalidCursor, E::ValidationFailed, E::UnknownField]
        }
        "create_run" | "create_conversation_run" | "complete_conversation" => &[
            E::NotFound,
            E::AgentArchived,
            E::ConversationBusy,
            E::ConversationClosed,
            E::ConversationExpired,
            E::InvalidCursor,
            E::BudgetExhausted,
            E::ValidationFailed,
        ],
        "cancel_run" => &[E::NotFound, E::ValidationFailed],
        "post_tool_result" | "post_conversation_tool_result" | "decide_approval" => {
            &[E::NotFound, E::AlreadyDecided, E::RunEnded, E::ValidationFailed]
        }
        "fork_run" => &[E::NotFound, E::AgentArchived, E::ValidationFailed],
        "steer_run" => &[E::NotFound, E::RunEnded, E::ValidationFailed],
        "list_approvals" => &[E::InvalidCursor, E::ValidationFailed, E::UnknownField],
        "delete_run" => &[E::NotFound, E::RunActive, E::ValidationFailed],
        "get_readiness" => &[E::Unavailable],
        _ => &[],
    }
}

/// Adds every operation's errors.
pub fn add(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    components.schemas.insert("ApiError".to_owned(), ErrorBody::schema());
    let mut referred = Vec::new();
    ErrorBody::schemas(&mut referred);
    components.schemas.extend(referred);
    for (path, item) in &mut document.paths.paths {
        let reads = item.get.iter_mut().map(|operation| (operation, false));
        let writes = [&mut item.post, &mut item.patch, &mut item.delete];
        let writes = writes.into_iter().flatten().map(|operation| (operation, true));
        for (operation, takes_body) in reads.chain(writes) {
            let mut codes = Vec::new();
            if path.starts_with("/v1/") {
                codes.extend(ALL);
                if takes_body {
                    codes.extend(WRITES);
                }
            }
            codes.extend_from_slice(own(operation.operation_id.as_deref().unwrap_or_default()));
            respond(operation, &codes, &mut components.responses);
        }
    }
}

/// Operations that can fail in the same ways with a status share one response.
fn respond(operation: &mut Operation, codes: &[E], shared: &mut BTreeMap<String, RefOr<Response>>) {
    let mut by_status: BTreeMap<u16, Vec<E>> = BTreeMap::new();
    // In the order of the table, each once.
    for code in E::ALL.iter().filter(|code| codes.contains(code)) {
        by_status.entry(code.status().as_u16()).or_default().push(*code);
    }
    for (status, codes) in by_status {
        let names: Vec<String> = codes.iter().map(|code| format!("{code:?}")).collect();
        let name = names.join("Or");
        let place = RefOr::Ref(Ref::from_response_name(&name));
        operation.responses.responses.insert(status.to_string(), place);
        shared.entry(name).or_insert_with(|| RefOr::T(response(&codes)));
    }
}

fn response(codes: &[E]) -> Response {
    let told: Vec<String> =
        codes.iter().map(|code| format!("`{}`: {}", word(*code), code.meaning())).collect();
    let mut response = Response::new(told.join(" "));
    let mut content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("ApiError"))));
    content.example = codes.first().and_then(|code| example(*code));
    response.content.insert("application/json".to_owned(), RefOr::T(content));
    if codes.iter().any(|code| code.retry()) {
        let seconds = ObjectBuilder::new().schema_type(Type::Integer);
        let header = HeaderBuilder::new()
            .schema(Some(seconds))
            .description(Some("Seconds to wait before the same request is sent again."));
        response.headers.insert("Retry-After".to_owned(), RefOr::T(header.build()));
    }
    response
}

fn word(code: E) -> String {
    json!(code).as_str().unwrap_or_default().to_owned()
}

fn example(code: E) -> Option<serde_json::Value> {
    let error = ApiError::new(code, code.meaning());
    let details = match code {
        E::ValidationFailed => {
            json!({"errors": [{"pointer": "/max_steps", "message": "must be 1 to 10000"}]})
        }
        E::UnknownField => json!({"pointer": "/colour", "field": "colour"}),
        _ => json!(Map::new()),
    };
    let error = error.with_details(details.as_object().cloned().unwrap_or_default());
    serde_json::to_value(error.body("req_019a0c5e7d2a7c3f8b1e2d3c4b5a6978")).ok()
}
