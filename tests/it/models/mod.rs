//! The models' room, over real sockets.

mod answers;
mod builtin;
mod faults;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Map;
use stepwell::domain::message::Content;
use stepwell::domain::model::{ModelAnswer, ModelName, ModelRequest, ToolChoice, Turn};
use stepwell::domain::retry::ModelFailure;
use stepwell::models::{Model, Models, Show, Timeouts, Wire};

use crate::support::model_server::{Gate, ModelServer, Reply, anthropic, openai};

/// What was shown, piece by piece.
#[derive(Debug, Default)]
struct Shown {
    text: Vec<String>,
    reasoning: Vec<String>,
    /// How long the next wait for room takes; there is room when it is none.
    busy: Option<Duration>,
    /// Opened by the first piece of text.
    opens: Option<Gate>,
}

impl Show for Shown {
    fn text(&mut self, piece: &str) {
        self.text.push(piece.to_owned());
        if let Some(gate) = self.opens.take() {
            gate.open();
        }
    }
    fn reasoning(&mut self, piece: &str) {
        self.reasoning.push(piece.to_owned());
    }
    fn room(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            if let Some(time) = self.busy.take() {
                tokio::time::sleep(time).await;
            }
        })
    }
    fn is_full(&self) -> bool {
        self.busy.is_some()
    }
}

fn user(text: &str) -> Turn {
    Turn::User(Content::Text(text.to_owned()))
}

fn request() -> ModelRequest {
    ModelRequest {
        model: "m".to_owned(),
        turns: vec![user("What is the weather like?")],
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        temperature: None,
        top_p: None,
        max_output_tokens: 4096,
        reasoning_effort: None,
        provider_options: Map::new(),
        output_schema: None,
        script_turn: 0,
        script: Vec::new(),
        attempt: 1,
    }
}

/// Short enough to wait for where nothing is to run out.
const PATIENT: Timeouts = Timeouts {
    connect: Duration::from_secs(30),
    first_token: Duration::from_secs(30),
    idle: Duration::from_secs(3),
};

/// Short enough to wait for until it has run out.
const SHORT: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    first_token: Duration::from_millis(400),
    idle: Duration::from_millis(400),
};

/// A wire, and how a server of it says things.
#[derive(Clone, Copy)]
struct Kit {
    wire: Wire,
    text: fn(&str) -> Reply,
    calls: fn(&[(&str, &str)]) -> Reply,
}

const KITS: [Kit; 2] = [
    Kit { wire: Wire::OpenAi, text: openai::text, calls: openai::tool_calls },
    Kit { wire: Wire::Anthropic, text: anthropic::text, calls: anthropic::tool_calls },
];

impl Kit {
    /// The model of this wire at `server`.
    fn model(self, server: &ModelServer, timeouts: Timeouts) -> Arc<dyn Model> {
        let mut settings = server.settings("local", self.wire);
        settings.timeouts = timeouts;
        let models = Models::new(vec![settings]).unwrap();
        models.find(&ModelName::parse("local/m").unwrap()).unwrap()
    }

    /// One call that is answered by `reply`.
    async fn call(self, reply: Reply) -> (Result<ModelAnswer, ModelFailure>, Shown) {
        let server = ModelServer::start().await;
        server.script(vec![reply]);
        let mut shown = Shown::default();
        let result = self.model(&server, Timeouts::default()).call(&request(), &mut shown).await;
        (result, shown)
    }
}
