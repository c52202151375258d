//! The context window under random histories: what a model sees is a run of whole turns at the end,
//! it fits, and nothing more would have fitted.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use stepwell::clock::Clock;
use stepwell::domain::agent::AgentSettings;
use stepwell::domain::conversation::history::History;
use stepwell::domain::decide::{Decision, Ending, Now, decide};
use stepwell::domain::event::{Event, RunQueued};
use stepwell::domain::fold::Folded;
use stepwell::domain::message::{Content, Input};
use stepwell::domain::model::{
    CallTurn, Catalogue, FinishReason, ModelAnswer, ModelRequest, ProviderFacts, RequestedCall,
    Turn,
};
use stepwell::domain::plan::Plan;
use stepwell::domain::run::{RunErrorCode, RunStatus};
use stepwell::domain::time::Timestamp;
use stepwell::domain::usage::Usage;
use stepwell::domain::write::NewIds as _;
use stepwell::domain::{answer, tokens, transcript, window, write};

use crate::support::transcripts::assert_valid;

const AT: Timestamp = Timestamp::from_millis(1_795_340_613_000);

fn user(text: &str) -> Turn {
    Turn::User(Content::Text(text.to_owned()))
}

fn model(text: &str) -> Turn {
    Turn::Assistant {
        content: Content::Text(text.to_owned()),
        provider_state: None,
        tool_calls: Vec::new(),
    }
}

fn calls(count: usize) -> Vec<Turn> {
    let call_id = |n: usize| format!("call_{n}");
    let tool = "echo".to_owned();
    let asked =
        |n| CallTurn { call_id: call_id(n), tool: tool.clone(), arguments: json!({"n": n}) };
    let answer = |n| Turn::Tool {
        call_id: call_id(n),
        tool: tool.clone(),
        content: "x".repeat(n * 40),
        is_error: n == 1,
    };
    let asks = Turn::Assistant {
        content: Content::Text(String::new()),
        provider_state: None,
        tool_calls: (0..count).map(asked).collect(),
    };
    std::iter::once(asks).chain((0..count).map(answer)).collect()
}

/// What is said in one go: messages of which the first begins a turn, or goes on with the one before.
fn piece() -> impl Strategy<Value = Vec<Turn>> {
    let text = "[a-z]{1,9}( [a-zß水]{1,9}){0,60}";
    prop_oneof![
        4 => text.prop_map(|text| vec![user(&text)]),
        3 => text.prop_map(|text| vec![model(&text)]),
        1 => "[a-z ]{1,40}".prop_map(|text| vec![Turn::System(text)]),
        2 => (1_usize..4).prop_map(calls),
    ]
}

fn messages() -> impl Strategy<Value = Vec<Turn>> {
    prop::collection::vec(piece(), 0..40).prop_map(|pieces| pieces.concat())
}

/// A run in a conversation, before its first step.
fn run(history: History, input: &serde_json::Value) -> Folded {
    let queued = Event::RunQueued(RunQueued {
        status: RunStatus::Queued,
        agent_id: "a".parse().expect("id"),
        agent_version: 1,
        model: "p/m".to_owned(),
        input: serde_json::from_value::<Input>(input.clone()).expect("an input"),
        conversation_id: None,
        parent_run_id: None,
        forked_from_run_id: None,
        depth: 0,
    });
    let first = queued.entry(Clock::manual(AT).run_id(), 1, AT).expect("an entry");
    let mut folded = Folded::read([&first]).expect("a fold").with_history(Arc::new(history));
    let events = write::started(&folded);
    push(&mut folded, events);
    folded
}

fn push(folded: &mut Folded, events: Vec<Event>) {
    for event in events {
        folded.apply(folded.last_fact_seq + 1, AT, event).expect("it fits");
    }
}

fn begin(folded: &mut Folded, plan: &Plan, step: i32) {
    let events = write::step_started(folded, plan, step);
    push(folded, events);
}

fn plan(settings: &serde_json::Value, context_tokens: Option<u64>) -> Plan {
    let mut all = json!({"model": "p/m", "system_prompt": "Be brief.", "max_output_tokens": 100,
        "tools": [{"type": "builtin", "name": "echo"}]});
    all.as_object_mut().expect("an object").extend(settings.as_object().expect("one").clone());
    let settings: AgentSettings = serde_json::from_value(all).expect("settings");
    let facts = ProviderFacts { context_tokens, ..ProviderFacts::default() };
    let providers = [("p".to_owned(), facts)].into();
    Plan::new(settings, &Catalogue { default_provider: None, providers })
}

fn decided(folded: &Folded, plan: &Plan) -> Decision {
    let now = Now {
        at: AT,
        in_flight: &Default::default(),
        children: &Default::default(),
        log_events: 2,
        log_bytes: 0,
    };
    decide(folded, plan, &now)
}

/// What the whole prompt is estimated at.
fn size(request: &ModelRequest) -> u64 {
    tokens::of_turns(&request.turns) + request.tools.iter().map(tokens::of_tool).sum::<u64>()
}

fn said(turns: &[Turn]) -> Vec<&Turn> {
    turns.iter().filter(|turn| !turn.is_system()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whole_turns_are_nothing_but_the_messages_and_each_begins_with_somebody(
        all in messages(), unread in 0_usize..50,
    ) {
        let unread = unread.min(all.len());
        let history = History::new(i32::try_from(unread).expect("few"), all[unread..].to_vec());
        let kept = history.turns().concat();
        prop_assert_eq!(history.end(), History::length(&all), "no message is lost or counted twice");
        prop_assert_eq!(kept.as_slice(), &all[all.len() - kept.len()..]);
        for (n, turn) in history.turns().iter().enumerate() {
            let opens = matches!(turn[0], Turn::User(_) | Turn::System(_));
            prop_assert!(opens || (n == 0 && history.older() == 0), "{turn:?}");
            // Instructions may stand before the first words; nobody else speaks twice in a turn.
            let open = turn.iter().position(|m| !m.is_system()).unwrap_or(turn.len());
            for message in turn.iter().skip(open + 1) {
                prop_assert!(!matches!(message, Turn::User(_) | Turn::System(_)), "{turn:?}");
            }
        }
    }

    #[test]
    fn what_is_seen_is_the_newest_whole_turns_that_fit_and_one_more_would_not(
        all in messages(), limit in 1_u64..1_500, unread in 0_usize..20,
    ) {
        let unread = unread.min(all.len());
        let history = History::new(i32::try_from(unread).expect("few"), all[unread..].to_vec());
        let mut folded = run(history.clone(), &json!("And now?"));
        let plan = plan(&json!({"max_context_tokens": limit}), None);
        let alone = size(&transcript::request(&run(History::default(), &json!("And now?")), &plan, 1, 1));
        let decision = decided(&folded, &plan);
        if alone > limit {
            let Decision::End(Ending::Failed(error)) = decision else {
                return Err(TestCaseError::fail(format!("{decision:?}")));
            };
            prop_assert_eq!((error.code, error.retryable), (RunErrorCode::ContextOverflow, false));
            prop_assert!(error.message.contains("max_context_tokens"), "{}", error.message);
            return Ok(());
        }
        prop_assert_eq!(decision, Decision::StartStep(1));
        begin(&mut folded, &plan, 1);
        let dropped = folded.steps[0].dropped_messages;
        let request = transcript::request(&folded, &plan, 1, 1);
        assert_valid(&request);
        prop_assert!(size(&request) <= limit, "{} of {limit}", size(&request));
        prop_assert!(dropped >= history.older() && dropped <= history.end());

        // It begins where a whole turn begins, and all that is behind is there.
        let mut at = history.older();
        let mut starts = vec![at];
        for turn in history.turns() {
            at += History::length(turn);
            starts.push(at);
        }
        let first = starts.iter().position(|start| *start == dropped);
        prop_assert!(first.is_some(), "{dropped} is inside of a turn: {starts:?}");
        let first = first.unwrap_or_default();
        let kept = history.turns()[first..].concat();
        let mut expected = said(&kept);
        let input = user("And now?");
        expected.push(&input);
        prop_assert_eq!(said(&request.turns), expected);
        if first > 0 {
            let more = tokens::of_turns(&history.turns()[first - 1]);
            prop_assert!(size(&request) + more > limit, "one more would have fitted");
        }

        // Whoever goes on behind a crash sees the same, whatever was configured meanwhile.
        let smaller = self::plan(&json!({"max_context_tokens": 1}), Some(1));
        for plan in [&plan, &smaller, &self::plan(&json!({}), None)] {
            prop_assert_eq!(&transcript::request(&folded, plan, 1, 1).turns, &request.turns);
        }
    }

    #[test]
    fn a_provider_that_finds_every_prompt_too_long_ends_with_the_run_s_own_turn(all in messages()) {
        let history = History::new(0, all);
        let turns = history.turns().len();
        let mut folded = run(history, &json!("And now?"));
        let plan = plan(&json!({}), None);
        begin(&mut folded, &plan, 1);
        let (mut tries, mut sizes) = (1, vec![transcript::request(&folded, &plan, 1, 1).turns.len()]);
        while let Some(shorter) = write::step_shortened(&folded, tries + 1) {
            tries += 1;
            push(&mut folded, vec![shorter]);
            let request = transcript::request(&folded, &plan, 1, tries);
            assert_valid(&request);
            sizes.push(request.turns.len());
        }
        prop_assert!(sizes.windows(2).all(|two| two[0] > two[1]), "each is shorter: {sizes:?}");
        prop_assert_eq!(sizes.last(), Some(&2), "the prompt and the input");
        prop_assert!(usize::try_from(tries).expect("few") <= 2 + turns.max(1).ilog2() as usize);
    }
}

/// `count` turns of the user and the model, each of the same size.
fn talk(count: usize) -> History {
    History::new(
        0,
        (0..count).flat_map(|n| [user(&format!("question {n:04}")), model("It is so.")]),
    )
}

#[test]
fn without_a_limit_all_is_seen_and_the_limit_is_the_smaller_of_both() {
    let folded = run(talk(100), &json!("And now?"));
    assert_eq!(transcript::fit(&folded, &plan(&json!({}), None), 1), Ok(0));
    assert_eq!(plan(&json!({}), Some(8_192)).max_prompt_tokens, Some(8_092), "less the answer");
    let limited = |of_agent: u64| plan(&json!({"max_context_tokens": of_agent}), Some(8_192));
    assert_eq!(limited(500).max_prompt_tokens, Some(500));
    assert_eq!(limited(9_000).max_prompt_tokens, Some(8_092));
}

#[test]
fn a_model_without_room_for_a_prompt_fails_with_what_to_do_about_it() {
    let plan = plan(&json!({"max_output_tokens": 4096}), Some(4_096));
    let Decision::End(Ending::Failed(error)) = decided(&run(talk(1), &json!("Hi")), &plan) else {
        panic!("there is no room");
    };
    assert_eq!(error.code, RunErrorCode::ContextOverflow);
    assert!(error.message.contains("lower max_output_tokens"), "{}", error.message);
}

#[test]
fn what_went_in_one_step_does_not_come_back_in_the_next() {
    let mut folded = run(talk(8), &json!("And now?"));
    let plan = plan(&json!({"tool_choice": "auto"}), None);
    begin(&mut folded, &plan, 1);
    for dropped in [8, 12] {
        let shorter = write::step_shortened(&folded, 2).expect("something can go");
        push(&mut folded, vec![shorter]);
        assert_eq!(folded.steps[0].dropped_messages, dropped);
    }
    let said = ModelAnswer {
        content: String::new(),
        reasoning: String::new(),
        tool_calls: vec![RequestedCall { tool: "nowhere".to_owned(), arguments: "{}".to_owned() }],
        finish_reason: FinishReason::ToolCalls,
        usage: Usage::default(),
        provider_state: None,
    };
    push(&mut folded, write::answered(1, &plan, said, &mut Clock::manual(AT)));
    let call = folded.steps[0].calls[0].clone();
    push(&mut folded, vec![write::call_started(1, &call, &plan)]);
    let end = write::step_completed(&folded, &folded.steps[0], AT);
    push(&mut folded, vec![end]);
    assert_eq!(decided(&folded, &plan), Decision::StartStep(2));
    begin(&mut folded, &plan, 2);
    assert_eq!(folded.steps[1].dropped_messages, 12);
    let request = transcript::request(&folded, &plan, 2, 1);
    assert_valid(&request);
    assert_eq!(request.turns.len(), 1 + 4 + 1 + 2, "prompt, two turns, input, call and answer");
}

#[test]
fn a_run_without_an_input_answers_the_newest_turn_which_never_goes() {
    let unanswered = || History::new(0, [user("one"), model("two"), user("three"), user("four")]);
    let mut folded = run(unanswered(), &json!([]));
    let limit = |tokens: u64| plan(&json!({"max_context_tokens": tokens, "tools": []}), None);
    let alone = transcript::fit(&folded, &limit(1), 1).expect_err("one token is too little").tokens;
    assert_eq!(transcript::fit(&folded, &limit(alone), 1), Ok(3), "all but the newest go");
    let all = plan(&json!({}), None);
    begin(&mut folded, &all, 1);
    while let Some(shorter) = write::step_shortened(&folded, 2) {
        push(&mut folded, vec![shorter]);
    }
    let request = transcript::request(&folded, &all, 1, 2);
    assert_valid(&request);
    assert_eq!(said(&request.turns), [&user("four")]);
}

#[test]
fn what_came_in_since_the_last_step_counts_for_the_next() {
    let mut folded = run(talk(3), &json!("And now?"));
    let plain = plan(&json!({"max_context_tokens": 100_000}), None);
    let before = transcript::turns(&folded, &plain, 1).len();
    let content = Content::Text("Also this.".to_owned());
    let event = answer::steer(&folded, 0, Clock::manual(AT).message_id(), &content);
    push(&mut folded, vec![event.expect("it can be steered")]);
    let seen = transcript::turns(&folded, &plain, 1);
    assert_eq!(seen.len(), before + 1);
    begin(&mut folded, &plain, 1);
    assert_eq!(transcript::turns(&folded, &plain, 1), seen, "what was measured is what is sent");
}

#[test]
fn a_turn_that_does_not_fit_goes_with_all_that_is_older() {
    let huge = [user(&"x".repeat(40_000)), model("ok")];
    let small = |count: usize| (0..count).flat_map(|_| [user("Well?"), model("Well.")]);
    let history = History::new(0, small(10).chain(huge).chain(small(2)));
    assert_eq!(window::dropped(&history, 5_000), 22);
    assert_eq!(window::dropped(&history, 11_000), 0);
    assert_eq!(window::dropped(&history, 0), 26);
    let half_read = History::new(7, std::iter::once(model("the end of one")).chain(small(2)));
    assert_eq!(window::dropped(&half_read, u64::MAX), 8, "what was not read whole is not shown");
}

#[test]
fn tokens_are_counted_by_alphabet_and_no_word_is_nothing() {
    for (text, tokens) in [
        ("", 0),
        ("a b c d", 4),
        ("The quick brown fox jumps.", 7),
        // Ten letters of two quarters each.
        ("Съешь\u{441}ъешь", 5),
        ("我能吞下玻璃", 6),
        ("{\"a\":[1,2,3]}", 4),
    ] {
        assert_eq!(tokens::of_text(text), tokens, "{text}");
    }
    let file = |media_type: &str| {
        let part = json!([{"type": "file", "media_type": media_type, "data": "A".repeat(160_000)}]);
        tokens::of_content(&serde_json::from_value(part).expect("content"))
    };
    assert_eq!(file("text/plain"), 30_000);
    assert_eq!(file("application/pdf"), 3_000);
}
