//! The pure core under random engines: whatever an engine or a guest can write, the log folds, reads
//! back to the same state, and makes a transcript that both wires accept.

mod window;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use stepwell::clock::Clock;
use stepwell::domain::agent::AgentSettings;
use stepwell::domain::answer::{self, Report, Said, Verdict};
use stepwell::domain::conversation::history::History;
use stepwell::domain::decide::{Decision, Ending, Now, decide};
use stepwell::domain::event::{
    ApprovalDecision, Entry, Event, EventType, RunQueued, StatusChanged,
};
use stepwell::domain::fold::Folded;
use stepwell::domain::ids::{CallId, RunId};
use stepwell::domain::message::{Content, Input};
use stepwell::domain::model::{
    CallTurn, Catalogue, FinishReason, ModelAnswer, RequestedCall, Turn,
};
use stepwell::domain::plan::Plan;
use stepwell::domain::run::{ActionType, RunError, RunErrorCode, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::domain::usage::Usage;
use stepwell::domain::write::{self, NewIds};
use stepwell::domain::{fork, overtaken, tool::Effect, transcript};

use crate::support::transcripts::assert_valid;

/// A random engine's source of decisions: bytes, and zero once they are used up.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().unwrap_or(0) % sides
    }

    fn are_used_up(&self) -> bool {
        self.0.len() == 0
    }
}

/// A run in memory, driven the way the engine drives it.
struct Simulation {
    run_id: RunId,
    log: Vec<Entry>,
    folded: Folded,
    plan: Plan,
    now: Timestamp,
    in_flight: HashSet<CallId>,
    clock: Clock,
    requests: usize,
    crashes: usize,
    guests: usize,
    answers: usize,
    expired: usize,
    unknown: usize,
    shortened: usize,
}

fn settings(dice: &mut Dice) -> AgentSettings {
    let schema = json!({"type": "object", "required": ["n"]});
    let value = json!({
        "model": "builtin/script",
        "system_prompt": if dice.roll(2) == 0 { Value::Null } else { json!("Be brief.") },
        "tools": [
            {"type": "builtin", "name": "current_time"},
            {"type": "builtin", "name": "echo", "requires_approval": dice.roll(2) == 0, "approval_timeout_seconds": 20},
            {"type": "client", "name": "mine", "timeout_seconds": 1 + dice.roll(40),
             "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}},
            {"type": "http", "name": "pay", "url": "https://example.com/pay", "effect": "once"},
            {"type": "client", "name": "both", "requires_approval": true,
             "timeout_seconds": 1 + dice.roll(40), "approval_timeout_seconds": 20},
        ],
        "max_steps": 1 + dice.roll(5),
        "timeout_seconds": 30,
        "max_context_tokens": match dice.roll(8) { 0 => json!(1_000), 1 => json!(300), 2 => json!(10), _ => Value::Null },
        "max_total_tokens": if dice.roll(4) == 0 { json!(40) } else { Value::Null },
        "output_schema": if dice.roll(4) == 0 { schema } else { Value::Null },
    });
    serde_json::from_value(value).expect("settings")
}

fn input(dice: &mut Dice) -> Input {
    let value = match dice.roll(3) {
        0 => json!("Hello"),
        1 => json!([
            {"role": "system", "content": "You are kind."},
            {"role": "user", "content": [{"type": "text", "text": "What is"}, {"type": "data", "data": {"a": 1}}]},
            {"role": "agent", "content": "this?"},
            {"role": "user", "content": "Well?"},
        ]),
        _ => json!([{"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "Hello"}]),
    };
    serde_json::from_value(value).expect("input")
}

/// What was said in its conversation before it.
fn history(dice: &mut Dice) -> Arc<History> {
    let older = i32::from(dice.roll(3));
    let said = |text: String| Content::Text(text);
    let turn = |n: u8| {
        let call_id = format!("call_{n}");
        let call = CallTurn { call_id, tool: "echo".to_owned(), arguments: json!({"text": n}) };
        [
            Turn::User(said(format!("And {n}?"))),
            Turn::Assistant {
                content: said(String::new()),
                provider_state: None,
                tool_calls: vec![call.clone()],
            },
            Turn::Tool {
                call_id: call.call_id,
                tool: call.tool,
                content: "x".repeat(usize::from(n) * 50),
                is_error: n == 2,
            },
            Turn::Assistant {
                content: said(format!("It is {n}.")),
                provider_state: None,
                tool_calls: Vec::new(),
            },
        ]
    };
    Arc::new(History::new(older, (0..dice.roll(6)).flat_map(turn)))
}

impl Simulation {
    fn new(dice: &mut Dice) -> Self {
        let now = Timestamp::from_millis(1_795_340_613_000);
        let clock = Clock::manual(now);
        let run_id = clock.run_id();
        let plan = Plan::new(settings(dice), &Catalogue::default());
        let queued = Event::RunQueued(RunQueued {
            status: RunStatus::Queued,
            agent_id: "a".parse().expect("id"),
            agent_version: 1,
            model: plan.settings.model.clone(),
            input: input(dice),
            conversation_id: None,
            parent_run_id: None,
            forked_from_run_id: None,
            depth: 0,
        });
        let first = queued.entry(run_id, 1, now).expect("entry");
        let folded = Folded::read([&first]).expect("fold").with_history(history(dice));
        let log = vec![first];
        let in_flight = HashSet::new();
        Self {
            run_id,
            log,
            folded,
            plan,
            now,
            in_flight,
            clock,
            requests: 0,
            crashes: 0,
            guests: 0,
            answers: 0,
            expired: 0,
            unknown: 0,
            shortened: 0,
        }
    }

    fn next_seq(&self) -> i32 {
        i32::try_from(self.log.len()).expect("short") + 1
    }

    fn push(&mut self, events: Vec<Event>) {
        for event in events {
            let seq = self.next_seq();
            self.folded.apply(seq, self.now, event.clone()).expect("what is written folds");
            self.log.push(event.entry(self.run_id, seq, self.now).expect("entry"));
        }
    }

    /// What a driver on another node, or after a restart, makes of the same log.
    fn assert_replay(&self) {
        let again = Folded::read(&self.log).expect("what is written reads back");
        let again = again.with_history(self.folded.history.clone());
        assert_eq!(again, self.folded, "replay is stable");
    }

    fn show(&mut self, event_type: EventType, text: &str) {
        let (seq, step) = (self.next_seq(), 1);
        let entry = Entry::delta(event_type, self.run_id, seq, self.now, step, text);
        self.log.push(entry.expect("delta"));
    }

    /// A model's answer, as bad as answers get.
    fn answer(&mut self, dice: &mut Dice) -> ModelAnswer {
        let arguments =
            ["{}", "", "{\"text\": \"x\"}", "not json", "[1]", "{\"text\": 7}", "\u{0}"];
        let tools = ["current_time", "echo", "mine", "both", "pay", "nowhere"];
        let calls = (0..dice.roll(4)).map(|_| RequestedCall {
            tool: tools[usize::from(dice.roll(6))].to_owned(),
            arguments: arguments[usize::from(dice.roll(7))].to_owned(),
        });
        let tool_calls: Vec<_> = calls.collect();
        let texts = ["", "Hello", "{\"n\": 1}", "```json\n{\"n\": 2}\n```", "\u{1F600}"];
        let reasons =
            [FinishReason::Stop, FinishReason::ToolCalls, FinishReason::Length, FinishReason::Stop];
        ModelAnswer {
            content: texts[usize::from(dice.roll(5))].to_owned(),
            reasoning: if dice.roll(3) == 0 { "Hm.".to_owned() } else { String::new() },
            tool_calls,
            finish_reason: reasons[usize::from(dice.roll(4))],
            usage: Usage::new(u64::from(dice.roll(20)), 0, u64::from(dice.roll(20)), 0),
            provider_state: None,
        }
    }

    fn call_model(&mut self, dice: &mut Dice) {
        let turn = self.folded.open_step().expect("open").clone();
        let request = transcript::request(&self.folded, &self.plan, turn.step, turn.attempt);
        assert_valid(&request);
        self.requests += 1;
        if dice.roll(2) == 0 {
            self.show(EventType::ReasoningDelta, "thin");
            self.show(EventType::MessageDelta, "par");
        }
        match dice.roll(8) {
            0 => {
                let error = RunError {
                    code: RunErrorCode::ModelError,
                    message: "no".to_owned(),
                    retryable: false,
                };
                self.push(write::ended(&self.folded, Ending::Failed(error), self.now));
            }
            1 => self.push(vec![write::step_restarted(&turn, turn.attempt + 1)]),
            2 if !self.folded.history.turns().is_empty() => {
                // The provider says that the prompt is too long.
                let shorter = write::step_shortened(&self.folded, turn.attempt + 1);
                self.shortened += usize::from(shorter.is_some());
                self.push(shorter.into_iter().collect());
            }
            _ => {
                let answer = self.answer(dice);
                let mut ids = self.clock.clone();
                self.push(write::answered(turn.step, &self.plan, answer, &mut ids));
            }
        }
    }

    fn pass(&mut self, seconds: u8) {
        let time = Duration::from_secs(u64::from(seconds));
        self.clock.advance(time);
        self.now = self.now.plus(time);
    }

    fn answer_a_tool(&mut self, dice: &mut Dice) {
        let call_id = *self.in_flight.iter().next().expect("in flight");
        self.in_flight.remove(&call_id);
        let turn = self.folded.open_step().expect("open");
        let call = turn.calls.iter().find(|c| c.call_id == call_id).expect("call");
        let answer = match dice.roll(3) {
            0 => Err("It broke.".to_owned()),
            1 => Ok(json!({"ok": true})),
            _ => Ok(json!("x".repeat(usize::from(dice.roll(3)) * 200_000))),
        };
        let event = write::call_answered(turn.step, call, answer, self.now);
        self.push(vec![event]);
    }

    /// Somebody who is not the driver writes, or the driver dies.
    fn disturb(&mut self, dice: &mut Dice) {
        if self.folded.status.is_final() {
            return;
        }
        match dice.roll(24) {
            4 => {
                self.crashes += 1;
                self.assert_replay();
                self.in_flight.clear();
                let open = self.folded.open_step().filter(|t| t.message.is_none()).cloned();
                if let Some(turn) = open {
                    self.push(vec![write::step_restarted(&turn, turn.attempt + 1)]);
                }
            }
            1 if self.folded.status == RunStatus::Running => {
                self.guests += 1;
                let status = RunStatus::Cancelling;
                self.push(vec![Event::RunCancelling(StatusChanged { status })]);
            }
            2 => {
                let content = Content::Text("Also this.".to_owned());
                let message_id = self.clock.message_id();
                if let Ok(event) = answer::steer(&self.folded, 0, message_id, &content) {
                    self.guests += 1;
                    self.push(vec![event]);
                }
            }
            3 => {
                let seconds = dice.roll(40);
                self.pass(seconds);
            }
            5 | 6 => self.somebody_answers(dice),
            _ => {}
        }
    }

    /// While it is parked: somebody answers one action, or time passes.
    fn while_parked(&mut self, dice: &mut Dice) {
        // A call of which nobody says what became waits for ever: somebody does in the end.
        if dice.roll(3) == 0 && !dice.are_used_up() {
            self.pass(21);
        } else {
            self.somebody_answers(dice);
        }
    }

    /// Any open action is answered in any way, twice; and what is answered otherwise is refused.
    fn somebody_answers(&mut self, dice: &mut Dice) {
        let actions = self.folded.required_actions(self.run_id);
        if actions.is_empty() {
            return;
        }
        let action = &actions[usize::from(dice.roll(128)) % actions.len()];
        let call_id = action.call_id;
        let what = dice.roll(4);
        let decision = if what == 0 { ApprovalDecision::Deny } else { ApprovalDecision::Approve };
        let arguments = (what == 1).then(|| json!({"text": "edited"}));
        let verdict = Verdict {
            call_id,
            decision,
            arguments,
            reason: (what == 0).then(|| "No.".to_owned()),
            decided_by: None,
        };
        let said = match (what, action.action_type) {
            (0, _) => Said::Failed("It broke.".to_owned()),
            (1, ActionType::ToolOutcome) => Said::Again,
            _ => Said::Result(json!({"n": what})),
        };
        let report = Report { call_id, said, said_by: None };
        let say = |run: &Self, report: &Report, verdict: &Verdict| match action.action_type {
            ActionType::Approval => answer::decide(&run.folded, &run.plan, verdict, run.now),
            ActionType::ToolResult | ActionType::ToolOutcome => {
                answer::report(&run.folded, report, run.now)
            }
        };
        let open = action.expires_at.is_none_or(|until| self.now < until);
        match say(self, &report, &verdict) {
            Ok(events) => {
                assert!(open && !events.is_empty(), "an answer to nothing");
                self.answers += 1;
                self.push(events);
            }
            Err(refusal) => {
                let over = self.folded.status == RunStatus::Cancelling;
                assert!(over || !open, "refused: {refusal:?}");
                return;
            }
        }
        assert_eq!(say(self, &report, &verdict), Ok(vec![]), "the same again is fine");
        let other = Verdict { reason: Some("Another.".to_owned()), ..verdict };
        let other_report = Report { said: Said::Result(json!("another")), ..report };
        assert!(say(self, &other_report, &other).is_err(), "one answer wins");
    }

    /// One turn of the engine's loop. `false` once the run has ended.
    fn advance(&mut self, dice: &mut Dice) -> bool {
        let circumstances = Now {
            at: self.now,
            in_flight: &self.in_flight,
            children: &HashMap::new(),
            log_events: self.next_seq() - 1,
            log_bytes: 0,
        };
        let decision = decide(&self.folded, &self.plan, &circumstances);
        if decision.needs_running() && self.folded.status == RunStatus::Queued {
            self.push(write::started(&self.folded));
        }
        match decision {
            Decision::Done => return false,
            Decision::StartStep(step) => {
                self.push(write::step_started(&self.folded, &self.plan, step));
                self.call_model(dice);
            }
            Decision::CallModel => self.call_model(dice),
            Decision::CallTools(ids) => {
                let turn = self.folded.open_step().expect("open").clone();
                for call in turn.calls.iter().filter(|call| ids.contains(&call.call_id)) {
                    let event = write::call_started(turn.step, call, &self.plan);
                    if matches!(event, Event::ToolCallStarted(_)) {
                        self.in_flight.insert(call.call_id);
                    }
                    self.push(vec![event]);
                }
            }
            Decision::MeetChildren(_)
            | Decision::CancelChildren(_)
            | Decision::AwaitChildren(_) => {
                unreachable!("nothing here calls an agent")
            }
            Decision::AwaitTools(_) => self.answer_a_tool(dice),
            Decision::AskOutcome(ids) => {
                self.unknown += ids.len();
                let turn = self.folded.open_step().expect("open").clone();
                let of = turn.calls.iter().filter(|call| ids.contains(&call.call_id));
                self.push(
                    of.map(|call| write::outcome_unknown(turn.step, call, "Lost.".to_owned()))
                        .collect(),
                );
            }
            Decision::Expire(ids) => {
                self.expired += ids.len();
                self.push(write::expired(&self.folded, &ids));
            }
            Decision::CloseStep => {
                let turn = self.folded.open_step().expect("open").clone();
                self.push(vec![write::step_completed(&self.folded, &turn, self.now)]);
            }
            Decision::Park(_) if self.folded.status == RunStatus::RequiresAction => {
                self.while_parked(dice);
            }
            Decision::Park(_) => self.push(vec![write::parked(&self.folded, self.run_id)]),
            Decision::End(ending) => self.push(write::ended(&self.folded, ending, self.now)),
        }
        true
    }
}

impl Simulation {
    fn run_out(mut self, dice: &mut Dice) -> Self {
        for _ in 0..500 {
            if !self.advance(dice) {
                self.assert_replay();
                return self;
            }
            self.disturb(dice);
        }
        panic!("a run must end: {:?}", self.folded.status);
    }

    /// A run that takes over the steps before `from_step` and has not begun.
    fn forked(&self, from_step: i32) -> Self {
        let mut clock = self.clock.clone();
        let run_id = clock.run_id();
        let copies =
            fork::copied(&self.log, from_step, &mut clock).expect("what was written reads");
        let (Event::RunQueued(mut queued), _) = self.log[0].read().expect("an event") else {
            panic!("every run begins in the queue");
        };
        queued.forked_from_run_id = Some(self.run_id);
        let first = Event::RunQueued(queued).entry(run_id, 1, self.now).expect("entry");
        let folded = Folded::read([&first]).expect("fold");
        let mut fork = Self {
            run_id,
            log: vec![first],
            folded: folded.with_history(self.folded.history.clone()),
            plan: self.plan.clone(),
            now: self.now,
            in_flight: HashSet::new(),
            clock,
            requests: 0,
            crashes: 0,
            guests: 0,
            answers: 0,
            expired: 0,
            unknown: 0,
            shortened: 0,
        };
        fork.push(copies);
        fork
    }
}

fn simulate(bytes: Vec<u8>) -> Simulation {
    let mut dice = Dice(bytes.into_iter());
    let run = Simulation::new(&mut dice);
    run.run_out(&mut dice)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn every_run_folds_replays_and_ends_whatever_happens(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let run = simulate(bytes);
        let finals = run.log.iter().filter(|entry| entry.event_type.is_final()).count();
        prop_assert_eq!(finals, 1, "exactly one final event");
        prop_assert!(run.log.last().is_some_and(|entry| entry.event_type.is_final()), "it is the last");
        for (seq, entry) in (1..).zip(&run.log) {
            prop_assert_eq!(entry.seq, seq, "contiguous from 1");
        }
        for turn in &run.folded.steps {
            prop_assert!(turn.closed.is_some(), "no step stays open");
            prop_assert!(turn.calls.iter().all(|call| !call.is_open()), "no call stays unanswered");
        }
        let (end, _) = run.folded.ended.as_ref().expect("ended");
        let sum = run.folded.steps.iter().filter_map(|turn| turn.closed.as_ref())
            .fold(Usage::default(), |sum, closed| sum.plus(&closed.end.usage));
        prop_assert_eq!(end.usage, sum, "the run's usage is the sum of its steps'");
    }
}

#[test]
fn a_fork_of_any_step_of_any_run_goes_on_to_an_end_of_its_own() {
    let (mut ends, mut behind_the_end) = (BTreeMap::<&str, usize>::new(), 0);
    let mut state = 11_u64;
    let mut bytes = |count: usize| -> Vec<u8> {
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(state >> 56).expect("a byte")
        };
        (0..count).map(byte).collect()
    };
    for _ in 0..2_000 {
        let run = simulate(bytes(300));
        for from_step in 1..=run.folded.steps_completed + 1 {
            let fork = run.forked(from_step);
            let said = |run: &Simulation| -> Vec<_> {
                let before = run.folded.steps.iter().filter(|turn| turn.step < from_step);
                before
                    .map(|turn| (turn.step, turn.message.as_ref().map(|m| m.content.clone())))
                    .collect()
            };
            assert_eq!(said(&fork), said(&run), "it has what was said before");
            assert_eq!(fork.folded.usage, Usage::default(), "and that cost it nothing");
            let end = fork.run_out(&mut Dice(bytes(200).into_iter()));
            let ended = end.folded.status.as_str();
            *ends.entry(ended).or_default() += 1;
            // The source had completed, and so does its fork behind the last step, with not a word more.
            behind_the_end += usize::from(end.requests == 0 && ended == "completed");
        }
    }
    println!("{ends:?}, {behind_the_end} of them had nothing left to do");
    for end in ["completed", "incomplete", "failed", "cancelled", "expired"] {
        assert!(ends.get(end).is_some_and(|n| *n >= 10), "{end}: {ends:?}");
    }
    assert!(behind_the_end > 50, "{behind_the_end}");
}

#[test]
fn a_run_that_crashed_over_a_call_ends_when_somebody_says_what_became_of_it() {
    // Found by the random engines: nobody did, once the dice were used up.
    let run = simulate(vec![
        0, 0, 0, 0, 1, 11, 0, 0, 0, 0, 1, 0, 49, 2, 0, 41, 4, 0, 3, 3, 152, 63, 21, 96, 65, 0, 0,
        0, 103, 0, 0, 4, 28, 4, 133, 0, 0, 4, 0, 31, 4, 2, 0, 145, 4, 0, 107, 55, 230, 35, 0, 0,
        208, 49, 0, 0, 11, 0, 0, 2, 10, 81, 124,
    ]);
    assert!(run.folded.status.is_final());
}

#[test]
fn the_random_engines_really_meet_every_kind_of_end_and_disturbance() {
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut requests, mut crashes, mut guests) = (0, 0, 0);
    let (mut answers, mut expired, mut unknown) = (0, 0, 0);
    let (mut shortened, mut dropped, mut overflows) = (0, 0, 0);
    let mut state = 7_u64;
    for _ in 0..10_000 {
        let bytes = (0..300).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            u8::try_from(state >> 56).expect("a byte")
        });
        let run = simulate(bytes.collect());
        *ends.entry(run.folded.status.as_str()).or_default() += 1;
        requests += run.requests;
        crashes += run.crashes;
        guests += run.guests;
        answers += run.answers;
        expired += run.expired;
        unknown += run.unknown;
        shortened += run.shortened;
        let steps = &run.folded.steps;
        let from = steps.iter().map(|turn| turn.dropped_messages).collect::<Vec<_>>();
        assert!(from.is_sorted(), "what is left out of a step does not come back: {from:?}");
        let older = run.folded.history.older();
        dropped += from.iter().filter(|n| **n > older && **n < run.folded.history.end()).count();
        let error = run.folded.ended.as_ref().and_then(|(end, _)| end.error.as_ref());
        overflows += usize::from(error.is_some_and(|e| e.code == RunErrorCode::ContextOverflow));
    }
    for end in ["completed", "incomplete", "failed", "cancelled", "expired"] {
        assert!(ends.get(end).is_some_and(|n| *n >= 10), "{end}: {ends:?}");
    }
    assert!(requests > 2_000 && crashes > 200 && guests > 200, "{requests} {crashes} {guests}");
    println!(
        "{requests} requests, {crashes} crashes, {guests} guests, {answers} answers, {expired} expired, {unknown} unknown"
    );
    assert!(answers > 1_000 && expired > 200 && unknown > 20, "{answers} {expired} {unknown}");
    println!(
        "{shortened} prompts shortened, {dropped} steps without the oldest, {overflows} overflows"
    );
    assert!(
        shortened > 200 && dropped > 200 && overflows > 200,
        "{shortened} {dropped} {overflows}"
    );
}

#[test]
fn a_call_that_must_not_be_repeated_is_asked_about_after_a_crash() {
    let mut dice = Dice(vec![].into_iter());
    let mut run = Simulation::new(&mut dice);
    run.push(write::started(&run.folded));
    run.push(write::step_started(&run.folded, &run.plan, 1));
    let calls =
        vec![RequestedCall { tool: "echo".to_owned(), arguments: "{\"text\":\"a\"}".into() }];
    let answer = ModelAnswer {
        content: String::new(),
        reasoning: String::new(),
        tool_calls: calls,
        finish_reason: FinishReason::ToolCalls,
        usage: Usage::default(),
        provider_state: None,
    };
    let mut events = write::answered(1, &run.plan, answer, &mut run.clock.clone());
    for event in &mut events {
        if let Event::ToolCallCreated(created) = event {
            created.effect = Effect::Once;
        }
    }
    run.push(events);
    let call = run.folded.open_step().expect("open").calls[0].clone();
    run.push(vec![write::call_started(1, &call, &run.plan)]);
    let none = HashSet::new();
    let now = Now {
        at: run.now,
        in_flight: &none,
        children: &HashMap::new(),
        log_events: 5,
        log_bytes: 0,
    };
    assert_eq!(decide(&run.folded, &run.plan, &now), Decision::AskOutcome(vec![call.call_id]));
}

/// What a model writes becomes a part of an event, some levels further down; parsers stop at 128.
#[test]
fn arguments_and_outputs_without_a_bottom_leave_a_log_that_can_be_read() {
    for depth in [63, 64, 65, 120, 125, 126, 127, 128, 200] {
        let mut run = Simulation::new(&mut Dice(vec![].into_iter()));
        run.push(write::started(&run.folded));
        run.push(write::step_started(&run.folded, &run.plan, 1));
        let lists = format!("{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        let arguments = format!("{{\"text\":{lists}}}");
        let answer = ModelAnswer {
            content: String::new(),
            reasoning: String::new(),
            tool_calls: vec![RequestedCall { tool: "pay".to_owned(), arguments }],
            finish_reason: FinishReason::ToolCalls,
            usage: Usage::default(),
            provider_state: None,
        };
        let events = write::answered(1, &run.plan, answer, &mut run.clock.clone());
        for event in &events {
            let entry = event.entry(run.clock.run_id(), 4, run.now).unwrap();
            assert_eq!(entry.read().unwrap().0, *event, "{depth} levels");
        }
        run.push(events);
        let call = run.folded.open_step().expect("open").calls[0].clone();
        assert_eq!(call.arguments.is_object(), depth <= 64, "{depth} levels");
        let settings =
            AgentSettings { output_schema: Some(json!({})), ..run.plan.settings.clone() };
        let plan = Plan::new(settings, &Catalogue::default());
        assert_eq!(plan.output(&lists).is_ok(), depth - 1 <= 64, "{depth} levels");
    }
}

/// A call that may be made once is asked for, with its start on its way and not durable, when somebody
/// else writes to the run.
#[test]
fn a_call_whose_start_nobody_saw_is_made_and_not_asked_about() {
    let mut run = Simulation::new(&mut Dice(vec![].into_iter()));
    run.push(write::started(&run.folded));
    run.push(write::step_started(&run.folded, &run.plan, 1));
    let pay = RequestedCall { tool: "pay".to_owned(), arguments: "{}".to_owned() };
    let answer = ModelAnswer {
        content: String::new(),
        reasoning: String::new(),
        tool_calls: vec![pay],
        finish_reason: FinishReason::ToolCalls,
        usage: Usage::default(),
        provider_state: None,
    };
    run.push(write::answered(1, &run.plan, answer, &mut run.clock.clone()));
    let call = run.folded.open_step().expect("open").calls[0].clone();
    assert_eq!(call.effect, Effect::Once);
    let started = write::call_started(1, &call, &run.plan);
    let holds = |run: &Simulation, event: &Event| {
        overtaken::still_holds(&run.folded, run.next_seq(), run.now, event)
    };
    assert!(!holds(&run, &started), "it was never made");
    let none = HashSet::new();
    let children = HashMap::new();
    let now =
        Now { at: run.now, in_flight: &none, children: &children, log_events: 5, log_bytes: 0 };
    assert_eq!(decide(&run.folded, &run.plan, &now), Decision::CallTools(vec![call.call_id]));
    // What a tool said is kept, unless somebody else has answered for it.
    run.push(vec![started]);
    let call = run.folded.open_step().expect("open").calls[0].clone();
    let done = write::call_answered(1, &call, Ok(json!(1)), run.now);
    assert!(holds(&run, &done));
    run.push(vec![done.clone()]);
    assert!(!holds(&run, &done));
    // What was built upon what is decided again goes with it.
    let closes = write::step_completed(&run.folded, run.folded.open_step().expect("open"), run.now);
    assert!(holds(&run, &closes));
    let next = write::step_started(&run.folded, &run.plan, 2).remove(0);
    assert!(!holds(&run, &next), "the step before it is still open");
    assert!(!overtaken::is_being_written(&run.folded, 2));
}

#[test]
fn a_log_that_is_as_long_as_a_log_may_be_ends_its_run() {
    use stepwell::domain::limits::{MAX_EVENTS, MAX_LOG_BYTES};
    use stepwell::domain::run::IncompleteReason;
    let mut run = Simulation::new(&mut Dice(vec![].into_iter()));
    run.push(write::started(&run.folded));
    run.push(write::step_started(&run.folded, &run.plan, 1));
    let none = HashSet::new();
    let decided = |log_events, log_bytes| {
        decide(
            &run.folded,
            &run.plan,
            &Now {
                at: run.now,
                in_flight: &none,
                children: &HashMap::new(),
                log_events,
                log_bytes,
            },
        )
    };
    let full = Decision::End(Ending::Incomplete(IncompleteReason::LogSize));
    assert_eq!(decided(MAX_EVENTS - 1, MAX_LOG_BYTES - 1), Decision::CallModel);
    assert_eq!(decided(MAX_EVENTS, 0), full);
    assert_eq!(decided(0, MAX_LOG_BYTES), full);
}
