//! A model on a real socket that talks, calls a tool and talks on, until it is told that it is enough.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::model_server::{ModelServer, Reply, openai};

/// The model, its provider and its agent.
pub struct Talker {
    pub models: ModelServer,
    enough: Arc<AtomicBool>,
}

impl Talker {
    /// A model whose steps are so many words, each this long and this far from the last.
    pub async fn start(words: usize, bytes: usize, pace: Duration) -> Self {
        let models = ModelServer::start().await;
        let enough = Arc::new(AtomicBool::new(false));
        let is_enough = enough.clone();
        models.answer_with(move |_| {
            if is_enough.load(Ordering::Relaxed) {
                openai::text("Enough said.")
            } else {
                step(words, bytes).slowly(pace)
            }
        });
        Self { models, enough }
    }

    /// A configuration that knows it.
    pub fn yaml(&self) -> String {
        let base_url = self.models.base_url();
        format!("providers:\n  p: {{ kind: openai, base_url: \"{base_url}\" }}\n")
    }

    /// An agent `talker` that has no other limit than being told.
    pub fn agent() -> Value {
        json!({
            "agent_id": "talker",
            "model": "p/m",
            "tools": [{"type": "builtin", "name": "echo"}],
            "max_steps": 10_000,
            "timeout_seconds": 3_600,
        })
    }

    /// From now on a step is an answer, and its run completes.
    pub fn enough(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }
}

/// Words, and then a call.
fn step(words: usize, bytes: usize) -> Reply {
    let word = |n: usize| json!({"content": format!("{n:>bytes$} ")});
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "type": "function",
        "function": {"name": "echo", "arguments": "{\"text\": \"on\"}"}}]});
    openai::reply((0..words).map(word).chain([call]).collect(), "tool_calls")
}
