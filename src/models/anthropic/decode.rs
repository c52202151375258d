//! What is answered: the events of a message, or a whole one.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::Show;
use super::super::fault::{Fault, Told};
use super::super::json::{Count, Text, mend, parse, unreadable};
use super::super::sse::Event;
use super::super::stream::{Decode, MAX_ANSWER_BYTES, Stage};
use super::super::tokens;
use super::WIRE;
use crate::domain::limits;
use crate::domain::model::{FinishReason, ModelAnswer, ModelRequest, RequestedCall};
use crate::domain::usage::Usage;

/// Blocks that one answer may have.
const MAX_BLOCKS: usize = 4 * limits::MAX_CALLS_PER_STEP;

/// One event, whatever its type: an enum by tag would copy everything first. What is rare is boxed:
/// this is moved about for every token.
#[derive(Debug, Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "type")]
    kind: Text<'a>,
    #[serde(default)]
    index: Option<i64>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
    #[serde(borrow, default)]
    content_block: Option<Box<BlockTold<'a>>>,
    #[serde(borrow, default)]
    message: Option<Box<Message<'a>>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    partial_json: Option<Text<'a>>,
    #[serde(borrow, default)]
    thinking: Option<Text<'a>>,
    #[serde(borrow, default)]
    signature: Option<Text<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
struct BlockTold<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    thinking: Option<Text<'a>>,
    #[serde(borrow, default)]
    signature: Option<Text<'a>>,
    #[serde(borrow, default)]
    data: Option<Text<'a>>,
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
    #[serde(borrow, default)]
    input: Option<&'a RawValue>,
}

/// A message: its beginning in a stream, or all of it.
#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Vec<BlockTold<'a>>,
    #[serde(borrow, default)]
    stop_reason: Option<Text<'a>>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct UsageTold {
    input_tokens: Count,
    cache_creation_input_tokens: Count,
    cache_read_input_tokens: Count,
    output_tokens: Count,
}

/// A block, as far as it has come. Text blocks leave nothing behind but their text.
#[derive(Debug)]
enum Block {
    Thinking { thinking: String, signature: String },
    RedactedThinking { data: String },
    ToolUse { name: String, input: String, arguments: String },
    Other,
}

/// An answer, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Answer {
    content: String,
    reasoning: String,
    /// With their indexes.
    blocks: Vec<(i64, Block)>,
    calls: usize,
    finish: Option<FinishReason>,
    usage: UsageTold,
    bytes: usize,
    stage: Stage,
}

impl Decode for Answer {
    fn event(&mut self, event: &Event<'_>, show: &mut dyn Show) -> Result<(), Fault> {
        if event.name == b"error" {
            return Err(Fault::in_stream(&Told::read(event.data)));
        }
        if event.data.is_empty() {
            return Ok(());
        }
        if let Some(line) = parse(event.data) {
            return self.line(line, event.data, show);
        }
        let mended = mend(event.data).ok_or_else(unreadable)?;
        let line = serde_json::from_slice(&mended).map_err(|_| unreadable())?;
        self.line(line, &mended, show)
    }

    fn whole(&mut self, body: &[u8], show: &mut dyn Show) -> Result<(), Fault> {
        let mended = mend(body);
        let body = mended.as_deref().unwrap_or(body);
        if serde_json::from_slice::<Line<'_>>(body).is_ok_and(|line| line.kind.0 == "error") {
            return Err(Fault::in_stream(&Told::read(body)));
        }
        let message: Message<'_> = serde_json::from_slice(body).map_err(|_| unreadable())?;
        let is_whole = message.stop_reason.is_some();
        self.message(message, show)?;
        if is_whole {
            self.stage = Stage::Done;
        }
        Ok(())
    }

    fn stage(&self) -> Stage {
        self.stage
    }
}

impl Answer {
    fn line(&mut self, line: Line<'_>, data: &[u8], show: &mut dyn Show) -> Result<(), Fault> {
        match line.kind.0.as_ref() {
            "content_block_delta" => {
                if let Some(delta) = line.delta {
                    self.delta(line.index.unwrap_or(0), delta, show)?;
                }
            }
            "content_block_start" => {
                if let Some(block) = line.content_block {
                    self.block(line.index.unwrap_or(0), *block, show)?;
                }
            }
            "message_start" => {
                if let Some(message) = line.message {
                    self.message(*message, show)?;
                }
            }
            "message_delta" => {
                self.count(line.usage);
                if let Some(reason) = line.delta.and_then(|delta| delta.stop_reason) {
                    self.finish(&reason.0);
                }
            }
            // The end marker; nothing else is. An Anthropic server always sends it.
            "message_stop" => {
                if self.stage == Stage::Silent {
                    return Err(Fault::broken("ended its answer before it said anything"));
                }
                self.stage = Stage::Done;
            }
            "error" => return Err(Fault::in_stream(&Told::read(data))),
            // `ping`, `content_block_stop`, and what is to come: the wire says to pass over it.
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self, message: Message<'_>, show: &mut dyn Show) -> Result<(), Fault> {
        self.count(message.usage);
        for (index, block) in (0..).zip(message.content) {
            self.block(index, block, show)?;
        }
        if let Some(reason) = message.stop_reason {
            self.finish(&reason.0);
        }
        Ok(())
    }

    fn block(&mut self, index: i64, told: BlockTold<'_>, show: &mut dyn Show) -> Result<(), Fault> {
        let owned = |text: Option<Text<'_>>| text.unwrap_or_default().0.into_owned();
        let block = match told.kind.0.as_ref() {
            "thinking" => {
                let thinking = owned(told.thinking);
                self.think(&thinking, show)?;
                Block::Thinking { thinking, signature: owned(told.signature) }
            }
            "redacted_thinking" => Block::RedactedThinking { data: owned(told.data) },
            "tool_use" => {
                self.calls += 1;
                let input = told.input.map_or_else(String::new, |raw| raw.get().to_owned());
                Block::ToolUse { name: owned(told.name), input, arguments: String::new() }
            }
            _ => Block::Other,
        };
        if let Some(text) = told.text {
            self.say(&text.0, show)?;
        }
        let bytes = match &block {
            Block::RedactedThinking { data } => data.len(),
            Block::ToolUse { name, input, .. } => name.len() + input.len(),
            Block::Thinking { signature, .. } => signature.len(),
            Block::Other => 0,
        };
        self.took(bytes)?;
        if self.calls > limits::MAX_CALLS_PER_STEP || self.blocks.len() >= MAX_BLOCKS {
            return Err(Fault::broken("sent an answer of too many parts"));
        }
        self.blocks.push((index, block));
        Ok(())
    }

    fn delta(&mut self, index: i64, delta: Delta<'_>, show: &mut dyn Show) -> Result<(), Fault> {
        if let Some(text) = delta.text {
            return self.say(&text.0, show);
        }
        if let Some(thought) = &delta.thinking {
            self.think(&thought.0, show)?;
        }
        let block = self.blocks.iter_mut().rev().find(|(of, _)| *of == index);
        let mut bytes = 0;
        match block {
            Some((_, Block::Thinking { thinking, signature })) => {
                thinking.push_str(&delta.thinking.unwrap_or_default().0);
                let signed = delta.signature.unwrap_or_default().0;
                signature.push_str(&signed);
                bytes = signed.len();
            }
            Some((_, Block::ToolUse { arguments, .. })) => {
                let piece = delta.partial_json.unwrap_or_default().0;
                arguments.push_str(&piece);
                bytes = piece.len();
            }
            Some((_, Block::RedactedThinking { .. } | Block::Other)) | None => {}
        }
        self.took(bytes)
    }

    fn say(&mut self, piece: &str, show: &mut dyn Show) -> Result<(), Fault> {
        if !piece.is_empty() {
            self.content.push_str(piece);
            show.text(piece);
        }
        self.took(piece.len())
    }

    fn think(&mut self, piece: &str, show: &mut dyn Show) -> Result<(), Fault> {
        if !piece.is_empty() {
            self.reasoning.push_str(piece);
            show.reasoning(piece);
        }
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

    fn finish(&mut self, reason: &str) {
        self.stage = self.stage.max(Stage::Speaking);
        self.finish = Some(match reason {
            "tool_use" => FinishReason::ToolCalls,
            // A window that is full cut the answer short just the same, and what was said is worth
            // keeping.
            "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
            "refusal" => FinishReason::ContentFilter,
            // end_turn, stop_sequence, pause_turn, and what is to come.
            _ => FinishReason::Stop,
        });
    }

    /// Later counts replace earlier ones: they are running totals.
    fn count(&mut self, told: Option<&RawValue>) {
        let Some(told) = told.and_then(|raw| serde_json::from_str::<UsageTold>(raw.get()).ok())
        else {
            return;
        };
        let usage = &mut self.usage;
        for (count, told) in [
            (&mut usage.input_tokens, told.input_tokens),
            (&mut usage.cache_creation_input_tokens, told.cache_creation_input_tokens),
            (&mut usage.cache_read_input_tokens, told.cache_read_input_tokens),
            (&mut usage.output_tokens, told.output_tokens),
        ] {
            if told.0.is_some() {
                *count = told;
            }
        }
    }

    /// The answer, once its stage says that it is whole.
    ///
    /// # Errors
    /// It says that it calls tools, but there are neither calls nor a text.
    pub fn into_answer(self, request: &ModelRequest) -> Result<ModelAnswer, Fault> {
        let mut thinking = Vec::new();
        let mut tool_calls = Vec::new();
        for (_, block) in self.blocks {
            match block {
                Block::Thinking { thinking: thought, signature } => thinking
                    .push(json!({"type": "thinking", "thinking": thought, "signature": signature})),
                Block::RedactedThinking { data } => {
                    thinking.push(json!({"type": "redacted_thinking", "data": data}));
                }
                Block::ToolUse { name, input, arguments } => {
                    let arguments = if arguments.is_empty() { input } else { arguments };
                    tool_calls.push(RequestedCall { tool: name, arguments });
                }
                Block::Other => {}
            }
        }
        let finish_reason = match self.finish {
            Some(cut_short @ (FinishReason::Length | FinishReason::ContentFilter)) => cut_short,
            Some(FinishReason::Stop | FinishReason::ToolCalls) | None if !tool_calls.is_empty() => {
                FinishReason::ToolCalls
            }
            Some(FinishReason::ToolCalls) if self.content.is_empty() => {
                return Err(Fault::broken("asked for tool calls and named none"));
            }
            Some(FinishReason::Stop | FinishReason::ToolCalls) | None => FinishReason::Stop,
        };
        let provider_state = (!thinking.is_empty())
            .then(|| json!({"wire": WIRE, "thinking": Value::Array(thinking)}));
        let mut answer = ModelAnswer {
            content: self.content,
            reasoning: self.reasoning,
            tool_calls,
            finish_reason,
            usage: Usage::default(),
            provider_state,
        };
        answer.usage = self.usage.usage(request, &answer);
        Ok(answer)
    }
}

impl UsageTold {
    /// What was told, and a guess where nothing plausible was. This wire counts cached tokens apart.
    fn usage(self, request: &ModelRequest, answer: &ModelAnswer) -> Usage {
        let cached = self.cache_read_input_tokens.0.unwrap_or(0);
        let written = self.cache_creation_input_tokens.0.unwrap_or(0);
        let input = self.input_tokens.0.map(|fresh| fresh + written + cached);
        let guess = || tokens::guessed(request, answer);
        Usage::new(
            input.unwrap_or_else(|| guess().input_tokens),
            cached,
            self.output_tokens.0.unwrap_or_else(|| guess().output_tokens),
            0,
        )
    }
}
