//! Conversations as users have them: a real server, real HTTP, on both databases.

mod busy;
mod complete;
mod erase;
mod events;
mod history;
mod hostile;
mod judge;
mod keys;
mod kills;
mod messages;
mod money;
mod resource;
mod results;
mod retention;
mod time;
mod turns;
mod window;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _};

use crate::support::client::Client;
use crate::support::model_server::{ModelServer, Request};
use crate::support::postgres;
use crate::support::server::{Server, Setup};

/// Two micro-dollars a token in, ten out.
const YAML: &str = r#"
providers:
  builtin:
    prices: { "*": { input_usd_per_million: 2.0, output_usd_per_million: 10.0 } }
"#;

/// A server on this database, with the built-in models and an agent `a` that says yes.
async fn serve(database_url: String) -> (Setup, Server) {
    let setup = Setup::new(database_url, YAML);
    let server = setup.start().await;
    server.client.post("/v1/agents", &agent("a")).await.expect(201);
    (setup, server)
}

/// A server whose agent `a` is played by a model server that speaks `openai` or `anthropic`.
async fn serve_with_model(database_url: String, kind: &str) -> (Server, ModelServer) {
    let models = ModelServer::start().await;
    let base_url = models.base_url();
    let yaml = format!("providers:\n  p: {{ kind: {kind}, base_url: \"{base_url}\" }}\n");
    let server = Setup::new(database_url, yaml).start().await;
    let mut agent = agent("a");
    agent["model"] = json!("p/m");
    server.client.post("/v1/agents", &agent).await.expect(201);
    (server, models)
}

fn agent(agent_id: &str) -> Value {
    json!({
        "agent_id": agent_id, "model": "builtin/script", "script": [{"text": "Yes."}],
        "tools": [{"type": "builtin", "name": "echo"}, {"type": "builtin", "name": "sleep"}],
    })
}

/// A conversation with agent `a`, and what else is said about it.
async fn conversation(client: &Client, more: Value) -> String {
    let mut body = json!({"agent_id": "a"});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let made = client.post("/v1/conversations", &body).await.expect(201);
    made["conversation_id"].as_str().expect("conversation_id").to_owned()
}

/// Where something of a conversation is.
fn at(conversation_id: &str, what: &str) -> String {
    match what {
        "" => format!("/v1/conversations/{conversation_id}"),
        what => format!("/v1/conversations/{conversation_id}/{what}"),
    }
}

fn id(run: &Value) -> String {
    run["run_id"].as_str().unwrap_or_else(|| panic!("no run_id: {run}")).to_owned()
}

async fn get(client: &Client, conversation_id: &str) -> Value {
    client.get(&at(conversation_id, "")).await.expect(200)
}

/// A run in a conversation, which may wait for its turn.
async fn start(client: &Client, conversation_id: &str, body: &Value) -> String {
    id(&client.post(&at(conversation_id, "runs"), body).await.expect(202))
}

/// A turn to its end, or until it waits for somebody.
async fn turn(client: &Client, conversation_id: &str, body: &Value) -> Value {
    let run_id = start(client, conversation_id, body).await;
    client.wait(&run_id).await
}

/// A turn that is said so much, and ends well.
async fn say(client: &Client, conversation_id: &str, input: &str) -> Value {
    let run = turn(client, conversation_id, &json!({"input": input})).await;
    assert_eq!(run["status"], "completed", "{run}");
    run
}

/// What a run of agent `a` is told to do so that it waits for its caller, who has the tools `ask` and
/// `tell`.
fn asking(tools: &[&str]) -> Value {
    let calls: Value = tools.iter().map(|t| json!({"tool": t, "arguments": {"q": t}})).collect();
    let mine = |name: &str| json!({"name": name, "description": "Mine.", "parameters": {}});
    json!({
        "input": "Ask.",
        "config": {
            "client_tools": [mine("ask"), mine("tell")],
            "script": [{"text": "Wait.", "tool_calls": calls}, {"text": "Done."}],
        },
    })
}

/// A run that is the conversation's active one until somebody answers.
async fn parked(client: &Client, conversation_id: &str, tools: &[&str]) -> Value {
    let run = turn(client, conversation_id, &asking(tools)).await;
    assert_eq!(run["status"], "requires_action", "{run}");
    run
}

/// The open call of this tool.
fn call(run: &Value, tool: &str) -> String {
    let actions = run["required_actions"].as_array().expect("actions");
    let action = actions.iter().find(|action| action["tool"] == tool).expect("an open call");
    action["call_id"].as_str().expect("call_id").to_owned()
}

/// Answers the one call that a run waits for, and waits for its end.
async fn release(client: &Client, run: &Value) -> Value {
    let body = json!({"call_id": call(run, "ask"), "success": true, "result": "Fine."});
    let path = format!("/v1/runs/{}/tool-results", id(run));
    client.post(&path, &body).await.expect(202);
    client.wait(&id(run)).await
}

/// All messages, whose indexes are 0, 1, 2 … whatever happened.
async fn messages(client: &Client, conversation_id: &str) -> Vec<Value> {
    let path = at(conversation_id, "messages?limit=100");
    let page = client.get(&path).await.expect(200);
    let list = page["data"].as_array().expect("data").clone();
    let indexes: Vec<i64> = list.iter().filter_map(|m| m["message_index"].as_i64()).collect();
    assert_eq!(indexes, (0..list.len() as i64).collect::<Vec<_>>(), "{list:?}");
    let ids: BTreeSet<&str> = list.iter().filter_map(|m| m["message_id"].as_str()).collect();
    assert_eq!(ids.len(), list.len(), "every message has an id of its own");
    list
}

/// Who says what.
fn said(messages: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    messages.iter().map(|m| (text(&m["role"]), text(&m["content"]))).collect()
}

fn pairs(said: &[(&str, &str)]) -> Vec<(String, String)> {
    said.iter().map(|(role, text)| ((*role).to_owned(), (*text).to_owned())).collect()
}

/// What a model was sent.
fn prompt(request: &Request) -> Vec<(String, String)> {
    said(request.body["messages"].as_array().expect("messages"))
}

/// How many rows a table has, behind the server's back.
async fn rows(database_url: &str, table: &str) -> i64 {
    let sql = AssertSqlSafe(format!("select count(*) from {table}"));
    if database_url.starts_with("sqlite:") {
        let mut file = sqlx::SqliteConnection::connect(database_url).await.expect("the file");
        let count = sqlx::query_scalar(sql).fetch_one(&mut file).await.expect("a count");
        file.close().await.expect("closed");
        return count;
    }
    let mut admin = postgres::connect(database_url).await;
    sqlx::query_scalar(sql).fetch_one(&mut admin).await.expect("a count")
}

#[track_caller]
fn assert_refused(answer: &crate::support::client::Answer, status: u16, error: &str) {
    let told = (answer.status, answer.body["error"].as_str().unwrap_or_default());
    assert_eq!(told, (status, error), "{}", answer.body);
}
