//! What all operations have in common: the key, the request's id, idempotency, and useful headers.

use utoipa::PartialSchema as _;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{OpenApi, RefOr, Required, Schema};

use crate::api::pages::ListOrder;
use crate::api::v1::runs::Include;

const BEARER: &str = "bearer";

/// Adds it.
pub fn add(document: &mut OpenApi) {
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "The server's key (`STEPWELL_ADMIN_KEY`). A server without one takes requests as they are.",
    ));
    let components = document.components.get_or_insert_default();
    // utoipa refers to the types of query parameters and does not collect them.
    components.schemas.insert("ListOrder".to_owned(), ListOrder::schema());
    components.schemas.insert("Include".to_owned(), Include::schema());
    components
        .security_schemes
        .insert(BEARER.to_owned(), SecurityScheme::Http(scheme.build()).into());
    // Either with the key, or, on a server that asks for none, without.
    let none: [&str; 0] = [];
    document.security =
        Some(vec![SecurityRequirement::new(BEARER, none), SecurityRequirement::default()]);
    for (path, item) in &mut document.paths.paths {
        let reads = item.get.iter_mut().map(|operation| (operation, false));
        let writes = [&mut item.post, &mut item.patch, &mut item.delete];
        let writes = writes.into_iter().flatten().map(|operation| (operation, true));
        for (operation, is_write) in reads.chain(writes) {
            if path.starts_with("/v1/") {
                parameters(operation, is_write);
            } else {
                operation.security = Some(vec![SecurityRequirement::default()]);
            }
            headers(operation, is_write);
        }
    }
}

fn parameters(operation: &mut Operation, is_write: bool) {
    let all = operation.parameters.get_or_insert_default();
    all.iter_mut().for_each(no_null);
    if is_write {
        all.push(RefOr::T(header_parameter(
            "Idempotency-Key",
            "Makes repeating the request safe: the same key and the same request give the same \
             outcome, once. Derive it from what you want done. Kept for 7 days.",
            255,
        )));
    }
    all.push(RefOr::T(header_parameter(
        "X-Agent-Id",
        "Who you are, if you are an agent: letters, digits, `.`, `_` and `-`. It is logged.",
        128,
    )));
}

/// A header or a query can be left out; there is no null in it.
fn no_null(parameter: &mut RefOr<Parameter>) {
    let RefOr::T(parameter) = parameter else { return };
    if let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema
        && let SchemaType::Array(types) = &schema.schema_type
        && let Some(one) = types.iter().find(|kind| **kind != Type::Null)
    {
        schema.schema_type = SchemaType::Type(one.clone());
    }
}

fn header_parameter(name: &str, description: &str, max_length: usize) -> Parameter {
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(max_length));
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(text))
        .build()
}

fn header(kind: Type, description: &str) -> RefOr<Header> {
    let schema = ObjectBuilder::new().schema_type(kind);
    RefOr::T(HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build())
}

/// The headers of answers that succeed.
fn headers(operation: &mut Operation, is_write: bool) {
    let id = operation.operation_id.clone().unwrap_or_default();
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let mut put = |name: &str, kind, description| {
            response.headers.insert(name.to_owned(), header(kind, description));
        };
        put("X-Request-Id", Type::String, "Identifies the request; your own, if you sent one.");
        if is_write {
            let told = "`true` when an earlier request with the same key did it.";
            put("Idempotent-Replayed", Type::String, told);
        }
        let location = match id.as_str() {
            "create_agent" | "create_run" | "fork_run" | "create_conversation" => {
                Some("Where it is.")
            }
            "create_conversation_run" | "complete_conversation" | "steer_run" => {
                Some("Where the run is.")
            }
            "post_message" => Some("Where the conversation's messages are."),
            _ => None,
        };
        if let Some(what) = location {
            put("Location", Type::String, what);
        }
        if matches!(id.as_str(), "create_agent" | "get_agent" | "update_agent") {
            put("ETag", Type::String, "The version, for `If-Match`.");
        }
        if id == "get_run" {
            put("ETag", Type::String, "For `If-None-Match`.");
        }
        if id == "create_run" && status == "200" {
            put("Preference-Applied", Type::String, "How long the answer was held back at most.");
        }
        // Whatever answers with a run that is not over yet.
        let tells_a_run = matches!(
            id.as_str(),
            "create_run"
                | "fork_run"
                | "cancel_run"
                | "create_conversation_run"
                | "complete_conversation"
                | "post_tool_result"
                | "decide_approval"
                | "post_conversation_tool_result"
        );
        if tells_a_run && status == "202" {
            put("Retry-After", Type::Integer, "When to look again, in seconds.");
        }
    }
}
