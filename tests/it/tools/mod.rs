//! Tools that call URLs, from the outside: a real server, real sockets, on both databases.

mod arguments;
mod effects;
mod gate;
mod secrets;

use serde_json::{Value, json};

use crate::support::client::Client;

/// Lets tools reach the servers of these tests.
const OPEN: &str = "egress: { allow: [127.0.0.1] }\n";

/// An agent that makes one call of an HTTP tool, with these fields over the usual ones, and says that
/// it is done.
fn caller(agent_id: &str, tool: Value, arguments: &Value) -> Value {
    let mut whole = json!({"type": "http", "name": "tool"});
    let fields = whole.as_object_mut().expect("an object");
    fields.extend(tool.as_object().expect("an object").clone());
    json!({
        "agent_id": agent_id,
        "model": "builtin/script",
        "tools": [whole],
        "script": [{"tool_calls": [{"tool": "tool", "arguments": arguments}]}, {"text": "Done."}],
    })
}

/// All events of a run.
async fn log(client: &Client, run_id: &str) -> Vec<Value> {
    let (mut events, mut after) = (Vec::new(), json!(0));
    loop {
        let path = format!("/v1/runs/{run_id}/log?limit=100&after={after}");
        let page = client.get(&path).await.expect(200);
        events.extend(page["data"].as_array().expect("data").iter().cloned());
        if page["has_more"] == false {
            return events;
        }
        after = page["last_id"].clone();
    }
}

/// The one event of this type.
#[track_caller]
fn only<'a>(log: &'a [Value], event_type: &str) -> &'a Value {
    let found: Vec<&Value> = log.iter().filter(|event| event["type"] == event_type).collect();
    assert_eq!(found.len(), 1, "{event_type} in {log:#?}");
    found[0]
}
