//! The operator's secrets: they reach their own hosts, and nothing else ever shows them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{caller, log};
use crate::support::model_server::{ModelServer, Reply};
use crate::support::on_both_databases;
use crate::support::server::Setup;

on_both_databases! {
    a_secret_reaches_its_host_and_shows_nowhere;
    a_secret_for_another_host_or_of_no_name_is_refused_when_the_agent_is_stored;
}

const VALUE: &str = "canary/7zq3x\"b+c d";
const YAML: &str = "
egress: { allow: [127.0.0.1] }
secrets:
  CRM: { env: TEST_CRM_TOKEN, hosts: [127.0.0.1] }
  OTHER: { env: TEST_OTHER_TOKEN, hosts: [other.example.com], workspaces: [default] }
";

fn setup(url: &str) -> Setup {
    let mut setup = Setup::new(url, YAML);
    setup.env = [("TEST_CRM_TOKEN", VALUE), ("TEST_OTHER_TOKEN", "canary-other-token")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    setup.args = ["--log", "trace"].map(str::to_owned).to_vec();
    setup
}

/// The value as it may be spelt somewhere; a part of it that no id or time can have by chance.
fn shows(text: &str) -> bool {
    let escaped = Value::from(VALUE).to_string();
    // In base64, as it is and behind "Key " (from its first whole group on); in hexadecimal digits.
    let encoded = ["Y2FuYXJ5Lzd6cTN4I", "bmFyeS83enEzeC", "63616e6172792f377a7133"];
    [VALUE, escaped.trim_matches('"'), "7zq3x", "canary-other"]
        .iter()
        .chain(&encoded)
        .any(|way| text.contains(way))
}

async fn a_secret_reaches_its_host_and_shows_nowhere(url: String) {
    let tools = ModelServer::start().await;
    // It echoes what it was sent, in every way that comes to mind.
    tools.answer_with(|request| {
        let sent = request.headers["x-key"].clone();
        let answer = |status, body: String| Reply::Whole {
            status,
            headers: vec![("x-echo".to_owned(), sent.clone())],
            body: body.into_bytes(),
        };
        match request.path.as_str() {
            "/json" => {
                answer(200, json!({"headers": {"x-key": sent}, sent.clone(): [sent]}).to_string())
            }
            "/text" => answer(200, format!("you sent {sent}, and {}", json!(sent))),
            "/400" => answer(400, format!("bad key: {sent}")),
            "/500" => answer(500, json!({"error": format!("bad key: {sent}")}).to_string()),
            "/base64" => answer(
                200,
                json!({
                    "alone": STANDARD.encode(VALUE),
                    "header": STANDARD.encode(&sent),
                    "in-url": URL_SAFE_NO_PAD.encode(format!("x:{sent}:x")),
                    "hex": sent.bytes().map(|byte| format!("{byte:02x}")).collect::<String>(),
                })
                .to_string(),
            ),
            // A page of HTML, and JSON inside of JSON.
            "/html" => answer(
                403,
                sent.replace('"', "&quot;") + "<br>" + &json!(json!(sent).to_string()).to_string(),
            ),
            // Nobody asked for that. Stored, not deflated, so that it holds what it holds.
            "/packed" => Reply::Whole {
                status: 200,
                headers: vec![("content-encoding".to_owned(), "gzip".to_owned())],
                body: [b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x01", sent.as_bytes()].concat(),
            },
            "/302" => {
                let location = format!("http://127.0.0.1/{sent}");
                Reply::Whole {
                    status: 302,
                    headers: vec![("location".to_owned(), location)],
                    body: vec![],
                }
            }
            // The bound falls into the middle of one.
            _ => answer(200, format!("{}{}", "x".repeat(256 * 1024 - 200), sent.repeat(40))),
        }
    });
    let setup = setup(&url);
    let server = setup.start().await;
    let client = &server.client;
    let mut seen = String::new();
    for path in ["json", "text", "400", "500", "302", "huge", "base64", "html", "packed"] {
        let tool = json!({
            "url": format!("{}/{path}", tools.origin()),
            "headers": {"X-Key": "Key ${secret.CRM}"},
        });
        let created = client.post("/v1/agents", &caller(path, tool, &json!({}))).await.expect(201);
        assert_eq!(created["tools"][0]["headers"]["X-Key"], "Key ${secret.CRM}");
        let run = client.run_to_end(path, &json!({"input": "Go"})).await;
        assert_eq!(run["status"], "completed", "{run}");
        let run_id = run["run_id"].as_str().expect("run_id");
        let request = tools.requests().pop().expect("a request");
        assert_eq!(request.headers["x-key"], format!("Key {VALUE}"));
        let events = log(client, run_id).await;
        let text = json!(events).to_string();
        assert!(text.contains("[secret CRM]") || path == "packed", "{path}: {text}");
        let agent = client.get(&format!("/v1/agents/{path}")).await.expect(200);
        let steps = client.get(&format!("/v1/runs/{run_id}/steps")).await.expect(200);
        seen.push_str(&format!("{run} {text} {agent} {steps} {created}"));
        for frame in client.events(run_id, 0).await.rest().await {
            seen.push_str(&frame.data);
        }
    }
    let logged = server.log();
    assert!(logged.contains("DEBUG"), "it logs all that it has to say");
    for (where_, text) in [("an answer", &seen), ("the log", &logged)] {
        let line = text.lines().find(|line| shows(line));
        assert_eq!(line, None, "a secret shows in {where_}");
    }
    server.terminate().await;
    if let Some(path) = url.strip_prefix("sqlite://") {
        for file in [path.to_owned(), format!("{path}-wal")] {
            let bytes = std::fs::read(&file).unwrap_or_default();
            assert!(!shows(&String::from_utf8_lossy(&bytes)), "a secret is in {file}");
        }
    }
}

async fn a_secret_for_another_host_or_of_no_name_is_refused_when_the_agent_is_stored(url: String) {
    let setup = setup(&url);
    let server = setup.start().await;
    let client = &server.client;
    let store = async |url: &str, header: &str| {
        let tool = json!({"url": url, "headers": {"X-Key": header}});
        client.post("/v1/agents", &caller("a", tool, &json!({}))).await
    };
    for (url, header) in [
        ("https://evil.example/", "${secret.CRM}"),
        ("https://127.0.0.1.evil.example/", "${secret.CRM}"),
        ("http://127.0.0.1/", "${secret.OTHER}"),
        ("http://127.0.0.1/", "${secret.NOBODY}"),
        ("http://127.0.0.1/", "${secret.CRM"),
        ("http://127.0.0.1/", "${env.HOME}"),
        ("http://127.0.0.1/", "a\r\nHost: evil"),
    ] {
        let answer = store(url, header).await;
        assert_eq!((answer.status, &answer.body["error"]), (422, &json!("validation_failed")));
        assert_eq!(answer.body["details"]["errors"][0]["pointer"], "/tools/0/headers/X-Key");
        assert!(!shows(&answer.body.to_string()), "{}", answer.body);
    }
    for name in ["Host", "content-length", "Transfer-Encoding", "Idempotency-Key", "X-Run-Id"] {
        let tool = json!({"url": "http://127.0.0.1/", "headers": {name: "x"}});
        let answer = client.post("/v1/agents", &caller("a", tool, &json!({}))).await;
        assert_eq!(
            (answer.status, &answer.body["error"]),
            (422, &json!("validation_failed")),
            "{name}"
        );
    }
    assert_eq!(store("http://127.0.0.1/", "${secret.CRM}").await.status, 201);
    // A change is held to the same rules, and so is the file.
    let tool = json!({"type": "http", "name": "t", "url": "https://evil.example/",
        "headers": {"X": "${secret.CRM}"}});
    let answer = client.patch("/v1/agents/a", &json!({"tools": [tool]})).await;
    assert_eq!(answer.status, 422);
    server.terminate().await;
    for (yaml, says) in [
        (
            "agents: { x: { model: builtin/echo, tools: [{ type: http, name: t, \
             url: 'https://evil.example', headers: { X: '${secret.CRM}' } }] } }\n",
            "the secret CRM is not for the host evil.example",
        ),
        (
            "agents: { x: { model: builtin/echo, tools: [{ type: http, name: t, \
             url: 'https://10.0.0.1' }] } }\n",
            "not public",
        ),
    ] {
        let mut setup = self::setup(&url);
        setup.yaml.push_str(yaml);
        let young = setup.try_start().await.err().expect("it does not start");
        assert!(young.log.contains(says), "{}", young.log);
    }
    let mut setup = self::setup(&url);
    setup.env.clear();
    let young = setup.try_start().await.err().expect("it does not start");
    let says = "the environment variable TEST_CRM_TOKEN is not set";
    assert!(young.log.contains(says), "{}", young.log);
}
