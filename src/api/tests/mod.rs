//! What is decided before a database is asked: routes, sizes, keys, media types, shapes, errors.

mod down;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::streams::{StreamLimits, Streams};
use super::{AdminKey, ApiState, router};
use crate::app::{App, Links};
use crate::clock::Clock;
use crate::domain::egress::Outbound;
use crate::domain::model::Catalogue;
use crate::log::Log;
use crate::shutdown::Tasks;

const RUN: &str = "/v1/runs/run_019a0c5e7d2a7c3f8b1e2d3c4b5a6978";

fn state() -> ApiState {
    let clock = Clock::system();
    let node_id = crate::domain::ids::NodeId::from_uuid(clock.uuid());
    let (log, _) = Log::new(down::store(), clock, node_id, 0);
    ApiState {
        app: Arc::new(App::new(
            log,
            Arc::new(Catalogue::default()),
            Outbound::default(),
            Links::default(),
        )),
        tasks: Tasks::new(),
        stop: CancellationToken::new(),
        admin_key: None,
        streams: Streams::new(StreamLimits {
            most: 10,
            most_per_workspace: 10,
            lifetime: std::time::Duration::from_secs(1),
        }),
        cors_origins: Arc::new([]),
    }
}

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answered {
    fn error(&self) -> (u16, &str) {
        (self.status.as_u16(), self.body["error"].as_str().unwrap_or("no error"))
    }
}

async fn send(state: ApiState, request: Request<Body>) -> Answered {
    let response = router(state).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 24).await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answered { status: parts.status, headers: parts.headers, body }
}

fn request(method: Method, uri: &str) -> Request<Body> {
    Request::builder().method(method).uri(uri).body(Body::empty()).unwrap()
}

fn post(uri: &str, body: impl Into<Body>) -> Request<Body> {
    let json = HeaderValue::from_static("application/json");
    let mut request = Request::builder().method(Method::POST).uri(uri);
    request = request.header(header::CONTENT_TYPE, json);
    request.body(body.into()).unwrap()
}

fn with(mut request: Request<Body>, name: &'static str, value: &'static str) -> Request<Body> {
    request.headers_mut().insert(name, HeaderValue::from_static(value));
    request
}

async fn ask(request: Request<Body>) -> Answered {
    send(state(), request).await
}

/// The documented shape, whatever layer it came from.
fn assert_shape(answered: &Answered) {
    let told = &answered.body;
    assert_eq!(answered.headers[header::CONTENT_TYPE], "application/json");
    assert!(told["message"].as_str().is_some_and(|m| !m.is_empty()), "{told}");
    assert!(told["suggested_action"].as_str().is_some_and(|m| !m.is_empty()), "{told}");
    assert!(told["details"].is_object() && told["retry"].is_boolean(), "{told}");
    assert_eq!(told["request_id"], answered.headers["x-request-id"].to_str().unwrap());
    let after = answered.headers.get(header::RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(told.get("retry_after_seconds").map(Value::to_string), after);
}

#[tokio::test]
async fn every_layer_answers_its_errors_in_the_one_shape() {
    let get = |uri: &str| request(Method::GET, uri);
    let long = format!("/v1/agents?after={}", "a".repeat(9_000));
    let mut heavy = get("/v1/agents");
    let weight = HeaderValue::try_from("x".repeat(17_000)).unwrap();
    heavy.headers_mut().insert("x-weight", weight);
    let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
    let large = "x".repeat(4 * 1024 * 1024 + 1);
    for (asked, status, code) in [
        (get("/nowhere"), 404, "not_found"),
        (get("/v1/agents/a/nothing"), 404, "not_found"),
        (get("/v1/runs/run_123"), 404, "not_found"),
        (get("/v1/runs/%ff"), 404, "not_found"),
        (get(&format!("{RUN}/steps")), 404, "not_found"),
        (request(Method::PUT, "/v1/agents"), 405, "method_not_allowed"),
        (request(Method::OPTIONS, "/v1/agents"), 405, "method_not_allowed"),
        (with(get("/v1/agents"), "accept", "text/html"), 406, "not_acceptable"),
        (post("/v1/agents", large), 413, "body_too_large"),
        (get(&long), 414, "uri_too_long"),
        (
            with(post("/v1/agents", "{}"), "content-type", "text/plain"),
            415,
            "unsupported_media_type",
        ),
        (heavy, 431, "headers_too_large"),
        (post("/v1/agents", "{"), 400, "invalid_json"),
        (post("/v1/agents", ""), 400, "invalid_json"),
        (post("/v1/agents", deep), 400, "invalid_json"),
        (post("/v1/agents", "{\"model\":\"\\ud800\"}"), 400, "invalid_json"),
        (with(post("/v1/agents", "{}"), "idempotency-key", "a b"), 400, "invalid_header"),
        (get("/v1/agents?after=NO"), 400, "invalid_cursor"),
        (get("/v1/runs?after=run_1"), 400, "invalid_cursor"),
        (get("/v1/agents?limit=0"), 422, "validation_failed"),
        (get("/v1/agents?limit=1&limit=2"), 422, "validation_failed"),
        (get("/v1/agents?after=a&before=b"), 422, "validation_failed"),
        (get("/v1/agents?colour=red"), 422, "unknown_field"),
        (get("/v1/runs?status=done"), 422, "validation_failed"),
        (get("/v1/runs?metadata=x"), 422, "validation_failed"),
        (get("/v1/runs?end_user_id=%00"), 422, "validation_failed"),
        (get("/v1/runs?created_after=today"), 422, "validation_failed"),
        (get("/v1/agents"), 503, "storage_unavailable"),
        (get("/readyz"), 503, "unavailable"),
        (get("/v1/agents/demo"), 500, "internal"),
    ] {
        let what = format!("{} {:.60}", asked.method(), asked.uri().to_string());
        let answered = ask(asked).await;
        assert_eq!(answered.error(), (status, code), "{what}: {}", answered.body);
        assert_shape(&answered);
    }
}

#[tokio::test]
async fn a_method_that_is_not_taken_is_told_which_are() {
    let answered = ask(request(Method::PUT, RUN)).await;
    let allow = answered.headers[header::ALLOW].to_str().unwrap().to_owned();
    for method in ["GET", "HEAD", "DELETE"] {
        assert!(allow.contains(method), "{allow}");
    }
}

#[tokio::test]
async fn an_agent_that_cannot_be_is_refused_with_pointers() {
    for (body, code, pointer) in [
        (json!({"agent_id": "a"}), "validation_failed", "/model"),
        (json!({"model": "builtin/echo"}), "validation_failed", "/agent_id"),
        (json!({"agent_id": "A", "model": "builtin/echo"}), "validation_failed", "/agent_id"),
        (json!({"agent_id": "a", "model": "nope/x"}), "validation_failed", "/model"),
        (
            json!({"agent_id": "a", "model": "builtin/echo", "max_steps": 0}),
            "validation_failed",
            "/max_steps",
        ),
        (
            json!({"agent_id": "a", "model": "builtin/echo", "version": 3}),
            "unknown_field",
            "/version",
        ),
        (json!([1]), "validation_failed", ""),
    ] {
        let answered = ask(post("/v1/agents", body.to_string())).await;
        assert_eq!(answered.error(), (422, code), "{body}");
        assert_shape(&answered);
        let details = &answered.body["details"];
        let at = if code == "unknown_field" {
            &details["pointer"]
        } else {
            &details["errors"][0]["pointer"]
        };
        assert_eq!(at, pointer, "{body}");
    }
}

#[tokio::test]
async fn a_request_keeps_its_own_id_only_if_it_is_sane() {
    let answered = ask(with(request(Method::GET, "/healthz"), "x-request-id", "mine-1.a_b")).await;
    assert_eq!(answered.headers["x-request-id"], "mine-1.a_b");
    for wild in ["has space", "semi;colon", ""] {
        let answered = ask(with(request(Method::GET, "/nowhere"), "x-request-id", wild)).await;
        let id = answered.headers["x-request-id"].to_str().unwrap();
        assert!(id.starts_with("req_") && id.len() == 36, "{id}");
    }
}

#[tokio::test]
async fn with_a_key_set_nothing_under_v1_is_answered_without_it() {
    let key = SecretString::from("0123456789abcdef0123456789abcdef");
    let locked = || ApiState { admin_key: Some(AdminKey::new(&key)), ..state() };
    let get = || request(Method::GET, "/v1/agents");
    for asked in [
        get(),
        with(get(), "authorization", "Bearer wrong"),
        with(get(), "authorization", "Basic 0123456789abcdef0123456789abcdef"),
        // The key comes before the media type and everything that the body may be wrong with.
        with(post("/v1/agents", "{"), "content-type", "text/plain"),
    ] {
        let answered = send(locked(), asked).await;
        assert_eq!(answered.error(), (401, "unauthenticated"));
        assert_eq!(answered.headers[header::WWW_AUTHENTICATE], "Bearer");
        assert_shape(&answered);
    }
    let right = with(get(), "authorization", "bearer 0123456789abcdef0123456789abcdef");
    assert_eq!(send(locked(), right).await.error(), (503, "storage_unavailable"));
    for open in ["/healthz", "/openapi.json", "/docs"] {
        assert_eq!(send(locked(), request(Method::GET, open)).await.status, 200, "{open}");
    }
    assert_eq!(send(locked(), request(Method::GET, "/nowhere")).await.error().0, 404);
}

#[tokio::test]
async fn the_docs_are_served_from_the_binary_and_cached_by_tag() {
    for path in ["/docs", "/docs/rapidoc-min.js", "/openapi.yaml", "/openapi.json"] {
        let answered = ask(request(Method::GET, path)).await;
        assert_eq!(answered.status, 200, "{path}");
        let mut again = request(Method::GET, path);
        again.headers_mut().insert(header::IF_NONE_MATCH, answered.headers[header::ETAG].clone());
        assert_eq!(ask(again).await.status, 304, "{path}");
    }
    let page = include_str!("../assets/docs.html");
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("//cdn"));
}

#[tokio::test]
async fn other_origins_are_let_in_only_when_they_are_named() {
    let origin = "https://app.example.com";
    let asked = || with(request(Method::GET, "/healthz"), "origin", origin);
    let allowed = header::ACCESS_CONTROL_ALLOW_ORIGIN;
    assert!(!ask(asked()).await.headers.contains_key(&allowed));
    let origins = Arc::new([HeaderValue::from_static(origin)]);
    let named = ApiState { cors_origins: origins, ..state() };
    let answered = send(named, asked()).await;
    assert_eq!(answered.headers[&allowed], origin);
    assert!(answered.headers.contains_key(header::ACCESS_CONTROL_EXPOSE_HEADERS));
}
