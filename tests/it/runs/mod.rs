//! Runs as users see them: a real server, real HTTP, on both databases.

mod bounds;
mod cancel;
mod create;
mod follow;
mod idempotency;
mod recover;
pub mod retention;
mod spec;
mod unknown;
mod window;
mod wires;

use serde_json::{Value, json};

use crate::support::server::{Server, Setup};

/// Prices that make every cost visible: two micro-dollars a token in, ten out.
const YAML: &str = r#"
providers:
  builtin:
    prices: { "*": { input_usd_per_million: 2.0, output_usd_per_million: 10.0 } }
"#;

/// A server on this database, with nothing but the built-in models.
async fn serve(database_url: String) -> (Setup, Server) {
    let setup = Setup::new(database_url, YAML);
    let server = setup.start().await;
    (setup, server)
}

/// An agent that plays a script.
fn scripted(agent_id: &str, script: &Value) -> Value {
    json!({
        "agent_id": agent_id,
        "model": "builtin/script",
        "tools": [
            {"type": "builtin", "name": "current_time"},
            {"type": "builtin", "name": "echo"},
            {"type": "builtin", "name": "sleep"},
        ],
        "script": script,
    })
}

/// Words that take a while: so many, so many milliseconds apart.
fn slow_words(words: usize, chunk_delay_ms: u64) -> Value {
    let text: Vec<String> = (0..words).map(|n| format!("word{n}")).collect();
    json!({"text": text.join(" "), "chunk_delay_ms": chunk_delay_ms})
}

fn id(run: &Value) -> String {
    run["run_id"].as_str().expect("run_id").to_owned()
}
