//! The models that need no provider.

use std::time::Duration;

use serde_json::json;
use stepwell::domain::agent::ScriptTurn;
use stepwell::domain::model::{FinishReason, ModelAnswer, ModelName, ModelRequest};
use stepwell::domain::retry::{FailureKind, ModelFailure};
use stepwell::domain::usage::Usage;
use stepwell::models::script::Script;
use stepwell::models::{Model, Models};

use super::{Shown, request, user};

fn scripted(script: serde_json::Value) -> ModelRequest {
    let script: Vec<ScriptTurn> = serde_json::from_value(script).unwrap();
    ModelRequest { script, ..request() }
}

async fn play(request: &ModelRequest) -> (Result<ModelAnswer, ModelFailure>, Shown) {
    let name = ModelName::parse("builtin/script").unwrap();
    let model = Models::new(vec![]).unwrap().find(&name).unwrap();
    let mut shown = Shown::default();
    (model.call(request, &mut shown).await, shown)
}

#[tokio::test]
async fn echo_says_the_last_words_of_the_user_word_by_word() {
    let models = Models::new(vec![]).unwrap();
    let echo = models.find(&ModelName::parse("builtin/echo").unwrap()).unwrap();
    let mut request = request();
    request.turns.push(user("over  and\nout"));
    let mut shown = Shown { busy: Some(Duration::ZERO), ..Shown::default() };
    let answer = echo.call(&request, &mut shown).await.unwrap();
    assert_eq!(shown.text, ["over ", " ", "and\n", "out"]);
    assert_eq!((answer.content.as_str(), shown.busy), ("over  and\nout", None));
    assert_eq!(answer.usage, Usage::new(8, 0, 3, 0));
    assert!(models.find(&ModelName::parse("builtin/other").unwrap()).is_none());
    assert!(models.find(&ModelName::parse("gone/m").unwrap()).is_none());
}

#[tokio::test]
async fn a_script_plays_one_turn_a_call_and_then_falls_silent() {
    let mut request = scripted(json!([
        {"reasoning": "let me think", "text": "I will look", "tool_calls": [
            {"tool": "echo", "arguments": {"text": "x"}}, {"tool": "current_time"}]},
        {"text": "done", "usage": {"input_tokens": 100, "output_tokens": 7}, "delay_ms": 1, "chunk_delay_ms": 1},
    ]));
    let (result, shown) = play(&request).await;
    let answer = result.unwrap();
    assert_eq!(shown.reasoning, ["let ", "me ", "think"]);
    assert_eq!(shown.text, ["I ", "will ", "look"]);
    let calls: Vec<_> =
        answer.tool_calls.iter().map(|c| (c.tool.as_str(), c.arguments.as_str())).collect();
    assert_eq!(calls, [("echo", r#"{"text":"x"}"#), ("current_time", "{}")]);
    assert_eq!(answer.finish_reason, FinishReason::ToolCalls);
    // 5 words asked; 3 said, 3 thought, 2 + 2 of the calls.
    assert_eq!(answer.usage, Usage::new(5, 0, 10, 3));

    request.script_turn = 1;
    let answer = play(&request).await.0.unwrap();
    assert_eq!((answer.content.as_str(), answer.usage), ("done", Usage::new(100, 0, 7, 0)));

    request.script_turn = 2;
    let (result, shown) = play(&request).await;
    let answer = result.unwrap();
    assert_eq!((answer.content.as_str(), shown.text.len()), ("", 0));
    assert_eq!(answer.finish_reason, FinishReason::Stop);
}

#[tokio::test]
async fn a_script_fails_as_it_says_and_as_often_as_it_says() {
    let fail = |fail: serde_json::Value| scripted(json!([{"text": "one two three", "fail": fail}]));
    let cases = [
        (json!({"kind": "status"}), FailureKind::Busy(500), ""),
        (json!({"kind": "status", "status": 401}), FailureKind::Refused(401), ""),
        (json!({"kind": "reset"}), FailureKind::Broken, "one two "),
        (json!({"kind": "cut"}), FailureKind::Cut, "one two "),
    ];
    for (told, kind, said) in cases {
        let (result, shown) = play(&fail(told.clone())).await;
        assert_eq!(
            (result.unwrap_err().kind, shown.text.concat().as_str()),
            (kind, said),
            "{told}"
        );
    }
    let told = json!({"kind": "status", "status": 429, "retry_after_seconds": 7, "times": 2});
    let mut request = fail(told);
    for attempt in 1..=2 {
        request.attempt = attempt;
        let failure = play(&request).await.0.unwrap_err();
        assert_eq!(failure.retry_after, Some(Duration::from_secs(7)));
    }
    request.attempt = 3;
    assert_eq!(play(&request).await.0.unwrap().content, "one two three");
}

#[tokio::test]
async fn a_script_that_hangs_is_given_up() {
    let request = scripted(json!([{"text": "never", "fail": {"kind": "hang"}}]));
    let mut shown = Shown::default();
    let script = Script { first_token: Duration::from_millis(5) };
    let failure = script.call(&request, &mut shown).await.unwrap_err();
    assert_eq!((failure.kind, shown.text.len()), (FailureKind::Timeout, 0));
}
