//! What the server answers is what `openapi.yaml` says: field by field, for every kind of object.

use jsonschema::Validator;
use serde_json::{Value, json};

use super::{id, serve};
use crate::support::client::{Answer, Client};
use crate::support::on_both_databases;

on_both_databases! {
    answers_about_tools_and_people_are_as_the_spec_describes_them;
}

/// The spec of a running server, and its client.
struct Described {
    client: Client,
    spec: Value,
}

impl Described {
    /// Judges an answer to the operation at `path`, a template of the spec.
    fn judge(&self, method: &str, path: &str, answer: &Answer) {
        let status = answer.status.to_string();
        let content = &self.spec["paths"][path][method]["responses"][&status]["content"];
        let mut schema = content["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{method} {path} has no {status}: {}", answer.body);
        schema["components"] = self.spec["components"].clone();
        let judge: Validator = jsonschema::validator_for(&schema).expect("a schema");
        let wrong: Vec<String> = judge
            .iter_errors(&answer.body)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert_eq!(wrong, Vec::<String>::new(), "{method} {path}: {}", answer.body);
        self.knows_all_of(&content["application/json"]["schema"], &answer.body, path);
    }

    /// A field that the spec does not name is one that no generated client has.
    fn knows_all_of(&self, schema: &Value, value: &Value, at: &str) {
        if let Some(name) = schema["$ref"].as_str().and_then(|place| place.rsplit('/').next()) {
            return self.knows_all_of(&self.spec["components"]["schemas"][name], value, at);
        }
        if let Some(mapping) = schema["discriminator"]["mapping"].as_object() {
            let place = &mapping[value["type"].as_str().expect("a type")];
            return self.knows_all_of(&json!({ "$ref": place }), value, at);
        }
        if let Some(options) = schema["oneOf"].as_array().filter(|_| value.is_object()) {
            let named = options.iter().find(|option| option["$ref"].is_string());
            return named.map_or((), |option| self.knows_all_of(option, value, at));
        }
        match value {
            Value::Object(fields) => {
                let Some(known) = schema["properties"].as_object() else { return };
                for (name, value) in fields {
                    let at = format!("{at}.{name}");
                    let field = known.get(name).unwrap_or_else(|| panic!("{at} is not known"));
                    self.knows_all_of(field, value, &at);
                }
            }
            Value::Array(values) => {
                for value in values {
                    self.knows_all_of(&schema["items"], value, at);
                }
            }
            _ => {}
        }
    }

    async fn get(&self, path: &str, query: &str, run_id: &str) -> Value {
        let answer = self.client.get(&format!("{}{query}", path.replace("{run_id}", run_id))).await;
        self.judge("get", path, &answer);
        answer.body
    }

    async fn post(&self, path: &str, ids: [(&str, &str); 1], body: &Value) -> Value {
        let [(name, id)] = ids;
        let answer = self.client.post(&path.replace(name, id), body).await;
        self.judge("post", path, &answer);
        answer.body
    }
}

async fn answers_about_tools_and_people_are_as_the_spec_describes_them(url: String) {
    let (_setup, server) = serve(url).await;
    let spec = server.client.get("/openapi.json").await.expect(200);
    let api = Described { client: server.client.clone(), spec };
    let none = ("", "");
    let child = json!({
        "agent_id": "child", "model": "builtin/script",
        "tools": [{"type": "builtin", "name": "echo", "requires_approval": true}],
        "script": [{"tool_calls": [{"tool": "echo", "arguments": {"text": "a"}}]}, {"text": "Done."}],
    });
    api.post("/v1/agents", [none], &child).await;
    let agent = json!({
        "agent_id": "parent", "model": "builtin/script",
        "tools": [
            {"type": "agent", "name": "ask", "agent_id": "child", "effect": "read"},
            {"type": "client", "name": "look", "effect": "read"},
            {"type": "mcp", "name": "docs", "description": "Ours.", "url": "https://docs.example.com/mcp"},
            {"type": "http", "name": "send", "url": "https://crm.example.com/{id}"},
            {"type": "builtin", "name": "current_time", "effect": "once"},
        ],
        "script": [
            {"text": "I ask.", "tool_calls": [
                {"tool": "ask", "arguments": {"input": "?"}}, {"tool": "look", "arguments": {}},
                {"tool": "current_time", "arguments": {}}, {"tool": "nobody", "arguments": {}}]},
            {"text": "Done."},
        ],
    });
    let stored = api.post("/v1/agents", [none], &agent).await;
    let effects: Vec<&Value> =
        stored["tools"].as_array().unwrap().iter().map(|tool| &tool["effect"]).collect();
    assert_eq!(effects, ["read", "read", "once", "once", "once"]);

    let names = json!({"input": "Go", "config": {"tools": ["ask", "look", "current_time"]}});
    let create = "/v1/agents/{agent_id}/runs";
    let run = api.post(create, [("{agent_id}", "parent")], &names).await;
    let run = api.client.wait(&id(&run)).await;
    let run_id = id(&run);
    assert_eq!(run["required_actions"].as_array().map(Vec::len), Some(2), "{run}");
    api.get("/v1/runs/{run_id}", "?include=steps", &run_id).await;
    api.get("/v1/runs/{run_id}/log", "", &run_id).await;
    let steps = api.get("/v1/runs/{run_id}/steps", "", &run_id).await;
    assert_eq!(steps["data"][0]["tool_calls"].as_array().map(Vec::len), Some(4), "{steps}");
    let open = api.get("/v1/approvals", "", "").await;
    let call = |from: &Value| from["call_id"].as_str().unwrap().to_owned();

    let here = [("{run_id}", run_id.as_str())];
    let approve = json!({"call_id": call(&open["data"][0]), "decision": "approve", "arguments": {"text": "b"}});
    api.post("/v1/runs/{run_id}/approvals", here, &approve).await;
    api.post("/v1/runs/{run_id}/messages", here, &json!({"content": "Be brief."})).await;
    let asked = run["required_actions"].as_array().unwrap();
    let mine = asked.iter().find(|action| action["type"] == "tool_result").unwrap();
    let result = json!({"call_id": call(mine), "success": true, "result": {"rows": 3}});
    api.post("/v1/runs/{run_id}/tool-results", here, &result).await;
    api.client.events(&run_id, 0).await.rest().await;
    let ended = api.get("/v1/runs/{run_id}", "", &run_id).await;
    assert_eq!(ended["status"], "completed", "{ended}");
    api.get("/v1/runs/{run_id}/log", "", &run_id).await;
    api.get("/v1/runs/{run_id}/steps", "", &run_id).await;
    api.get("/v1/runs", "", "").await;
    let fork = api.post("/v1/runs/{run_id}/fork", here, &json!({"from_step": 2})).await;
    api.client.wait(&id(&fork)).await;
    api.get("/v1/runs/{run_id}/log", "", &id(&fork)).await;
    api.get("/v1/agents", "", "").await;

    let conversation = api.post("/v1/conversations", [none], &json!({"agent_id": "parent"})).await;
    let conversation_id = conversation["conversation_id"].as_str().unwrap();
    let here = [("{conversation_id}", conversation_id)];
    let config = json!({"tools": [], "script": [{"text": "Hello."}]});
    let turn = json!({"content": "Hi", "config": config});
    api.post("/v1/conversations/{conversation_id}/complete", here, &turn).await;
    api.post("/v1/conversations/{conversation_id}/heartbeat", here, &json!({})).await;
    let messages = api.client.get(&format!("/v1/conversations/{conversation_id}/messages")).await;
    api.judge("get", "/v1/conversations/{conversation_id}/messages", &messages);
    api.get("/v1/conversations", "", "").await;
}
