//! Model calls of one chunk and of 500, on both wires, over a socket that is kept: the difference is
//! what decoding costs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use serde_json::{Map, json};
use stepwell::domain::message::Content;
use stepwell::domain::model::{ModelName, ModelRequest, ToolChoice, Turn};
use stepwell::models::{Model, Models, ProviderSettings, Show, Timeouts, Wire};
use tokio::runtime::Runtime;

/// Takes what is shown, as the engine does, and forgets it.
#[derive(Default)]
struct Shown(String);

impl Show for Shown {
    fn text(&mut self, piece: &str) {
        self.0.push_str(piece);
    }
    fn reasoning(&mut self, _piece: &str) {}
    fn room(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
    fn is_full(&self) -> bool {
        false
    }
}

fn event(data: &serde_json::Value) -> String {
    format!("data: {data}\n\n")
}

/// An answer of so many chunks, as OpenAI writes it.
fn openai(chunks: usize) -> String {
    let chunk = |delta, finish_reason| {
        let choice =
            json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
        event(&json!({
            "id": "chatcmpl-CZ8eS5iJtOVWhPLqCyOIqpIRrdmWD", "object": "chat.completion.chunk",
            "created": 1_795_340_613, "model": "gpt-4o", "service_tier": "default",
            "system_fingerprint": "fp_cbf1785567", "choices": [choice], "usage": null,
        }))
    };
    let text = chunk(json!({"content": "token "}), json!(null)).repeat(chunks);
    let usage =
        json!({"prompt_tokens": 10, "completion_tokens": chunks, "total_tokens": chunks + 10});
    let usage = event(&json!({"object": "chat.completion.chunk", "choices": [], "usage": usage}));
    text + &chunk(json!({}), json!("stop")) + &usage + "data: [DONE]\n\n"
}

/// The same, as Anthropic writes it.
fn anthropic(chunks: usize) -> String {
    let named = |data: &serde_json::Value| {
        format!("event: {}\n{}", data["type"].as_str().unwrap(), event(data))
    };
    let usage = json!({"input_tokens": 10, "output_tokens": 1});
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [],
        "model": "claude", "stop_reason": null, "usage": usage});
    let delta = json!({"type": "text_delta", "text": "token "});
    let delta = json!({"type": "content_block_delta", "index": 0, "delta": delta});
    let end = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": chunks}});
    let block = json!({"type": "text", "text": ""});
    [
        named(&json!({"type": "message_start", "message": message})),
        named(&json!({"type": "content_block_start", "index": 0, "content_block": block})),
        named(&delta).repeat(chunks),
        named(&json!({"type": "content_block_stop", "index": 0})),
        named(&end),
        named(&json!({"type": "message_stop"})),
    ]
    .concat()
}

/// Answers every request with this stream, in one write.
fn serve(stream: &str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let length = stream.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let answer = format!("{head}content-length: {length}\r\n\r\n{stream}");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let (socket, answer) = (socket.unwrap(), answer.clone());
            std::thread::spawn(move || answer_all(&socket, &answer));
        }
    });
    address
}

/// Until the client goes.
fn answer_all(socket: &TcpStream, answer: &str) {
    socket.set_nodelay(true).unwrap();
    let (mut lines, mut socket) = (BufReader::new(socket), socket);
    let (mut line, mut length) = (String::new(), 0);
    while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
        if let Some((_, value)) = line.to_ascii_lowercase().split_once("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            lines.read_exact(&mut vec![0; length]).unwrap();
            socket.write_all(answer.as_bytes()).unwrap();
        }
        line.clear();
    }
}

fn model(wire: Wire, stream: &str) -> Arc<dyn Model> {
    let settings = ProviderSettings {
        name: "bench".to_owned(),
        wire,
        base_url: format!("http://{}/v1", serve(stream)),
        api_key: None,
        timeouts: Timeouts::default(),
    };
    let models = Models::new(vec![settings]).unwrap();
    let name = ModelName { provider: "bench".to_owned(), model: "bench".to_owned() };
    models.find(&name).unwrap()
}

fn request() -> ModelRequest {
    ModelRequest {
        model: "bench".to_owned(),
        turns: vec![Turn::User(Content::Text("What is the weather like in Ulm?".to_owned()))],
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        temperature: None,
        top_p: None,
        max_output_tokens: 4096,
        reasoning_effort: None,
        provider_options: Map::new(),
        output_schema: None,
        script_turn: 0,
        script: Vec::new(),
        attempt: 1,
    }
}

pub fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let request = request();
    let mut group = criterion.benchmark_group("model call");
    let wires = [
        ("openai", Wire::OpenAi, openai as fn(usize) -> String),
        ("anthropic", Wire::Anthropic, anthropic),
    ];
    for (name, wire, stream) in wires {
        for chunks in [1_usize, 500] {
            let model = model(wire, &stream(chunks));
            group.throughput(Throughput::Elements(chunks as u64));
            group.bench_function(format!("{name}, an answer of {chunks} chunks"), |b| {
                b.iter(|| {
                    let mut shown = Shown::default();
                    let answer = runtime.block_on(model.call(&request, &mut shown)).unwrap();
                    assert_eq!(answer.content.len(), chunks * "token ".len());
                    answer
                });
            });
        }
    }
    group.finish();
}
