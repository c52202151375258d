//! `builtin/script`: plays a part that its agent's author wrote, failures included.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use super::fault::{Fault, Told};
use super::{Model, Show, Timeouts, tokens};
use crate::domain::agent::{FailureKind as Scripted, ScriptFailure, ScriptTurn};
use crate::domain::model::{BUILTIN, FinishReason, ModelAnswer, ModelRequest, RequestedCall};
use crate::domain::retry::{FailureKind, ModelFailure};
use crate::domain::usage::Usage;

/// The model.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// How long a turn hangs that is to hang, before it is given up.
    pub first_token: Duration,
}

impl Default for Script {
    fn default() -> Self {
        Self { first_token: Timeouts::default().first_token }
    }
}

#[async_trait]
impl Model for Script {
    async fn call(
        &self,
        request: &ModelRequest,
        show: &mut dyn Show,
    ) -> Result<ModelAnswer, ModelFailure> {
        let silence = ScriptTurn::default();
        let turn = request.script.get(request.script_turn).unwrap_or(&silence);
        let failure = turn.fail.filter(|fail| {
            let attempt = u32::try_from(request.attempt).unwrap_or(1);
            fail.times.is_none_or(|times| attempt <= times)
        });
        pause(turn.delay_ms).await;
        if let Some(failure) = failure {
            return Err(self.fail(turn, failure, show).await.at(BUILTIN));
        }
        let reasoning = turn.reasoning.as_deref().unwrap_or_default();
        let content = turn.text.as_deref().unwrap_or_default();
        say(words(reasoning).map(Piece::Reasoning), turn, show).await;
        say(words(content).map(Piece::Text), turn, show).await;
        Ok(answer(turn, request))
    }
}

impl Script {
    async fn fail(&self, turn: &ScriptTurn, failure: ScriptFailure, show: &mut dyn Show) -> Fault {
        match failure.kind {
            Scripted::Status => {
                let retry_after = failure.retry_after_seconds.map(Duration::from_secs);
                Fault::of_status(failure.status.unwrap_or(500), retry_after, &Told::default())
            }
            Scripted::Hang => {
                sleep(self.first_token).await;
                Fault::new(FailureKind::Timeout, "did not begin to answer in time")
            }
            Scripted::Reset | Scripted::Cut => {
                let text = turn.text.as_deref().unwrap_or_default();
                // The first half: at least a word, if there is one, and never all of several.
                let half = words(text).count().div_ceil(2);
                say(words(text).take(half).map(Piece::Text), turn, show).await;
                if failure.kind == Scripted::Cut {
                    Fault::cut()
                } else {
                    Fault::broken("broke the connection in the middle of its answer")
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Piece<'a> {
    Text(&'a str),
    Reasoning(&'a str),
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(char::is_whitespace)
}

async fn say<'a>(
    pieces: impl Iterator<Item = Piece<'a>> + Send,
    turn: &ScriptTurn,
    show: &mut dyn Show,
) {
    for (n, piece) in pieces.enumerate() {
        if n > 0 {
            pause(turn.chunk_delay_ms).await;
        }
        match piece {
            Piece::Text(word) => show.text(word),
            Piece::Reasoning(word) => show.reasoning(word),
        }
        if show.is_full() {
            show.room().await;
        }
    }
}

/// Waits, but does not even yield where there is nothing to wait for.
async fn pause(ms: Option<u64>) {
    if let Some(ms) = ms.filter(|ms| *ms > 0) {
        sleep(Duration::from_millis(ms)).await;
    }
}

fn answer(turn: &ScriptTurn, request: &ModelRequest) -> ModelAnswer {
    let tool_calls: Vec<RequestedCall> = turn
        .tool_calls
        .iter()
        .map(|call| RequestedCall {
            tool: call.tool.clone(),
            // A script may write arguments that are no object, to see what becomes of them.
            arguments: match &call.arguments {
                serde_json::Value::Null => "{}".to_owned(),
                serde_json::Value::String(raw) => raw.clone(),
                arguments => arguments.to_string(),
            },
        })
        .collect();
    let finish_reason =
        if tool_calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls };
    let mut answer = ModelAnswer {
        content: turn.text.clone().unwrap_or_default(),
        reasoning: turn.reasoning.clone().unwrap_or_default(),
        tool_calls,
        finish_reason,
        usage: Usage::default(),
        provider_state: None,
    };
    answer.usage = match turn.usage {
        Some(usage) => usage.usage(),
        None => tokens::in_words(request, &answer),
    };
    answer
}
