//! The reference server of the protocol's authors (`tests/mcp`), called by an agent.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{agent, log, of, serve};
use crate::support::on_both_databases;
use crate::support::postgres::port_that_stays;

on_both_databases! {
    the_reference_server_is_discovered_and_called;
    what_the_reference_server_keeps_in_a_session_is_there_in_the_next_step;
    a_slow_call_of_the_reference_server_is_cancelled;
}

/// The reference server, on a port of its own.
struct Everything {
    process: Child,
    url: String,
    said: Arc<Mutex<String>>,
}

impl Everything {
    async fn start() -> Self {
        tokio::task::spawn_blocking(Self::start_now).await.expect("no panic")
    }

    fn start_now() -> Self {
        let root = env!("CARGO_MANIFEST_DIR");
        let installed = Command::new(format!("{root}/tests/mcp/install.sh"))
            .stderr(Stdio::inherit())
            .output()
            .expect("tests/mcp/install.sh");
        assert!(installed.status.success(), "the reference servers are installed");
        let folder = String::from_utf8(installed.stdout).expect("a folder");
        let main = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
        let port = port_that_stays();
        let mut process = Command::new("node")
            .arg(format!("{}/{main}", folder.trim()))
            .arg("streamableHttp")
            .env("PORT", port.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node");
        let said = Arc::new(Mutex::new(String::new()));
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        keep(stdout.expect("stdout"), said.clone());
        keep(stderr.expect("stderr"), said.clone());
        let server = Self { process, url: format!("http://127.0.0.1:{port}/mcp"), said };
        server.wait_for("listening on port", 1);
        server
    }

    /// Resolves when so many sessions were ended.
    async fn ended(self: Arc<Self>, count: usize) {
        self.heard("Received session termination request", count).await;
    }

    /// Resolves when it has said so, so often.
    async fn heard(self: &Arc<Self>, words: &'static str, count: usize) {
        let server = self.clone();
        let heard = tokio::task::spawn_blocking(move || server.wait_for(words, count));
        heard.await.expect("it is heard");
    }

    fn wait_for(&self, words: &str, times: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.said.lock().expect("no panic").matches(words).count() < times {
            assert!(Instant::now() < until, "no {words:?}: {:?}", self.said);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Keeps what the server says.
fn keep(pipe: impl Read + Send + 'static, said: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            let mut said = said.lock().expect("no panic");
            said.push_str(&line);
            said.push('\n');
        }
    });
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn the_reference_server_is_discovered_and_called(url: String) {
    let (_setup, server) = serve(url).await;
    let everything = Everything::start().await;
    let tools = json!([{"type": "mcp", "name": "every", "url": everything.url, "effect": "read"}]);
    let calls = json!([
        {"tool": "every__echo", "arguments": {"message": "hello"}},
        {"tool": "every__get-sum", "arguments": {"a": 2, "b": 3}},
        {"tool": "every__get-structured-content", "arguments": {"location": "Chicago"}},
        {"tool": "every__get-tiny-image"},
        {"tool": "every__echo", "arguments": {"message": 7}},
        {"tool": "every__get-resource-reference", "arguments": {"resourceType": "Text", "resourceId": -1}},
    ]);
    let agent = agent("every", &tools, &calls);
    server.client.post("/v1/agents", &agent).await.expect(201);
    let end = server.client.run_to_end("every", &json!({"input": "Go"})).await;
    assert_eq!(end["status"], "completed", "{end}");
    let log = log(&server.client, &end).await;
    let result = |tool: &str| {
        let completed = of(&log, "tool_call.completed");
        let found = completed.into_iter().find(|event| event["tool"] == tool);
        found.unwrap_or_else(|| panic!("{tool}: {log:?}"))["result"].clone()
    };
    assert_eq!(result("every__echo"), "Echo: hello");
    assert_eq!(result("every__get-sum"), "The sum of 2 and 3 is 5.");
    assert!(result("every__get-structured-content")["temperature"].is_number());
    let image = result("every__get-tiny-image");
    assert!(image.as_str().expect("text").contains("[image, image/png, "), "{image}");
    let failed = of(&log, "tool_call.failed");
    assert_eq!(failed.len(), 2, "{failed:?}");
}

async fn what_the_reference_server_keeps_in_a_session_is_there_in_the_next_step(url: String) {
    let (_setup, server) = serve(url).await;
    let everything = Arc::new(Everything::start().await);
    // It logs or does not, session by session.
    let toggle = json!([{"tool": "every__toggle-simulated-logging"}]);
    let agent = json!({
        "agent_id": "toggling", "model": "builtin/script",
        "tools": [{"type": "mcp", "name": "every", "url": everything.url}],
        "script": [
            {"text": "On.", "tool_calls": toggle}, {"text": "Off.", "tool_calls": toggle},
            {"text": "Done."},
        ],
    });
    server.client.post("/v1/agents", &agent).await.expect(201);
    let end = server.client.run_to_end("toggling", &json!({"input": "Go"})).await;
    assert_eq!(end["status"], "completed", "{end}");
    let log = log(&server.client, &end).await;
    let told: Vec<_> =
        of(&log, "tool_call.completed").iter().map(|e| e["result"].to_string()).collect();
    assert!(
        told[0].contains("Started simulated") && told[1].contains("Stopped simulated"),
        "{told:?}"
    );
    everything.ended(2).await;
}

async fn a_slow_call_of_the_reference_server_is_cancelled(url: String) {
    let (_setup, server) = serve(url).await;
    let client = &server.client;
    let everything = Arc::new(Everything::start().await);
    let tools = json!([{"type": "mcp", "name": "every", "url": everything.url}]);
    let slow = json!({"duration": 60, "steps": 60});
    let calls = json!([{"tool": "every__trigger-long-running-operation", "arguments": slow}]);
    client.post("/v1/agents", &agent("slow", &tools, &calls)).await.expect(201);
    let run = client.post("/v1/agents/slow/runs", &json!({"input": "Go"})).await.expect(202);
    let run_id = run["run_id"].as_str().expect("run_id");
    // Two messages open the session of the list, the third asks for it; so with the run's, and the call.
    // That takes a minute.
    everything.heard("Received MCP POST request", 6).await;
    let asked = Instant::now();
    client.post(&format!("/v1/runs/{run_id}/cancel"), &json!({})).await;
    let end = client.wait(run_id).await;
    assert_eq!(end["status"], "cancelled");
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    // The session of the list has ended before; this is that of the run.
    everything.ended(2).await;
}
