//! Creating runs: the three ways to get the answer, what is refused, and what a list shows.

use reqwest::Method;
use serde_json::{Value, json};

use super::{id, scripted, serve, slow_words};
use crate::support::on_both_databases;

on_both_databases! {
    a_poll_is_told_where_to_look_and_when;
    whoever_goes_away_cancels_only_if_the_request_said_so;
    lists_filter_and_page;
    bad_requests_are_refused_in_the_documented_shape_and_order;
    agents_have_versions_and_runs_keep_theirs;
    a_run_that_is_erased_is_gone_and_one_that_runs_stays;
    what_did_not_change_is_not_sent_again;
}

async fn a_poll_is_told_where_to_look_and_when(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    client.post("/v1/agents", &scripted("talker", &json!([slow_words(20, 10)]))).await.expect(201);
    let body = json!({"input": "Go", "metadata": {"ticket": "42"}, "end_user_id": "u_7"});
    let created = client.post("/v1/agents/talker/runs", &body).await;
    assert_eq!(created.status, 202, "{}", created.body);
    assert_eq!(created.header("retry-after"), Some("1"));
    let run_id = id(&created.body);
    let run = &created.body;
    assert_eq!(created.header("location"), Some(format!("/v1/runs/{run_id}").as_str()));
    assert_eq!(run["status_url"], format!("/v1/runs/{run_id}"));
    assert!(matches!(run["status"].as_str(), Some("queued" | "running")), "{run}");
    assert_eq!((&run["metadata"], &run["end_user_id"]), (&json!({"ticket": "42"}), &json!("u_7")));
    assert_eq!(run["retry_after_seconds"], 1);
    assert!(run["instructions"].as_str().is_some_and(|text| text.contains("/events")), "{run}");
    // The worst case of the first call: a small prompt and 4096 tokens of output at 10 micro-dollars.
    let worst = run["estimated_cost_usd"].as_f64().expect("an estimate");
    assert!((0.040_9..0.05).contains(&worst), "{worst}");
    let end = client.wait(&run_id).await;
    assert_eq!((&end["status"], &end["progress_percent"]), (&json!("completed"), &json!(100)));
    assert_eq!((&end["retry_after_seconds"], &end["instructions"]), (&Value::Null, &Value::Null));
    for field in ["started_at", "completed_at", "duration_ms", "cost_usd"] {
        assert!(!end[field].is_null(), "{field}: {end}");
    }
}

async fn whoever_goes_away_cancels_only_if_the_request_said_so(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    client.post("/v1/agents", &scripted("talker", &json!([{"text": "x"}]))).await.expect(201);
    // What is to be cancelled does not end by itself.
    for (on_disconnect, words, end) in
        [("cancel", 6_000, "cancelled"), ("continue", 100, "completed")]
    {
        let body = json!({"input": "Go", "stream": true, "on_disconnect": on_disconnect,
            "config": {"script": [slow_words(words, 10)]}});
        let request = client.request(Method::POST, "/v1/agents/talker/runs").json(&body);
        let mut stream = client.stream(request).await;
        let run_id = id(&stream.until("message.delta").await.json());
        drop(stream);
        let run = client.wait(&run_id).await;
        assert_eq!(run["status"], end, "{on_disconnect}");
    }
}

async fn lists_filter_and_page(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    for agent in ["one", "two"] {
        let agent = scripted(agent, &json!([{"text": "done"}]));
        client.post("/v1/agents", &agent).await.expect(201);
    }
    let mut ids = Vec::new();
    for n in 0..7 {
        let agent = if n % 2 == 0 { "one" } else { "two" };
        let body = json!({"input": "Go", "metadata": {"n": n.to_string(), "all": "yes"}});
        ids.push(id(&client.run_to_end(agent, &body).await));
    }
    ids.reverse();
    let list = |query: &str| {
        let path = format!("/v1/runs{query}");
        async move {
            let page = client.get(&path).await.expect(200);
            let ids: Vec<String> = page["data"].as_array().expect("data").iter().map(id).collect();
            (ids, page["has_more"].as_bool().expect("has_more"), page)
        }
    };
    let (all, more, _) = list("").await;
    assert_eq!((&all, more), (&ids, false), "newest first");
    let (first, more, page) = list("?limit=3").await;
    assert_eq!((&first[..], more), (&ids[..3], true));
    assert_eq!((&page["first_id"], &page["last_id"]), (&json!(ids[0]), &json!(ids[2])));
    let (second, _, _) = list(&format!("?limit=3&after={}", ids[2])).await;
    assert_eq!(second[..], ids[3..6]);
    let (back, more, _) = list(&format!("?limit=2&before={}", ids[3])).await;
    assert_eq!((&back[..], more), (&ids[1..3], true));
    let (up, _, _) = list("?order=asc&limit=1").await;
    assert_eq!(up[0], ids[6]);
    assert_eq!(list("?agent_id=two").await.0.len(), 3);
    assert_eq!(list("?metadata=n:3").await.0, [ids[3].clone()]);
    assert_eq!(list("?metadata=n:3&metadata=all:yes").await.0.len(), 1);
    assert_eq!(list("?metadata=n:3&metadata=all:no").await.0.len(), 0);
    assert_eq!(list("?status=completed,failed").await.0.len(), 7);
    assert_eq!(list("?status=queued").await.0.len(), 0);
    for (query, status, error) in [
        ("?after=x", 400, "invalid_cursor"),
        (&format!("?after={0}&before={0}", ids[0]), 422, "validation_failed"),
        ("?limit=0", 422, "validation_failed"),
        ("?limit=101", 422, "validation_failed"),
        ("?colour=red", 422, "unknown_field"),
        ("?status=busy", 422, "validation_failed"),
    ] {
        let answer = client.get(&format!("/v1/runs{query}")).await;
        assert_eq!((answer.status, &answer.body["error"]), (status, &json!(error)), "{query}");
    }
}

async fn bad_requests_are_refused_in_the_documented_shape_and_order(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let agent = scripted("talker", &json!([{"text": "done"}]));
    client.post("/v1/agents", &agent).await.expect(201);
    let deep = format!("{}1{}", "[".repeat(70), "]".repeat(70));
    let long = format!("{{\"input\":\"{}\"}}", "x".repeat(4 * 1024 * 1024));
    let runs = "/v1/agents/talker/runs";
    let cases: Vec<(&str, &str, String, u16, &str)> = vec![
        ("POST", runs, "{".into(), 400, "invalid_json"),
        ("POST", runs, "".into(), 400, "invalid_json"),
        ("POST", runs, "{\"input\": \"\\ud800\"}".into(), 400, "invalid_json"),
        ("POST", runs, format!("{{\"input\":{deep}}}"), 400, "invalid_json"),
        ("POST", runs, long, 413, "body_too_large"),
        ("POST", runs, "[]".into(), 422, "validation_failed"),
        ("POST", runs, "{}".into(), 422, "validation_failed"),
        ("POST", runs, "{\"input\":\"\"}".into(), 422, "validation_failed"),
        ("POST", runs, "{\"input\":\"x\",\"colour\":1}".into(), 422, "unknown_field"),
        (
            "POST",
            runs,
            "{\"input\":\"x\",\"config\":{\"tools\":[\"sql\"]}}".into(),
            422,
            "validation_failed",
        ),
        (
            "POST",
            runs,
            "{\"input\":\"x\",\"config\":{\"model\":\"nobody/m\"}}".into(),
            422,
            "validation_failed",
        ),
        (
            "POST",
            runs,
            "{\"input\":[{\"role\":\"tool\",\"content\":\"x\"}]}".into(),
            422,
            "validation_failed",
        ),
        (
            "POST",
            runs,
            "{\"input\":\"x\",\"callback_url\":\"https://example.com\"}".into(),
            422,
            "validation_failed",
        ),
        (
            "POST",
            runs,
            "{\"input\":\"x\",\"metadata\":{\"k\":\"a\\u0000b\"}}".into(),
            422,
            "validation_failed",
        ),
        ("POST", "/v1/agents/nobody/runs", "{\"input\":\"x\"}".into(), 404, "not_found"),
        ("POST", "/v1/agents/NOBODY/runs", "{\"input\":\"x\"}".into(), 404, "not_found"),
        ("POST", "/v1/agents", agent.to_string(), 409, "already_exists"),
        (
            "POST",
            "/v1/agents",
            "{\"agent_id\":\"A\",\"model\":\"builtin/echo\"}".into(),
            422,
            "validation_failed",
        ),
        ("PUT", runs, "{}".into(), 405, "method_not_allowed"),
        ("GET", "/v1/nowhere", "".into(), 404, "not_found"),
        ("GET", "/v1/runs/run_1", "".into(), 404, "not_found"),
        ("PATCH", "/v1/agents/demo", "{\"name\":\"x\"}".into(), 409, "read_only"),
        ("DELETE", "/v1/agents/demo", "".into(), 409, "read_only"),
    ];
    for (method, path, body, status, error) in cases {
        let what = format!("{method} {path} {}", body.chars().take(60).collect::<String>());
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = client.request(method.clone(), path);
        if method != Method::GET && method != Method::DELETE {
            request = request.header("content-type", "application/json").body(body);
        }
        let answer = client.send(request).await;
        assert_eq!((answer.status, &answer.body["error"]), (status, &json!(error)), "{what}");
        let body = answer.body.as_object().expect("an object").clone();
        for field in ["message", "details", "suggested_action", "retry", "request_id"] {
            assert!(body.contains_key(field), "{what}: {field} in {body:?}");
        }
        assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
        assert_eq!(answer.header("x-request-id"), body["request_id"].as_str(), "{what}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{what}");
    }
    let text = client.request(Method::POST, runs).header("content-type", "text/plain").body("{}");
    let answer = client.send(text).await;
    assert_eq!((answer.status, &answer.body["error"]), (415, &json!("unsupported_media_type")));
    let answer = client.get(&format!("/v1/runs?end_user_id={}", "x".repeat(9_000))).await;
    assert_eq!((answer.status, &answer.body["error"]), (414, &json!("uri_too_long")));
}

async fn agents_have_versions_and_runs_keep_theirs(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let agent = scripted("talker", &json!([{"text": "first"}]));
    let made = client.post("/v1/agents", &agent).await;
    assert_eq!(made.header("location"), Some("/v1/agents/talker"));
    let made = made.expect(201);
    assert_eq!((&made["version"], &made["managed_by"]), (&json!(1), &json!("api")));
    assert_eq!((&made["max_steps"], &made["max_output_tokens"]), (&json!(20), &json!(4096)));
    let slow = json!({"input": "Go", "config": {"script": [{"text": "x", "delay_ms": 300}]}});
    let old = client.post("/v1/agents/talker/runs", &slow).await.expect(202);
    let path = "/v1/agents/talker";
    let patched = client.patch(path, &json!({"script": [{"text": "second"}]})).await.expect(200);
    assert_eq!(patched["version"], 2);
    let same = client.patch(path, &json!({"script": [{"text": "second"}]})).await.expect(200);
    assert_eq!(same["version"], 2, "no change, no version");
    let request = client.request(Method::PATCH, path).header("if-match", "\"1\"");
    let late = client.send(request.json(&json!({"name": "x"}))).await;
    assert_eq!((late.status, &late.body["error"]), (409, &json!("version_conflict")));
    let new = client.run_to_end("talker", &json!({"input": "Go"})).await;
    assert_eq!((&new["agent_version"], &new["result"]["content"]), (&json!(2), &json!("second")));
    assert_eq!(client.wait(&id(&old)).await["agent_version"], 1);
    let first = client.get("/v1/agents/talker?version=1").await.expect(200);
    assert_eq!(first["script"][0]["text"], "first");
    client.delete(path).await.expect(204);
    client.delete(path).await.expect(204);
    let archived = client.post("/v1/agents/talker/runs", &json!({"input": "Go"})).await;
    assert_eq!((archived.status, &archived.body["error"]), (409, &json!("agent_archived")));
    assert!(!client.get(path).await.expect(200)["archived_at"].is_null(), "still readable");
    let taken = client.post("/v1/agents", &agent).await;
    assert_eq!(taken.status, 409, "the id is not free again");
    let list = client.get("/v1/agents").await.expect(200);
    let listed: Vec<&str> = list["data"]
        .as_array()
        .expect("data")
        .iter()
        .filter_map(|a| a["agent_id"].as_str())
        .collect();
    assert_eq!(listed, ["demo"], "not listed");
}

async fn a_run_that_is_erased_is_gone_and_one_that_runs_stays(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let agent = scripted("talker", &json!([{"text": "late", "delay_ms": 60_000}]));
    client.post("/v1/agents", &agent).await.expect(201);
    let run = client.post("/v1/agents/talker/runs", &json!({"input": "Go"})).await.expect(202);
    let path = format!("/v1/runs/{}", id(&run));
    let active = client.delete(&path).await;
    assert_eq!((active.status, &active.body["error"]), (409, &json!("run_active")));
    client.post(&format!("{path}/cancel"), &json!({})).await;
    client.wait(&id(&run)).await;
    client.delete(&path).await.expect(204);
    for gone in ["", "/events", "/log", "/steps"] {
        assert_eq!(client.get(&format!("{path}{gone}")).await.status, 404, "{gone}");
    }
    assert_eq!(client.delete(&path).await.status, 404);
}

async fn what_did_not_change_is_not_sent_again(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    client.post("/v1/agents", &scripted("talker", &json!([{"text": "done"}]))).await.expect(201);
    let run = client.run_to_end("talker", &json!({"input": "Go"})).await;
    let path = format!("/v1/runs/{}", id(&run));
    let first = client.get(&path).await;
    let etag = first.header("etag").expect("an ETag").to_owned();
    assert_eq!(etag, format!("W/\"{}\"", run["last_seq"]));
    let again = client.request(Method::GET, &path).header("if-none-match", &etag);
    assert_eq!(client.send(again).await.status, 304);
    // HEAD works as GET.
    let head = client.send(client.request(Method::HEAD, &path)).await;
    assert_eq!((head.status, head.header("etag")), (200, Some(etag.as_str())));
    // A wait for something that has ended answers at once.
    let asked = std::time::Instant::now();
    client.get(&format!("{path}?wait=60")).await.expect(200);
    assert!(asked.elapsed() < std::time::Duration::from_secs(30), "{:?}", asked.elapsed());
    for page in ["/healthz", "/readyz", "/openapi.json", "/openapi.yaml", "/docs"] {
        let answer = client.get(page).await;
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
    }
}
