//! Tools of MCP servers: a real server, scripted ones, and hostile ones, on both databases.

mod calls;
mod discovery;
mod hostile;
mod reference;
mod sessions;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::model_server::{Reply, Request};
use crate::support::server::{Server, Setup};

/// How a scripted server answers.
type Handler = Box<dyn Fn(&Request) -> Reply + Send + Sync>;

/// The servers of these tests are on this machine.
const YAML: &str = "egress: { allow: [127.0.0.1] }\n";

async fn serve(database_url: String) -> (Setup, Server) {
    let setup = Setup::new(database_url, YAML).on_a_port_that_stays();
    let server = setup.start().await;
    (setup, server)
}

/// An agent that makes these calls in its first step, and is done in its second.
fn agent(agent_id: &str, tools: &Value, calls: &Value) -> Value {
    json!({
        "agent_id": agent_id, "model": "builtin/script", "tools": tools,
        "script": [{"text": "Calling.", "tool_calls": calls}, {"text": "Done."}],
    })
}

/// A run of an agent with one tool, which it calls once: how it ended, and its log.
async fn run(client: &Client, agent_id: &str, tool: Value) -> (Value, Vec<Value>) {
    let call = format!("{}__act", tool["name"].as_str().expect("a name"));
    let agent = agent(agent_id, &json!([tool]), &json!([{"tool": call}]));
    client.post("/v1/agents", &agent).await.expect(201);
    let path = format!("/v1/agents/{agent_id}/runs");
    let run = client.post(&path, &json!({"input": "Go"})).await.expect(202);
    let end = client.wait(run["run_id"].as_str().expect("run_id")).await;
    let log = log(client, &end).await;
    (end, log)
}

async fn log(client: &Client, run: &Value) -> Vec<Value> {
    let path = format!("/v1/runs/{}/log?limit=100", run["run_id"].as_str().expect("run_id"));
    let page = client.get(&path).await.expect(200);
    page["data"].as_array().expect("events").clone()
}

/// The events of these types.
fn of<'a>(log: &'a [Value], event_type: &str) -> Vec<&'a Value> {
    log.iter().filter(|event| event["type"] == event_type).collect()
}
