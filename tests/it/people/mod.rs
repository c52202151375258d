//! What people and programs say to runs, as users do it: a real server, real HTTP, on both databases.

mod approvals;
mod forks;
mod results;
mod steering;

use serde_json::{Value, json};

use crate::support::client::{Client, log_of};
use crate::support::model_server::{End, Gate, ModelServer, Piece, Reply};
use crate::support::server::{Server, Setup};

/// A server on this database, with nothing but the built-in models.
async fn serve(database_url: String) -> (Setup, Server) {
    let setup = Setup::new(database_url, "");
    let server = setup.start().await;
    (setup, server)
}

/// A server on this database, and a tool `wait` that answers when the gate is opened.
async fn serve_with_a_wait(database_url: String) -> (Server, ModelServer, Value, Gate) {
    let (tools, gate) = (ModelServer::start().await, Gate::new());
    let pieces = vec![Piece::Gate(gate.clone()), Piece::Bytes(b"\"at last\"".to_vec())];
    let reply = Reply::Stream { headers: Vec::new(), pieces, end: End::Clean };
    tools.answer_with(move |_| reply.clone());
    let server = Setup::new(database_url, "egress: { allow: [127.0.0.1] }\n").start().await;
    let wait =
        json!({"type": "http", "name": "wait", "url": tools.origin(), "timeout_seconds": 600});
    (server, tools, wait, gate)
}

/// An agent of these tools, which makes these calls, and then says that it is done.
async fn add_agent(client: &Client, agent_id: &str, tools: Value, calls: Value) {
    let agent = json!({
        "agent_id": agent_id, "model": "builtin/script", "tools": tools,
        "script": [{"text": "I will.", "tool_calls": calls}, {"text": "Done."}, {"text": "More."}],
    });
    client.post("/v1/agents", &agent).await.expect(201);
}

async fn start(client: &Client, agent_id: &str) -> String {
    let path = format!("/v1/agents/{agent_id}/runs");
    id(&client.post(&path, &json!({"input": "Go"})).await.expect(202))
}

/// A run that waits for somebody.
async fn parked(client: &Client, agent_id: &str) -> Value {
    let run_id = start(client, agent_id).await;
    let run = client.wait(&run_id).await;
    assert_eq!(run["status"], "requires_action", "{run}");
    run
}

fn id(run: &Value) -> String {
    run["run_id"].as_str().expect("run_id").to_owned()
}

/// The call of this tool that somebody must answer.
fn call(run: &Value, tool: &str) -> String {
    let actions = run["required_actions"].as_array().expect("actions");
    let action = actions.iter().find(|action| action["tool"] == tool);
    action.unwrap_or_else(|| panic!("nobody asks about {tool}: {run}"))["call_id"]
        .as_str()
        .expect("call_id")
        .to_owned()
}

fn approve(call_id: &str) -> Value {
    json!({"call_id": call_id, "decision": "approve"})
}

fn result(call_id: &str, result: Value) -> Value {
    json!({"call_id": call_id, "success": true, "result": result})
}

fn at(run: &Value, what: &str) -> String {
    format!("/v1/runs/{}/{what}", run["run_id"].as_str().expect("run_id"))
}

/// The events of an ended run.
async fn events(client: &Client, run_id: &str) -> Vec<Value> {
    let frames = client.events(run_id, 0).await.rest().await;
    log_of(&frames).iter().map(|frame| frame.json()).collect()
}

/// The one event of this type.
fn one<'a>(events: &'a [Value], event_type: &str) -> &'a Value {
    let found: Vec<_> = events.iter().filter(|event| event["type"] == event_type).collect();
    assert_eq!(found.len(), 1, "{event_type}: {found:?}");
    found[0]
}

fn count(events: &[Value], event_type: &str) -> usize {
    events.iter().filter(|event| event["type"] == event_type).count()
}
