//! Agents that call agents: a tree of runs, each with a log of its own, that lives and ends as one.

mod cancels;
mod ceilings;
mod kills;
mod nodes;
mod parked;
mod pure;
mod tree;

use serde_json::{Value, json};

use crate::support::client::{Client, Frame, log_of};

/// Prices that make every cost visible: two micro-dollars a token in, ten out.
const YAML: &str = r#"
providers:
  builtin:
    prices: { "*": { input_usd_per_million: 2.0, output_usd_per_million: 10.0 } }
"#;

/// An agent that plays a script and may call these agents, each by a tool of its name, and sleep.
fn caller(agent_id: &str, callees: &[&str], script: Value) -> Value {
    let mut tools: Vec<Value> = callees
        .iter()
        .map(|callee| {
            json!({"type": "agent", "name": callee, "agent_id": callee, "timeout_seconds": 600})
        })
        .collect();
    tools.push(json!({"type": "builtin", "name": "sleep", "timeout_seconds": 600}));
    json!({"agent_id": agent_id, "model": "builtin/script", "tools": tools, "script": script})
}

/// A call of an agent's tool.
fn call(tool: &str) -> Value {
    json!({"tool": tool, "arguments": {"input": format!("Do it, {tool}.")}})
}

/// Words that take a while: so many, so many milliseconds apart.
fn words(count: usize, chunk_delay_ms: u64) -> Value {
    let text: Vec<String> = (0..count).map(|n| format!("word{n}")).collect();
    json!({"text": text.join(" "), "chunk_delay_ms": chunk_delay_ms})
}

async fn add(client: &Client, agents: &[Value]) {
    for agent in agents {
        client.post("/v1/agents", agent).await.expect(201);
    }
}

/// Three levels: `top` calls `mid` twice at once, `mid` calls `leaf` twice at once, a leaf does `work`.
async fn add_tree(client: &Client, work: Value) {
    add_agents_of_a_tree(client, ["top", "mid", "leaf"], work).await;
}

/// The same, of agents whose names begin with this and a dash.
async fn add_tree_of(client: &Client, name: &str, work: Value) {
    let names = ["top", "mid", "leaf"].map(|agent| format!("{name}-{agent}"));
    add_agents_of_a_tree(client, names.each_ref().map(String::as_str), work).await;
}

async fn add_agents_of_a_tree(client: &Client, [top, mid, leaf]: [&str; 3], work: Value) {
    let two = |who: &str, tool: &str| {
        json!([{"text": format!("{who} asks"), "tool_calls": [call(tool), call(tool)]},
            {"text": format!("{who} is done")}])
    };
    let agents = [
        caller(leaf, &[], json!([work])),
        caller(mid, &[leaf], two(mid, leaf)),
        caller(top, &[mid], two(top, mid)),
    ];
    add(client, &agents).await;
}

/// The runs of a tree of [`add_tree`] that has got everything.
const TREE: usize = 7;

async fn start(client: &Client, agent_id: &str) -> String {
    let path = format!("/v1/agents/{agent_id}/runs");
    id(&client.post(&path, &json!({"input": "Go"})).await.expect(202))
}

fn id(run: &Value) -> String {
    run["run_id"].as_str().expect("run_id").to_owned()
}

async fn get(client: &Client, run_id: &str) -> Value {
    client.get(&format!("/v1/runs/{run_id}")).await.expect(200)
}

async fn children(client: &Client, run_id: &str) -> Vec<Value> {
    let path = format!("/v1/runs?parent_run_id={run_id}&limit=100&order=asc");
    client.get(&path).await.expect(200)["data"].as_array().expect("data").clone()
}

/// A run and all below it, parents before their children.
async fn family(client: &Client, run_id: &str) -> Vec<Value> {
    let mut all = vec![get(client, run_id).await];
    let mut next = 0;
    while let Some(run) = all.get(next) {
        let below = children(client, &id(run)).await;
        all.extend(below);
        next += 1;
    }
    all
}

async fn log(client: &Client, run_id: &str) -> Vec<Frame> {
    log_of(&client.events(run_id, 0).await.rest().await)
}

fn count(log: &[Frame], event: &str) -> usize {
    log.iter().filter(|frame| frame.event == event).count()
}

/// What must be true of every family that has ended: each log is whole and has one end, each call has one
/// child and one answer, and no run ended before those that it called.
async fn assert_ended_well(client: &Client, family: &[Value]) {
    for run in family {
        let run_id = id(run);
        let log = log(client, &run_id).await;
        let seqs: Vec<i64> = log.iter().map(Frame::seq).collect();
        assert_eq!(seqs, (1..=log.len() as i64).collect::<Vec<_>>(), "gap-free: {run_id}");
        assert_eq!(log.iter().filter(|frame| frame.is_final()).count(), 1, "one end: {run_id}");
        assert!(log.last().expect("an end").is_final(), "nothing after it: {run_id}");
        let mut called = Vec::new();
        for frame in log.iter().filter(|frame| frame.event == "tool_call.started") {
            let started = frame.json();
            let Some(child) = started["child_run_id"].as_str() else { continue };
            called.push(child.to_owned());
            let answers = log.iter().filter(|frame| {
                ["tool_call.completed", "tool_call.failed"].contains(&frame.event.as_str())
                    && frame.json()["call_id"] == started["call_id"]
            });
            assert_eq!(answers.count(), 1, "an answer: {run_id}");
        }
        let listed = children(client, &run_id).await;
        let mut there: Vec<String> = listed.iter().map(id).collect();
        called.sort();
        there.sort();
        assert_eq!(called, there, "a child a call: {run_id}");
        for child in listed {
            let ends = [child["completed_at"].as_str(), run["completed_at"].as_str()];
            assert!(ends[0].is_some() && ends[0] <= ends[1], "{child} ends before {run}");
        }
    }
}
