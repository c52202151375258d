//! The edge under abuse: clients that are slow, silent, dead, many, or send garbage.
//!
//! Each test starts a real server and talks to it over sockets of its own ([`wire`]), since no client
//! library would send what is sent here. What was done and found is a line of the report, as in the
//! crash suite; they measure seconds, so they run apart from other tests too.

mod caps;
mod dead_readers;
mod garbage;
mod herd;
mod http2;
mod silence;
mod slow;
mod wire;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::server::Folder;

/// The errors of the API, as `openapi.yaml` lists them.
fn is_documented_error(body: &Value, status: u16) -> bool {
    use stepwell::api::ErrorCode;
    let code = |code: &&ErrorCode| serde_json::to_value(code).is_ok_and(|c| c == body["error"]);
    ErrorCode::ALL.iter().find(code).is_some_and(|code| code.status().as_u16() == status)
        && body["message"].is_string()
        && body["details"].is_object()
        && body["suggested_action"].is_string()
        && body["retry"].is_boolean()
        && body["request_id"].as_str().is_some_and(|id| !id.is_empty())
}

/// A database in this folder.
fn sqlite(folder: &Folder) -> String {
    format!("sqlite://{}", folder.path().join("stepwell.db").display())
}

/// An agent whose only turn begins after so long.
async fn sleeper(client: &Client, seconds: u64) {
    let script = json!([{"text": "Good morning.", "delay_ms": seconds * 1_000}]);
    let agent = json!({"agent_id": "sleeper", "model": "builtin/script", "script": script});
    client.post("/v1/agents", &agent).await.expect(201);
}

/// Creates a run of an agent.
async fn create(client: &Client, agent_id: &str) -> String {
    let path = format!("/v1/agents/{agent_id}/runs");
    let run = client.post(&path, &json!({"input": "Go"})).await.expect(202);
    run["run_id"].as_str().expect("run_id").to_owned()
}
