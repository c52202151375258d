//! Tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Tokens used, as the provider counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompts, cached ones included.
    pub input_tokens: u64,
    /// Those of `input_tokens` that the provider read from its cache.
    pub cached_input_tokens: u64,
    /// Tokens that the model wrote, reasoning included.
    pub output_tokens: u64,
    /// Those of `output_tokens` that were reasoning.
    pub reasoning_tokens: u64,
    /// `input_tokens` + `output_tokens`.
    pub total_tokens: u64,
}

impl Usage {
    /// From counts; the total follows from them.
    pub fn new(input: u64, cached: u64, output: u64, reasoning: u64) -> Self {
        Self {
            input_tokens: input,
            cached_input_tokens: cached.min(input),
            output_tokens: output,
            reasoning_tokens: reasoning.min(output),
            total_tokens: input.saturating_add(output),
        }
    }

    /// The sum of two usages.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self::new(
            self.input_tokens.saturating_add(other.input_tokens),
            self.cached_input_tokens.saturating_add(other.cached_input_tokens),
            self.output_tokens.saturating_add(other.output_tokens),
            self.reasoning_tokens.saturating_add(other.reasoning_tokens),
        )
    }
}
