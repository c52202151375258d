//! What is wrong before the body: lines, targets, headers, lengths.

use super::{Case, RUNS, Then, case, get, hostile_texts, lines, post, send};

const JSON: &str = "content-type: application/json";

pub fn cases(run_id: &str) -> Vec<Case> {
    let mut cases = no_http();
    cases.extend(lengths());
    cases.extend(targets(run_id));
    cases.extend(headers(run_id));
    cases.extend(methods(run_id));
    cases
}

fn no_http() -> Vec<Case> {
    vec![
        case("nothing", "", Then::Bare),
        case("empty lines", "\r\n\r\n\r\n\r\n", Then::Bare),
        case("HTTP/0.9", "GET /healthz\r\n\r\n", Then::Bare),
        case("HTTP/3.7", "GET /healthz HTTP/3.7\r\nhost: x\r\n\r\n", Then::Bare),
        case("no HTTP", "EHLO mail.example.com\r\n", Then::Bare),
        case("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Then::Bare),
        case("zeros", vec![0; 4096], Then::Bare),
        case("bytes", (0..=255).cycle().take(8192).collect::<Vec<u8>>(), Then::Bare),
        case("half a preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM", Then::Bare),
        case("a wrong preface", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Then::Bare),
        case(
            "a preface, then none of its frames",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            Then::Bare,
        ),
        case("a space in a name", "GET /healthz HTTP/1.1\r\nhost: x\r\na b: c\r\n\r\n", Then::Bare),
        case("no colon", "GET /healthz HTTP/1.1\r\nhost: x\r\nabc\r\n\r\n", Then::Bare),
        case("a NUL in a header", "GET /healthz HTTP/1.1\r\nhost: x\r\na: \0\r\n\r\n", Then::Bare),
        case(
            "a line that goes on",
            "GET /healthz HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n",
            Then::Bare,
        ),
        case("a target without a slash", "GET healthz HTTP/1.1\r\nhost: x\r\n\r\n", Then::Bare),
        case("a target with a space", "GET /heal thz HTTP/1.1\r\nhost: x\r\n\r\n", Then::Bare),
        case("a NUL in the target", "GET /healthz\0 HTTP/1.1\r\nhost: x\r\n\r\n", Then::Bare),
        case(
            "a head without end",
            format!("GET /healthz HTTP/1.1\r\nhost: x\r\na: {}", "x".repeat(1 << 20)),
            Then::Bare,
        ),
        case("a target of a megabyte", get(&format!("/{}", "x".repeat(1 << 20))), Then::Bare),
        case(
            "a header of a megabyte",
            lines(&["GET /healthz HTTP/1.1", "host: x", &format!("a: {}", "x".repeat(1 << 20))]),
            Then::Bare,
        ),
        case(
            "10,000 headers",
            lines(&["GET /healthz HTTP/1.1", "host: x", &vec!["a: b"; 10_000].join("\r\n")]),
            Then::Refused(431),
        ),
        case(
            "101 headers",
            lines(&["GET /healthz HTTP/1.1", &vec!["host: x"; 101].join("\r\n")]),
            Then::Refused(431),
        ),
    ]
}

fn lengths() -> Vec<Case> {
    let asked = |headers: &[&str], body: &str| {
        let line = format!("POST {RUNS} HTTP/1.1");
        let all = [&[line.as_str(), "host: x", JSON], headers].concat();
        [lines(&all), body.as_bytes().to_vec()].concat()
    };
    let good = r#"{"input":"x"}"#;
    let chunked = "transfer-encoding: chunked";
    vec![
        case("a length that is too long", asked(&["content-length: 1000"], good), Then::Dropped),
        case("a length that is too short", asked(&["content-length: 3"], good), Then::Refused(400)),
        case("a length of nothing", asked(&["content-length: 0"], good), Then::Refused(400)),
        case("a negative length", asked(&["content-length: -1"], good), Then::Bare),
        case("a length with a sign", asked(&["content-length: +13"], good), Then::Bare),
        case("a length that is no number", asked(&["content-length: x"], good), Then::Bare),
        case(
            "a length beyond all numbers",
            asked(&["content-length: 99999999999999999999"], good),
            Then::Bare,
        ),
        case(
            "a length beyond all memory",
            asked(&["content-length: 9223372036854775806"], good),
            Then::Dropped,
        ),
        case("two lengths", asked(&["content-length: 13", "content-length: 14"], good), Then::Bare),
        case("a list of lengths", asked(&["content-length: 13, 14"], good), Then::Bare),
        // RFC 9112, section 6.3: the chunks count, and the connection closes, so that the request which
        // others may see behind the length is never answered.
        case(
            "a length and chunks",
            asked(
                &["content-length: 4", chunked],
                "d\r\n{\"input\":\"x\"}\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
            ),
            Then::Last,
        ),
        case("chunks that are none", asked(&[chunked], "hello\r\n"), Then::Dropped),
        case("a chunk without end", asked(&[chunked], "ffffffff\r\n{"), Then::Dropped),
        case(
            "a chunk beyond all numbers",
            asked(&[chunked], "fffffffffffffffff\r\n{"),
            Then::Dropped,
        ),
        case("a negative chunk", asked(&[chunked], "-1\r\n{"), Then::Dropped),
        case(
            "an extension without end",
            asked(&[chunked], &format!("1;{}", "x".repeat(1 << 20))),
            Then::Dropped,
        ),
        case(
            "trailers without end",
            asked(&[chunked], &format!("0\r\n{}", "a: b\r\n".repeat(100_000))),
            Then::Dropped,
        ),
        case("an unknown coding", asked(&["transfer-encoding: rot13"], good), Then::Bare),
        case(
            "chunks, twice",
            asked(&["transfer-encoding: chunked, chunked"], "0\r\n\r\n"),
            Then::Dropped,
        ),
        case("a body of 5 MiB", post(RUNS, " ".repeat(5 << 20)), Then::Refused(413)),
        case(
            "an expectation",
            asked(&["content-length: 13", "expect: 100-continue"], good),
            Then::Answered,
        ),
        case(
            "an absurd expectation",
            asked(&["content-length: 13", "expect: the-spanish-inquisition"], good),
            Then::Answered,
        ),
        case(
            "a gzip body",
            asked(&["content-length: 3", "content-encoding: gzip"], "\x1f\u{b}\x08"),
            Then::Refused(400),
        ),
        case(
            "HTTP/1.0 in chunks",
            [lines(&[&format!("POST {RUNS} HTTP/1.0"), JSON, chunked]), b"0\r\n\r\n".to_vec()]
                .concat(),
            Then::Bare,
        ),
        case(
            "no media type",
            [
                lines(&[&format!("POST {RUNS} HTTP/1.1"), "host: x", "content-length: 2"]),
                b"{}".to_vec(),
            ]
            .concat(),
            Then::Refused(415),
        ),
    ]
}

fn targets(run_id: &str) -> Vec<Case> {
    let mut cases = vec![
        case(
            "a request and half of the next",
            [get("/nowhere"), b"GET /now".to_vec()].concat(),
            Then::Refused(404),
        ),
        case("the star", "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", Then::Answered),
        case("the star, got", "GET * HTTP/1.1\r\nhost: x\r\n\r\n", Then::Answered),
        case("an absolute target", get("http://elsewhere.example/healthz"), Then::Answered),
        case("an absolute target of another scheme", get("ftp://x/healthz"), Then::Answered),
        case(
            "a target longer than 8 KiB",
            get(&format!("/v1/runs?after={}", "x".repeat(8 << 10))),
            Then::Refused(414),
        ),
        case("a target of 20 KiB", get(&format!("/{}", "x".repeat(20 << 10))), Then::Refused(414)),
        case("10,000 slashes in 8 KiB", get(&"/".repeat(8_000)), Then::Refused(404)),
        case("dots", get(&"/..".repeat(2_000)), Then::Refused(404)),
        case(
            "bytes that are no UTF-8",
            [b"GET /v1/agents/\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n".as_slice()].concat(),
            Then::Bare,
        ),
    ];
    let odd = [
        "..",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%2f..%2fetc%2fpasswd",
        "..%5c..%5c",
        "%00",
        "a%00",
        "%",
        "%zz",
        "%f",
        "%ff",
        "%c0%ae%c0%ae",
        "%ed%a0%80",
        "a%2fruns",
        "a;b",
        "a,b",
        "a+b",
        "~",
        "%F0%9F%98%80",
        "A",
        "a%0d%0ax-injected:%20yes",
        "'%20or%201=1--",
        "%27;drop%20table%20runs;--",
        "-0",
        "NaN",
        "99999999999999999999999999",
        "run_",
        "run_00000000000000000000000000000000",
        "run_ffffffffffffffffffffffffffffffff",
        "run_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
    ];
    for text in odd {
        for target in [
            format!("/v1/runs/{text}"),
            format!("/v1/runs/{text}/events"),
            format!("/v1/agents/{text}/versions"),
            format!("/docs/{text}"),
            format!("/{text}"),
        ] {
            // A dot or a star of the shell means nothing here; nothing is ever found by these names.
            cases.push(case(format!("GET {target}"), get(&target), Then::Refused(404)));
        }
        cases.push(case(
            format!("a run of agent {text}"),
            post(&format!("/v1/agents/{text}/runs"), r#"{"input":"x"}"#),
            Then::Refused(404),
        ));
        for query in [
            "limit",
            "after",
            "before",
            "order",
            "status",
            "agent_id",
            "metadata",
            "created_after",
            "x",
        ] {
            let target = format!("/v1/runs?{query}={text}");
            cases.push(case(format!("GET {target}"), get(&target), Then::Answered));
        }
        for query in ["after", "types", "limit", "wait", "include"] {
            for list in ["events", "log", "steps"] {
                let target = format!("/v1/runs/{run_id}/{list}?{query}={text}");
                cases.push(case(format!("GET {target}"), get(&target), Then::Answered));
            }
        }
    }
    for query in [
        "limit=1&limit=2",
        "limit=",
        "=",
        "&&&",
        "limit",
        "%00=%00",
        "after=x&before=y",
        "limit=0",
        "limit=101",
    ] {
        let target = format!("/v1/runs?{query}");
        cases.push(case(format!("GET {target}"), get(&target), Then::Answered));
    }
    cases
}

fn headers(run_id: &str) -> Vec<Case> {
    let healthz = |headers: &[&str]| lines(&[&["GET /healthz HTTP/1.1"], headers].concat());
    let mut cases = vec![
        case("HTTP/1.0", "GET /healthz HTTP/1.0\r\n\r\n", Then::Answered),
        case("no Host", healthz(&[]), Then::Answered),
        case("two Hosts", healthz(&["host: x", "host: y"]), Then::Refused(400)),
        case("an empty Host", healthz(&["host:"]), Then::Answered),
        case("a Host that is none", healthz(&["host: \u{e4}/\\?#@:99999"]), Then::Answered),
        case(
            "headers of 17 KiB",
            healthz(&["host: x", &format!("a: {}", "x".repeat(17 << 10))]),
            Then::Refused(431),
        ),
        case(
            "90 headers of 17 KiB",
            healthz(&["host: x", &vec![format!("a: {}", "x".repeat(200)); 90].join("\r\n")]),
            Then::Refused(431),
        ),
        case(
            "a body where none belongs",
            [healthz(&["host: x", "content-length: 3"]), b"{}x".to_vec()].concat(),
            Then::Answered,
        ),
        case(
            "an upgrade",
            healthz(&["host: x", "connection: upgrade", "upgrade: websocket"]),
            Then::Answered,
        ),
        case(
            "an upgrade to HTTP/2",
            healthz(&[
                "host: x",
                "connection: upgrade, http2-settings",
                "upgrade: h2c",
                "http2-settings: AAMAAABkAAQAAP__",
            ]),
            Then::Answered,
        ),
    ];
    for text in hostile_texts()
        .iter()
        .filter(|text| !text.contains(['\r', '\n', '\0']) && text.len() < 1_000)
    {
        for name in [
            "accept",
            "prefer",
            "if-match",
            "if-none-match",
            "last-event-id",
            "idempotency-key",
            "x-request-id",
            "x-agent-id",
            "traceparent",
            "authorization",
            "origin",
            "content-type",
            "cookie",
            "range",
        ] {
            let header = format!("{name}: {text}");
            let events =
                lines(&[&format!("GET /v1/runs/{run_id}/events HTTP/1.1"), "host: x", &header]);
            // DEL is not allowed in a header, and no HTTP.
            let then =
                if text.contains(['\u{7f}', '\u{1b}']) { Then::Bare } else { Then::Answered };
            cases.push(case(format!("events with {header}"), events, then));
            let body = r#"{"input":"x"}"#;
            let length = format!("content-length: {}", body.len());
            let mut all =
                vec![format!("POST {RUNS} HTTP/1.1"), "host: x".to_owned(), length, header.clone()];
            if name != "content-type" {
                all.push(JSON.to_owned());
            }
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            cases.push(case(
                format!("a run with {header}"),
                [lines(&all), body.into()].concat(),
                then,
            ));
        }
    }
    cases
}

fn methods(run_id: &str) -> Vec<Case> {
    let mut cases = vec![
        case(
            "CONNECT",
            "CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: x\r\n\r\n",
            Then::Answered,
        ),
        case("CONNECT a path", "CONNECT /v1/runs HTTP/1.1\r\nhost: x\r\n\r\n", Then::Bare),
        case("an empty method", " /healthz HTTP/1.1\r\nhost: x\r\n\r\n", Then::Bare),
        case(
            "a method of 4 KiB",
            format!("{} /healthz HTTP/1.1\r\nhost: x\r\n\r\n", "X".repeat(4096)),
            Then::Answered,
        ),
    ];
    for method in ["TRACE", "PUT", "OPTIONS", "PROPFIND", "get", "G\u{20ac}T", "PRI"] {
        for target in
            ["/healthz", "/v1/runs", "/v1/agents/a", &format!("/v1/runs/{run_id}"), "/nowhere"]
        {
            let then = if method.is_ascii() { Then::Answered } else { Then::Bare };
            cases.push(case(format!("{method} {target}"), send(method, target, ""), then));
        }
    }
    cases
}
