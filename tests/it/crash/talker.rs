//! A model on a real socket that talks, calls a tool and talks on, until it is told that it is enough.
//!
//! Each word says which answer it is of, and its place in it: `r7w3`. So what a log shows can be
//! traced: words of an answer come in their order, and none comes after a later answer has begun.
//! The judge holds every log against that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
        let answers = AtomicUsize::new(0);
        models.answer_with(move |_| {
            let answer = answers.fetch_add(1, Ordering::Relaxed);
            if is_enough.load(Ordering::Relaxed) {
                openai::text("Enough said.")
            } else {
                step(answer, words, bytes).slowly(pace)
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

/// Words of this answer, each padded to so many bytes, and then a call.
pub fn step(answer: usize, words: usize, bytes: usize) -> Reply {
    let word = |n: usize| json!({"content": format!("{:<bytes$} ", format!("r{answer}w{n}"))});
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "type": "function",
        "function": {"name": "echo", "arguments": "{\"text\": \"on\"}"}}]});
    openai::reply((0..words).map(word).chain([call]).collect(), "tool_calls")
}

/// What is wrong with the order of the words that a log shows; `None` if nothing is.
pub fn disorder(text: &str) -> Option<String> {
    let mut last: Option<(usize, usize)> = None;
    for word in text.split_ascii_whitespace() {
        let place = word.strip_prefix('r').and_then(|place| place.split_once('w'));
        let Some((Ok(answer), Ok(n))) = place.map(|(answer, n)| (answer.parse(), n.parse())) else {
            continue;
        };
        let follows = match last {
            Some((same, before)) if same == answer => n == before + 1,
            Some((earlier, _)) => answer > earlier && n == 0,
            None => n == 0,
        };
        if !follows {
            return Some(format!("r{answer}w{n} came after {last:?}"));
        }
        last = Some((answer, n));
    }
    None
}

#[test]
fn words_that_are_lost_doubled_or_of_another_time_are_found() {
    assert_eq!(disorder("r0w0 r0w1 r3w0 r3w1 Enough said."), None);
    for text in ["r0w0 r0w2", "r0w0 r0w0", "r1w0 r0w1", "r0w0 r1w0 r0w1", "r0w1", "r0w0 r1w1"] {
        assert!(disorder(text).is_some(), "{text}");
    }
}
