//! `builtin/echo`: says what it was told, word by word.

use async_trait::async_trait;

use super::{Model, Show, tokens};
use crate::domain::model::{FinishReason, ModelAnswer, ModelRequest, Turn};
use crate::domain::retry::ModelFailure;
use crate::domain::usage::Usage;

/// The model. It never fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo;

#[async_trait]
impl Model for Echo {
    async fn call(
        &self,
        request: &ModelRequest,
        show: &mut dyn Show,
    ) -> Result<ModelAnswer, ModelFailure> {
        let last = request.turns.iter().rev().find_map(|turn| match turn {
            Turn::User(content) => Some(content.text()),
            Turn::System(_) | Turn::Assistant { .. } | Turn::Tool { .. } => None,
        });
        let text = last.unwrap_or_default();
        for word in text.split_inclusive(char::is_whitespace) {
            show.text(word);
            if show.is_full() {
                show.room().await;
            }
        }
        let mut answer = ModelAnswer {
            content: text.into_owned(),
            reasoning: String::new(),
            tool_calls: Vec::new(),
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            provider_state: None,
        };
        answer.usage = tokens::in_words(request, &answer);
        Ok(answer)
    }
}
