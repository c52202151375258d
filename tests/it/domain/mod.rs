//! The pure core under random engines: whatever an engine or a guest can write, the log folds, reads
//! back to the same state, and makes a transcript that both wires accept.

mod dice;
mod simulation;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;
use serde_json::json;
use stepwell::domain::agent::AgentSettings;
use stepwell::domain::decide::{Decision, Ending, Now, decide};
use stepwell::domain::event::Event;
use stepwell::domain::model::{Catalogue, FinishReason, ModelAnswer, RequestedCall};
use stepwell::domain::plan::Plan;
use stepwell::domain::run::RunErrorCode;
use stepwell::domain::usage::Usage;
use stepwell::domain::{overtaken, tool::Effect, write};

use self::dice::Dice;
use self::simulation::{Simulation, simulate};

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
            let end = fork.run_out(&mut Dice::new(bytes(200)));
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
    let mut dice = Dice::new(Vec::new());
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
        let mut run = Simulation::new(&mut Dice::new(Vec::new()));
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
    let mut run = Simulation::new(&mut Dice::new(Vec::new()));
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
    let mut run = Simulation::new(&mut Dice::new(Vec::new()));
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
