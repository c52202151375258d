//! The transcript: what the model is told, out of a folded run.
//!
//! It is always valid on both wires: every tool call of an assistant turn is answered by the tool
//! turns right behind it, and no turn is empty.

use serde_json::Value;

use super::fold::{Call, CallState, Folded, Turn as StepTurn};
use super::message::{Content, Input, Role};
use super::model::{CallTurn, FinishReason, ModelRequest, ToolChoice, Turn};
use super::plan::Plan;
use super::tokens;
use super::window::{self, Overflow};

/// What the model gets to read for a call in which no answer is outstanding.
const NO_ANSWER: &str = "No answer came back.";

/// What the model gets to read in front of the result of a call that a person changed.
const CHANGED: &str = "[A person changed the arguments of this call to:]";

/// The request for the model call of step number `step`.
pub fn request(folded: &Folded, plan: &Plan, step: i32, attempt: i32) -> ModelRequest {
    let settings = &plan.settings;
    let called_before = folded.steps.iter().any(|turn| !turn.calls.is_empty());
    ModelRequest {
        model: plan.model.as_ref().map(|model| model.model.clone()).unwrap_or_default(),
        turns: turns(folded, plan, step),
        tools: plan.specs(),
        // Forced for ever, a model could never give its final answer.
        tool_choice: match settings.tool_choice {
            ToolChoice::Required if called_before => ToolChoice::Auto,
            choice @ (ToolChoice::Auto | ToolChoice::None | ToolChoice::Required) => choice,
        },
        temperature: settings.temperature,
        top_p: settings.top_p,
        max_output_tokens: settings.max_output_tokens,
        reasoning_effort: settings.reasoning_effort,
        provider_options: settings.provider_options.clone(),
        output_schema: settings.output_schema.clone(),
        script_turn: usize::try_from(step).unwrap_or(1).saturating_sub(1),
        script: settings.script.clone(),
        attempt,
    }
}

/// The transcript that the model reads in step number `step`: instructions first, then what of its
/// conversation's history fits, then the run's own turn.
pub fn turns(folded: &Folded, plan: &Plan, step: i32) -> Vec<Turn> {
    let history = folded.history.without(dropped(folded, plan, step)).cloned();
    let prompt = prompt(plan).into_iter();
    let (mut turns, said): (Vec<Turn>, Vec<Turn>) =
        prompt.chain(history).chain(own(folded, plan, step)).partition(Turn::is_system);
    turns.extend(said);
    turns
}

/// How many messages of its conversation the model does not see in step number `step`. What was settled
/// when the step began stays, whatever was configured or has been learnt since.
pub fn dropped(folded: &Folded, plan: &Plan, step: i32) -> i32 {
    match folded.open_step().filter(|turn| turn.step == step) {
        Some(turn) => turn.dropped_messages,
        None => fit(folded, plan, step).unwrap_or_else(|_| folded.history.end()),
    }
}

/// How many messages of its conversation must be left out of step number `step`, which has not begun.
///
/// # Errors
/// When the run's own turn is too long by itself.
pub fn fit(folded: &Folded, plan: &Plan, step: i32) -> Result<i32, Overflow> {
    let history = &folded.history;
    // What a provider did not take in one step, it does not take in the next.
    let refused = folded.steps.last().map_or(0, |turn| turn.dropped_messages).min(history.end());
    let Some(limit) = plan.max_prompt_tokens else { return Ok(refused.max(history.older())) };
    let tools: u64 = plan.specs().iter().map(tokens::of_tool).sum();
    let schema = plan.settings.output_schema.as_ref();
    let schema = schema.map_or(0, |schema| tokens::of_text(&schema.to_string()));
    let prompt = prompt(plan).as_ref().map_or(0, tokens::of_turn);
    let own = tools + schema + prompt + tokens::of_turns(&own(folded, plan, step));
    let answered = history.turns().iter().rev().take(answered(folded));
    let needed = own + answered.map(|turn| tokens::of_turns(turn)).sum::<u64>();
    if needed > limit {
        return Err(Overflow { tokens: needed, limit });
    }
    Ok(window::dropped(history, limit - own).max(refused))
}

/// How many messages of its conversation are left out of the open step's next attempt, because the
/// provider has said that its prompt is too long; `None` when nothing is left that can go.
pub fn fewer(folded: &Folded) -> Option<i32> {
    let dropped = folded.open_step()?.dropped_messages;
    window::fewer(&folded.history, dropped, answered(folded))
}

/// How many turns of its conversation a run answers: without an input of its own the newest, and the
/// instructions behind it.
fn answered(folded: &Folded) -> usize {
    if !folded.input.is_empty() {
        return 0;
    }
    let newest_first = folded.history.turns().iter().rev();
    newest_first.take_while(|turn| turn.iter().all(Turn::is_system)).count() + 1
}

fn prompt(plan: &Plan) -> Option<Turn> {
    let prompt = plan.settings.system_prompt.as_ref().filter(|prompt| !prompt.is_empty());
    prompt.cloned().map(Turn::System)
}

/// The run's own turn: what it was started with, and what was said in its steps.
fn own(folded: &Folded, plan: &Plan, step: i32) -> Vec<Turn> {
    let mut turns = Vec::new();
    let input = Some(&folded.input).filter(|input| !input.is_empty());
    for message in input.map(Input::messages).unwrap_or_default() {
        match message.role {
            Role::System => turns.push(Turn::System(message.content.text().into_owned())),
            Role::User => turns.push(Turn::User(message.content)),
            Role::Assistant => turns.push(Turn::Assistant {
                content: message.content,
                provider_state: None,
                tool_calls: Vec::new(),
            }),
            // Refused in an input.
            Role::Tool => {}
        }
    }
    for turn in folded.steps.iter().filter(|turn| turn.step < step) {
        steered(folded, turn.step, &mut turns);
        told(turn, &mut turns);
        if let Some(problem) = mismatch(turn, plan) {
            turns.push(Turn::User(Content::Text(format!(
                "Your answer does not satisfy the required JSON Schema: {problem}. \
                 Reply with nothing but JSON that does."
            ))));
        }
    }
    steered(folded, step, &mut turns);
    turns
}

/// What was said from outside before this step; a step that has not begun reads all that no other did.
fn steered(folded: &Folded, step: i32, turns: &mut Vec<Turn>) {
    let is_next = folded.steps.last().is_none_or(|last| last.step < step);
    let reads = |applied_in: Option<i32>| applied_in.map_or(is_next, |in_step| in_step == step);
    for steering in folded.steering.iter().filter(|s| reads(s.applied_in)) {
        turns.push(Turn::User(steering.input.content.clone()));
    }
}

/// What the model said in a step, and what its tools answered.
fn told(turn: &StepTurn, turns: &mut Vec<Turn>) {
    let Some(message) = &turn.message else { return };
    // Providers refuse an assistant turn in which nothing is said and nothing is called.
    if message.content.is_empty() && turn.calls.is_empty() {
        return;
    }
    turns.push(Turn::Assistant {
        content: Content::Text(message.content.clone()),
        provider_state: message.provider_state.clone(),
        tool_calls: turn
            .calls
            .iter()
            .map(|call| CallTurn {
                call_id: call.call_id.to_string(),
                tool: call.tool.clone(),
                // What the model wrote is not rewritten: it is told of changes with the result.
                arguments: call.edited_from.as_ref().unwrap_or(&call.arguments).clone(),
            })
            .collect(),
    });
    for call in &turn.calls {
        let (content, is_error) = answer(call);
        turns.push(Turn::Tool {
            call_id: call.call_id.to_string(),
            tool: call.tool.clone(),
            content,
            is_error,
        });
    }
}

/// What the model gets to read as the answer to a call, and whether it is a failure.
pub fn answer(call: &Call) -> (String, bool) {
    let (content, is_error) = match &call.state {
        CallState::Completed(value) => (text_of(value), false),
        CallState::Failed(error) => (error.clone(), true),
        CallState::Ready | CallState::Waiting(..) | CallState::Started => {
            (NO_ANSWER.to_owned(), true)
        }
    };
    match &call.edited_from {
        Some(_) => (format!("{CHANGED} {}\n{content}", call.arguments), is_error),
        None => (content, is_error),
    }
}

/// What the model gets to read as a tool's result.
pub fn text_of(result: &Value) -> String {
    match result {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Why a final text is not the output that was asked for; `None` when it is, or is no final text.
pub fn mismatch(turn: &StepTurn, plan: &Plan) -> Option<String> {
    let message = turn.message.as_ref()?;
    if !turn.calls.is_empty() || message.finish_reason != FinishReason::Stop {
        return None;
    }
    plan.output(&message.content).err()
}

/// A rough size of a transcript in bytes, for worst cases.
pub fn bytes(turns: &[Turn], plan: &Plan) -> usize {
    let said: usize = turns
        .iter()
        .map(|turn| match turn {
            Turn::System(text) => text.len(),
            Turn::User(content) => size(content),
            Turn::Assistant { content, tool_calls, .. } => {
                size(content)
                    + tool_calls.iter().map(|c| c.arguments.to_string().len() + 64).sum::<usize>()
            }
            Turn::Tool { content, .. } => content.len(),
        })
        .map(|bytes| bytes + 16)
        .sum();
    let tools: usize = plan
        .specs()
        .into_iter()
        .map(|spec| spec.name.len() + spec.description.len() + spec.parameters.to_string().len())
        .sum();
    said + tools
}

fn size(content: &Content) -> usize {
    use super::message::Part;
    /// Images cost by their area, not by their bytes: this is more than providers take for one.
    const IMAGE: usize = 8_192;
    match content {
        Content::Text(text) => text.len(),
        Content::Parts(parts) => parts
            .iter()
            .map(|part| match part {
                Part::Image { .. } => IMAGE,
                Part::File { data, .. } => data.as_ref().map_or(IMAGE, String::len),
                Part::Text { .. } | Part::Data { .. } => part.as_text().len(),
            })
            .sum(),
    }
}
