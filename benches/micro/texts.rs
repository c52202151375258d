//! Events as text: written once, framed for each reader, and folded when a run is taken up.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use serde_json::json;
use stepwell::clock::Clock;
use stepwell::domain::agent::AgentSettings;
use stepwell::domain::decide::Ending;
use stepwell::domain::event::{Entry, Event, EventType, RunQueued};
use stepwell::domain::fold::Folded;
use stepwell::domain::ids::RunId;
use stepwell::domain::message::Input;
use stepwell::domain::model::{Catalogue, FinishReason, ModelAnswer, RequestedCall};
use stepwell::domain::plan::Plan;
use stepwell::domain::run::RunStatus;
use stepwell::domain::time::Timestamp;
use stepwell::domain::usage::Usage;
use stepwell::domain::write;
use stepwell::log::page::Page;

/// Events of one page of a stream that is read from the beginning.
const PAGE: i32 = 500;

pub fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_795_340_613_000 + millis)
}

pub fn delta(run_id: RunId, seq: i32) -> Entry {
    Entry::delta(EventType::MessageDelta, run_id, seq, at(i64::from(seq)), 1, "token ").unwrap()
}

pub fn queued() -> Event {
    Event::RunQueued(RunQueued {
        status: RunStatus::Queued,
        agent_id: "bench".parse().unwrap(),
        agent_version: 1,
        model: "bench/bench".to_owned(),
        input: Input::Text("What is the weather like in Ulm?".to_owned()),
        conversation_id: None,
        parent_run_id: None,
        forked_from_run_id: None,
        depth: 0,
    })
}

/// A log of about so many facts, written as the engine does: each step calls a tool.
fn log(facts: usize) -> Vec<Entry> {
    let mut clock = Clock::system();
    let run_id = clock.run_id();
    let settings: AgentSettings = serde_json::from_value(json!({
        "model": "builtin/echo", "max_steps": 1_000,
        "tools": [{"type": "builtin", "name": "echo"}],
    }))
    .unwrap();
    let plan = Plan::new(settings, &Catalogue::default());
    let mut log = vec![queued().entry(run_id, 1, at(1)).unwrap()];
    let mut folded = Folded::read(&log).unwrap();
    let mut push = |folded: &mut Folded, events: Vec<Event>| {
        for event in events {
            let seq = i32::try_from(log.len()).unwrap() + 1;
            folded.apply(seq, at(i64::from(seq)), event.clone()).unwrap();
            log.push(event.entry(run_id, seq, at(i64::from(seq))).unwrap());
        }
        log.len()
    };
    let first = write::started(&folded);
    push(&mut folded, first);
    for step in 1.. {
        let answer = ModelAnswer {
            content: "I shall look that up.".to_owned(),
            reasoning: String::new(),
            tool_calls: vec![RequestedCall {
                tool: "echo".to_owned(),
                arguments: json!({"text": "Ulm"}).to_string(),
            }],
            finish_reason: FinishReason::ToolCalls,
            usage: Usage::new(100, 0, 20, 0),
            provider_state: None,
        };
        let events = write::step_started(&folded, &plan, step);
        push(&mut folded, events);
        push(&mut folded, write::answered(step, &plan, answer, &mut clock));
        let call = folded.open_step().unwrap().calls[0].clone();
        push(&mut folded, vec![write::call_started(step, &call, &plan)]);
        let call = folded.open_step().unwrap().calls[0].clone();
        let result = Ok(json!({"text": "Ulm"}));
        push(&mut folded, vec![write::call_answered(step, &call, result, at(1_000))]);
        let end = write::step_completed(&folded, folded.open_step().unwrap(), at(1_000));
        if push(&mut folded, vec![end]) + 1 >= facts {
            break;
        }
    }
    let end = write::ended(&folded, Ending::Completed(None), at(2_000));
    push(&mut folded, end);
    log
}

pub fn bench(criterion: &mut Criterion) {
    let run_id = Clock::system().run_id();
    for facts in [9, 1_000] {
        let log = log(facts);
        let mut group = criterion.benchmark_group("fold");
        group.throughput(Throughput::Elements(log.len() as u64));
        group.bench_function(format!("a log of {} events", log.len()), |b| {
            b.iter(|| Folded::read(black_box(&log)).unwrap());
        });
        group.finish();
    }

    let mut group = criterion.benchmark_group("encode");
    let event = queued();
    group.bench_function("run.queued", |b| {
        b.iter(|| black_box(&event).entry(run_id, 1, at(1)).unwrap());
    });
    group.bench_function("message.delta", |b| b.iter(|| delta(black_box(run_id), 7)));
    group.finish();

    let page: Vec<Entry> = (1..=PAGE).map(|seq| delta(run_id, seq)).collect();
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(page.len() as u64));
    group.bench_function(format!("a page of {PAGE} events"), |b| {
        b.iter(|| Page::of(black_box(&page)));
    });
    group.finish();
}
