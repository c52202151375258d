//! A random run: an engine that does what the real one does, and guests and mishaps in between.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;
use stepwell::clock::Clock;
use stepwell::domain::answer::{self, Report, Said, Verdict};
use stepwell::domain::decide::{Decision, Ending, Now, decide};
use stepwell::domain::event::{
    ApprovalDecision, Entry, Event, EventType, RunQueued, StatusChanged,
};
use stepwell::domain::fold::Folded;
use stepwell::domain::ids::{CallId, RunId};
use stepwell::domain::message::Content;
use stepwell::domain::model::{Catalogue, FinishReason, ModelAnswer, RequestedCall};
use stepwell::domain::plan::Plan;
use stepwell::domain::run::{ActionType, RunError, RunErrorCode, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::domain::usage::Usage;
use stepwell::domain::write::{self, NewIds};
use stepwell::domain::{fork, transcript};

use super::dice::{Dice, history, input, settings};
use crate::support::transcripts::assert_valid;

/// A run in memory, driven the way the engine drives it.
pub struct Simulation {
    pub run_id: RunId,
    pub log: Vec<Entry>,
    pub folded: Folded,
    pub plan: Plan,
    pub now: Timestamp,
    pub in_flight: HashSet<CallId>,
    pub clock: Clock,
    pub requests: usize,
    pub crashes: usize,
    pub guests: usize,
    pub answers: usize,
    pub expired: usize,
    pub unknown: usize,
    pub shortened: usize,
}

impl Simulation {
    pub fn new(dice: &mut Dice) -> Self {
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
        Self::begun(run_id, first, folded, plan, now, clock)
    }

    /// A run of which nothing but this is there.
    fn begun(
        run_id: RunId,
        first: Entry,
        folded: Folded,
        plan: Plan,
        now: Timestamp,
        clock: Clock,
    ) -> Self {
        Self {
            run_id,
            log: vec![first],
            folded,
            plan,
            now,
            in_flight: HashSet::new(),
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

    pub fn next_seq(&self) -> i32 {
        i32::try_from(self.log.len()).expect("short") + 1
    }

    pub fn push(&mut self, events: Vec<Event>) {
        for event in events {
            let seq = self.next_seq();
            self.folded.apply(seq, self.now, event.clone()).expect("what is written folds");
            self.log.push(event.entry(self.run_id, seq, self.now).expect("entry"));
        }
    }

    /// What a driver on another node, or after a restart, makes of the same log.
    pub fn assert_replay(&self) {
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
    pub fn disturb(&mut self, dice: &mut Dice) {
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
    pub fn advance(&mut self, dice: &mut Dice) -> bool {
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
    pub fn run_out(mut self, dice: &mut Dice) -> Self {
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
    pub fn forked(&self, from_step: i32) -> Self {
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
        let folded = folded.with_history(self.folded.history.clone());
        let mut fork = Self::begun(run_id, first, folded, self.plan.clone(), self.now, clock);
        fork.push(copies);
        fork
    }
}

pub fn simulate(bytes: Vec<u8>) -> Simulation {
    let mut dice = Dice::new(bytes);
    let run = Simulation::new(&mut dice);
    run.run_out(&mut dice)
}
