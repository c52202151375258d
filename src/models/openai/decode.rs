//! What is answered: chunks of a chat completion, or a whole one.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::super::Show;
use super::super::fault::{Fault, Told};
use super::super::json::{Count, First, Text, mend, parse, unreadable};
use super::super::sse::Event;
use super::super::stream::{Decode, MAX_ANSWER_BYTES, Stage};
use super::super::tokens;
use super::calls::{Calls, Fragment, Function};
use crate::domain::model::{FinishReason, ModelAnswer, ModelRequest};
use crate::domain::usage::Usage;

#[derive(Debug, Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    object: Option<Text<'a>>,
    #[serde(borrow, default)]
    choices: First<Choice<'a>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    /// Where there is a stream.
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    /// Where there is none. What is rare is boxed, here and below: these structs are moved about for
    /// every token.
    #[serde(borrow, default)]
    message: Option<Box<Delta<'a>>>,
    #[serde(borrow, default)]
    finish_reason: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    content: Option<Said<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Said<'a>>,
    /// What DeepSeek, vLLM and llama.cpp call the reasoning.
    #[serde(borrow, default)]
    reasoning_content: Option<Said<'a>>,
    /// What OpenRouter, Ollama and newer vLLMs call it; some send both.
    #[serde(borrow, default)]
    reasoning: Option<Said<'a>>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<Fragment<'a>>>,
    #[serde(borrow, default)]
    function_call: Option<Box<Function<'a>>>,
}

/// Text, or the list of parts that Mistral's reasoning models write.
#[derive(Debug)]
enum Said<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<SaidPart<'a>>),
}

#[derive(Debug, Deserialize)]
struct SaidPart<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    thinking: Option<Said<'a>>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct UsageTold {
    #[serde(default)]
    prompt_tokens: Count,
    #[serde(default)]
    completion_tokens: Count,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Count,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Count,
}

/// An answer, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Answer {
    content: String,
    reasoning: String,
    calls: Calls,
    finish: Option<FinishReason>,
    /// Whether the model refused. What it says then is its answer, and is shown; the run ends as if a
    /// filter had withheld the answer, because nobody should act on it.
    has_refused: bool,
    usage: UsageTold,
    bytes: usize,
    stage: Stage,
}

impl Decode for Answer {
    fn event(&mut self, event: &Event<'_>, show: &mut dyn Show) -> Result<(), Fault> {
        if event.data.trim_ascii() == b"[DONE]" {
            if self.stage == Stage::Silent {
                return Err(Fault::broken("ended its answer before it said anything"));
            }
            self.stage = Stage::Done;
            return Ok(());
        }
        if event.name == b"error" {
            return Err(Fault::in_stream(&Told::read(event.data)));
        }
        if event.data.is_empty() {
            return Ok(());
        }
        self.json(event.data, show)
    }

    fn whole(&mut self, body: &[u8], show: &mut dyn Show) -> Result<(), Fault> {
        self.json(body, show)
    }

    fn stage(&self) -> Stage {
        self.stage
    }
}

impl Answer {
    fn json(&mut self, data: &[u8], show: &mut dyn Show) -> Result<(), Fault> {
        if let Some(chunk) = parse(data) {
            return self.chunk(chunk, data, show);
        }
        let mended = mend(data).ok_or_else(unreadable)?;
        let chunk = serde_json::from_slice(&mended).map_err(|_| unreadable())?;
        self.chunk(chunk, &mended, show)
    }

    fn chunk(&mut self, chunk: Chunk<'_>, data: &[u8], show: &mut dyn Show) -> Result<(), Fault> {
        let is_error = |raw: &&RawValue| !matches!(raw.get(), r#""""# | "{}" | "false");
        if chunk.error.is_some_and(|raw| is_error(&raw))
            || chunk.object.is_some_and(|object| object.0 == "error")
        {
            return Err(Fault::in_stream(&Told::read(data)));
        }
        if let Some(usage) = chunk.usage.and_then(|raw| serde_json::from_str(raw.get()).ok()) {
            self.usage = usage;
        }
        let Some(choice) = chunk.choices.0 else { return Ok(()) };
        if let Some(delta) = choice.delta {
            self.delta(delta, show)?;
        }
        if let Some(message) = choice.message {
            self.delta(*message, show)?;
        }
        if let Some(reason) = choice.finish_reason.filter(|reason| !reason.0.is_empty()) {
            self.finish = Some(finish(&reason.0)?);
            self.stage = self.stage.max(Stage::Whole);
        }
        Ok(())
    }

    fn delta(&mut self, delta: Delta<'_>, show: &mut dyn Show) -> Result<(), Fault> {
        if let Some(said) = delta.reasoning_content.or(delta.reasoning) {
            said.pieces(true, &mut |piece, _| self.think(piece, show))?;
        }
        if let Some(said) = delta.content {
            said.pieces(false, &mut |piece, is_thought| {
                if is_thought { self.think(piece, show) } else { self.say(piece, show) }
            })?;
        }
        if let Some(said) = delta.refusal {
            said.pieces(false, &mut |piece, _| {
                self.has_refused = true;
                self.say(piece, show)
            })?;
        }
        let single = delta.function_call.map(|function| Fragment::from(*function));
        for fragment in delta.tool_calls.into_iter().flatten().chain(single) {
            let bytes = self.calls.add(fragment)?;
            self.took(bytes)?;
        }
        Ok(())
    }

    fn say(&mut self, piece: &str, show: &mut dyn Show) -> Result<(), Fault> {
        self.content.push_str(piece);
        show.text(piece);
        self.took(piece.len())
    }

    fn think(&mut self, piece: &str, show: &mut dyn Show) -> Result<(), Fault> {
        self.reasoning.push_str(piece);
        show.reasoning(piece);
        self.took(piece.len())
    }

    /// Counts what has come.
    fn took(&mut self, bytes: usize) -> Result<(), Fault> {
        self.stage = self.stage.max(Stage::Speaking);
        self.bytes += bytes;
        if self.bytes > MAX_ANSWER_BYTES {
            return Err(Fault::broken("sent an answer that is too long"));
        }
        Ok(())
    }

    /// The answer, once its stage says that it is whole.
    ///
    /// # Errors
    /// It says that it calls tools, but there are neither calls nor a text.
    pub fn into_answer(self, request: &ModelRequest) -> Result<ModelAnswer, Fault> {
        let finish_reason = match self.finish {
            _ if self.has_refused => FinishReason::ContentFilter,
            Some(cut_short @ (FinishReason::Length | FinishReason::ContentFilter)) => cut_short,
            Some(FinishReason::Stop | FinishReason::ToolCalls) | None if !self.calls.is_empty() => {
                FinishReason::ToolCalls
            }
            Some(FinishReason::ToolCalls) if self.content.is_empty() => {
                return Err(Fault::broken("asked for tool calls and named none"));
            }
            Some(FinishReason::Stop | FinishReason::ToolCalls) | None => FinishReason::Stop,
        };
        let mut answer = ModelAnswer {
            content: self.content,
            reasoning: self.reasoning,
            tool_calls: self.calls.into_requested(),
            finish_reason,
            usage: Usage::default(),
            provider_state: None,
        };
        answer.usage = self.usage.usage(request, &answer);
        Ok(answer)
    }
}

impl UsageTold {
    /// What was told, and a guess where nothing plausible was.
    fn usage(self, request: &ModelRequest, answer: &ModelAnswer) -> Usage {
        let cached = self.prompt_tokens_details.unwrap_or_default().cached_tokens.0.unwrap_or(0);
        let reasoning = self.completion_tokens_details.unwrap_or_default().reasoning_tokens.0;
        if let (Some(input), Some(output)) = (self.prompt_tokens.0, self.completion_tokens.0) {
            return Usage::new(input, cached, output, reasoning.unwrap_or(0));
        }
        let guess = tokens::guessed(request, answer);
        Usage::new(
            self.prompt_tokens.0.unwrap_or(guess.input_tokens),
            cached,
            self.completion_tokens.0.unwrap_or(guess.output_tokens),
            reasoning.unwrap_or(guess.reasoning_tokens),
        )
    }
}

/// Why the model stopped. A word that nobody knows is still an end marker.
///
/// # Errors
/// The word says that the answer was given up.
fn finish(reason: &str) -> Result<FinishReason, Fault> {
    Ok(match reason {
        "tool_calls" | "function_call" | "tool_use" => FinishReason::ToolCalls,
        "length" | "max_tokens" | "model_length" | "MAX_TOKENS" => FinishReason::Length,
        "content_filter" | "refusal" | "SAFETY" => FinishReason::ContentFilter,
        // OpenRouter, vLLM and DeepSeek, in this order.
        "error" | "abort" | "insufficient_system_resource" | "cancelled" => {
            return Err(Fault::broken("gave its answer up"));
        }
        _ => FinishReason::Stop,
    })
}

impl Said<'_> {
    /// Gives each piece that is not empty to `take`, with whether it is a thought.
    fn pieces(
        &self,
        is_thought: bool,
        take: &mut dyn FnMut(&str, bool) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        match self {
            Self::Text(text) if text.is_empty() => Ok(()),
            Self::Text(text) => take(text, is_thought),
            Self::Parts(parts) => {
                for part in parts {
                    if let Some(thinking) = &part.thinking {
                        thinking.pieces(true, take)?;
                    }
                    if let Some(Text(text)) = part.text.as_ref().filter(|t| !t.0.is_empty()) {
                        take(text, is_thought)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Said<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Said<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Said::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Said::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = list.next_element()? {
                    parts.push(part);
                }
                Ok(Said::Parts(parts))
            }
            // An object says nothing that could be shown.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Said::Parts(Vec::new()))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
