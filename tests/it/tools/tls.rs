//! Tools behind TLS: the gate's client against servers with good and bad certificates, through a whole server
//! that trusts an authority made for the test.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::{caller, log, only};
use crate::support::on_both_databases;
use crate::support::server::{Server, Setup};
use crate::support::tls_server::{Authority, TlsServer, Valid};

on_both_databases! {
    a_tool_is_called_by_https_and_nobody_else_gets_a_byte_of_it;
}

const TOKEN: &str = "a-token-for-tls";
const YAML: &str = "
egress: { allow: [localhost, 127.0.0.1] }
secrets: { CRM: { env: TEST_CRM_TOKEN, hosts: [localhost, 127.0.0.1] } }
";

async fn a_tool_is_called_by_https_and_nobody_else_gets_a_byte_of_it(url: String) {
    let (trusted, stranger) = (Authority::new("trusted"), Authority::new("stranger"));
    let mut setup = Setup::new(url, YAML);
    setup.env = vec![
        ("TEST_CRM_TOKEN".to_owned(), TOKEN.to_owned()),
        ("SSL_CERT_FILE".to_owned(), trusted.certificate().display().to_string()),
    ];
    let server = setup.start().await;

    let good = TlsServer::start(&trusted, "DNS:localhost, IP:127.0.0.1", Valid::Now).await;
    for host in ["localhost", "127.0.0.1"] {
        let events = call(&server, host, good.port).await;
        let result = &only(&events, "tool_call.completed")["result"];
        assert_eq!(*result, json!({"hello": "you"}), "{host}");
        let visit = good.visits().await.pop().expect("a visit");
        // It is asked for by its name, where that is one; HTTP/2 is not offered, since no connection is used twice.
        assert_eq!(visit.server_name.as_deref(), (host == "localhost").then_some(host));
        assert_eq!(visit.protocol.as_deref(), Some("http/1.1"));
        assert_eq!(visit.headers["host"], format!("{host}:{}", good.port));
        assert_eq!(visit.headers["authorization"], format!("Bearer {TOKEN}"));
        assert_eq!(visit.request, "POST /pay HTTP/1.1");
    }
    assert_eq!(good.visits().await.len(), 2, "a connection for each request, and no more");

    for (name, authority, valid, says, connections) in [
        ("DNS:other.example", &trusted, Valid::Now, "certificate is for another name", 1),
        ("DNS:localhost", &trusted, Valid::LongAgo, "certificate has expired", 1),
        ("DNS:localhost", &stranger, Valid::Now, "issued by nobody whom this server trusts", 1),
    ] {
        let bad = TlsServer::start(authority, name, valid).await;
        let events = call(&server, "localhost", bad.port).await;
        // A `once` call: nothing left, so it is known to have failed, and the model is told.
        let error = &only(&events, "tool_call.failed")["error"];
        assert!(error.as_str().is_some_and(|error| error.contains(says)), "{error}");
        let visits = bad.visits().await;
        assert_eq!(visits.len(), connections, "{says}: such a thing does not pass: {visits:?}");
        assert!(visits.iter().all(|visit| !visit.is_secure && visit.request.is_empty()));
    }
    // Nor does what is no TLS at all get anything, though that may pass.
    let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = plain.local_addr().expect("an address").port();
    let calling = call(&server, "127.0.0.1", port);
    let both = async { tokio::join!(calling, speaks_http(&plain)) };
    let (events, heard) = timeout(Duration::from_secs(60), both).await.expect("three attempts");
    let error = &only(&events, "tool_call.failed")["error"];
    assert!(error.as_str().is_some_and(|error| error.contains("TLS handshake failed")), "{error}");
    assert!(!heard.is_empty() && !String::from_utf8_lossy(&heard).contains(TOKEN));
    assert!(!server.log().contains(TOKEN));
}

/// Three times, an answer to whatever comes first; all that came.
async fn speaks_http(listener: &TcpListener) -> Vec<u8> {
    let mut heard = Vec::new();
    for _ in 0..3 {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        let _ = socket.read_buf(&mut heard).await;
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        let _ = socket.read_to_end(&mut heard).await;
    }
    heard
}

/// Has an agent make one `once` call there, with the secret; its log.
async fn call(server: &Server, host: &str, port: u16) -> Vec<Value> {
    let agent_id = format!("{}-{port}", host.replace('.', "-"));
    let tool = json!({
        "url": format!("https://{host}:{port}/pay"),
        "headers": {"Authorization": "Bearer ${secret.CRM}"},
    });
    server.client.post("/v1/agents", &caller(&agent_id, tool, &json!({}))).await.expect(201);
    let run = server.client.run_to_end(&agent_id, &json!({"input": "Go"})).await;
    assert_eq!(run["status"], "completed", "{run}");
    log(&server.client, run["run_id"].as_str().expect("run_id")).await
}
