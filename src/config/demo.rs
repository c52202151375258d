//! The agent that is there without a line of configuration.

use std::collections::BTreeMap;

use serde_json::json;

use crate::domain::agent::AgentSettings;
use crate::domain::ids::AgentId;

/// Its name.
pub const DEMO: &str = "demo";

/// Adds `demo` unless the operator has one.
///
/// It thinks, looks at the clock and answers, with short pauses between its words: about two seconds
/// in all, so that somebody who watches the stream sees that it is one.
pub(super) fn add(agents: &mut BTreeMap<AgentId, AgentSettings>) {
    let settings = json!({
        "name": "Demo",
        "description": "Shows what a run looks like. It plays a script and calls no model.",
        "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "current_time"}],
        "script": [
            {
                "reasoning": "A good answer begins with knowing the time, so I look at the clock first.",
                "tool_calls": [{"tool": "current_time", "arguments": {}}],
                "delay_ms": 150,
                "chunk_delay_ms": 40,
            },
            {
                "text": "Hello! I am Stepwell's demo agent. I thought, called a tool and wrote this \
                         answer word by word. All of it is in the run's log now: read it again at \
                         any time, from any event.",
                "delay_ms": 150,
                "chunk_delay_ms": 30,
            },
        ],
    });
    // Both are constants; a test makes sure that they are what they should be.
    if let (Ok(agent_id), Ok(settings)) = (DEMO.parse(), serde_json::from_value(settings)) {
        agents.entry(agent_id).or_insert(settings);
    }
}
