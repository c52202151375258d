use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::api::sse::IsStream;
use crate::server::places::Places;
use crate::shutdown::Tasks;

use super::*;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);
/// Of the answers below, without their dates.
const STREAMED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// An answer that is a stream of these.
fn streamed<S>(pieces: S) -> axum::response::Response
where
    S: futures_util::Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
{
    let mut answer = Response::new(Body::from_stream(pieces));
    answer.extensions_mut().insert(IsStream);
    answer
}

fn two() -> axum::response::Response {
    streamed(stream::iter([Ok(Bytes::from_static(b"one ")), Ok(Bytes::from_static(b"two"))]))
}

/// A server of one connection, and its client.
async fn pair(router: Router) -> (TcpStream, JoinHandle<()>, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, address) = listener.accept().await.unwrap();
    let place = Places::new(1, 1).take(address.ip()).unwrap();
    let client_of_ours = Client { socket, stall: SOON, place };
    let tasks = Tasks::new();
    let serving = connection(Protocols::new(SOON).into(), client_of_ours, router, tasks.token());
    let serving = tasks.spawn(serving);
    (client, serving, tasks)
}

fn router() -> Router {
    Router::new()
        .route("/two", get(async || two()))
        .route(
            "/read",
            post(async |body: Bytes| {
                assert_eq!(body, "12345");
                two()
            }),
        )
        .route("/unread", post(async || two()))
        .route("/plain", get(async || "plain"))
}

async fn said(client: &mut TcpStream) -> String {
    let mut got = Vec::new();
    tokio::time::timeout(SOON, client.read_to_end(&mut got)).await.unwrap().unwrap();
    without_dates(&got)
}

/// What comes up to these words.
async fn said_until(client: &mut TcpStream, last: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(last.as_bytes()) {
        let read = tokio::time::timeout(SOON, client.read_buf(&mut got)).await.unwrap();
        assert!(read.unwrap() > 0, "it ended with {:?}", String::from_utf8_lossy(&got));
    }
    without_dates(&got)
}

fn without_dates(got: &[u8]) -> String {
    let text = String::from_utf8_lossy(got);
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
}

#[tokio::test]
async fn a_stream_goes_out_and_its_connection_is_used_again() {
    let (mut client, _serving, tasks) = pair(router()).await;
    let chunks = "4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n";
    for _ in 0..2 {
        client.write_all(b"GET /two HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(said_until(&mut client, chunks).await, format!("{STREAMED}{chunks}"));
        client
            .write_all(b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12345")
            .await
            .unwrap();
        assert_eq!(said_until(&mut client, chunks).await, format!("{STREAMED}{chunks}"));
        client.write_all(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        said_until(&mut client, "\r\n\r\nplain").await;
    }
    tasks.stop();
    assert_eq!(said(&mut client).await, "", "an idle connection ends at once");
}

#[tokio::test]
async fn a_client_says_that_it_wants_no_more() {
    for request in [
        "GET /two HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "GET /two HTTP/1.1\r\nhost: x\r\nConnection: TE, Close\r\n\r\n",
        // Its second is lost; whoever sends ahead knows that from the end.
        "GET /two HTTP/1.1\r\nhost: x\r\n\r\nGET /plain HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let (mut client, serving, _) = pair(router()).await;
        client.write_all(request.as_bytes()).await.unwrap();
        assert_eq!(
            said(&mut client).await,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
             4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
        );
        drop(client);
        tokio::time::timeout(SOON, serving).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn old_clients_get_no_chunks_and_heads_alone_no_body() {
    let (mut client, ..) = pair(router()).await;
    client.write_all(b"GET /two HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
    assert_eq!(said(&mut client).await, "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\none two");

    let (mut client, ..) = pair(router()).await;
    client.write_all(b"HEAD /two HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let head = said_until(&mut client, "\r\n\r\n").await;
    client.write_all(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let next = said_until(&mut client, "plain").await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && next.starts_with("HTTP/1.1 200 OK"), "{next}");
}

#[tokio::test]
async fn what_is_left_of_a_request_is_never_taken_for_another() {
    // Nobody reads the body, and it looks like a request.
    let hidden = "GET /plain HTTP/1.1\r\nhost: x\r\n\r\n";
    let length = hidden.len();
    for body in [
        format!("content-length: {length}\r\n\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"),
    ] {
        let (mut client, ..) = pair(router()).await;
        let request = format!("POST /unread HTTP/1.1\r\nhost: x\r\n{body}");
        client.write_all(request.as_bytes()).await.unwrap();
        let ask = "GET /two HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        // hyper closes, or reads over it: both are right.
        let _ = client.write_all(ask.as_bytes()).await;
        let mut got = Vec::new();
        let _ = tokio::time::timeout(SOON, client.read_to_end(&mut got)).await.unwrap();
        let got = String::from_utf8_lossy(&got);
        assert!(got.contains("one ") && !got.contains("plain"), "{got}");
    }
}

#[tokio::test]
async fn an_answer_keeps_its_end_though_a_stream_was_asked_for_behind_it() {
    const LARGE: usize = 32 << 20;
    let router = router().route("/large", get(async || vec![b'x'; LARGE]));
    let (mut client, ..) = pair(router).await;
    client
        .write_all(
            b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n\
              GET /two HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    // Time for the second to be looked at while the first cannot be written.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let got = said(&mut client).await;
    assert!(got.ends_with("4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"));
    assert_eq!(got.bytes().filter(|b| *b == b'x').count(), LARGE);
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_at_once() {
    for request in ["GET /held HTTP/1.1\r\nhost: x\r\n\r\n", "GET /held HTTP/1.0\r\n\r\n"] {
        let (held, mut is_held) = mpsc::channel::<Infallible>(1);
        let held = Arc::new(std::sync::Mutex::new(Some(held)));
        let route = get(async move || {
            let held = held.lock().unwrap().take();
            streamed(stream::unfold(held, async |held| {
                let _held = held;
                pending().await
            }))
        });
        let (mut client, serving, _) = pair(Router::new().route("/held", route)).await;
        client.write_all(request.as_bytes()).await.unwrap();
        said_until(&mut client, "\r\n\r\n").await;
        drop(client);
        assert!(tokio::time::timeout(SOON, is_held.recv()).await.unwrap().is_none());
        tokio::time::timeout(SOON, serving).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_is_open_when_it_is_time_to_stop_is_written_to_its_end() {
    let (tell, told) = mpsc::channel::<Bytes>(1);
    let told = Arc::new(std::sync::Mutex::new(Some(told)));
    let route = get(async move || {
        let told = told.lock().unwrap().take().unwrap();
        streamed(stream::unfold(told, async |mut told| Some((Ok(told.recv().await?), told))))
    });
    let (mut client, serving, tasks) = pair(Router::new().route("/told", route)).await;
    client.write_all(b"GET /told HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(said_until(&mut client, "\r\n\r\n").await, STREAMED);
    tasks.stop();
    tell.send(Bytes::from_static(b"last")).await.unwrap();
    drop(tell);
    assert_eq!(said(&mut client).await, "4\r\nlast\r\n0\r\n\r\n");
    drop(client);
    tokio::time::timeout(SOON, serving).await.unwrap().unwrap();
}

/// A stream is thousands of times open: nothing of hyper's is kept for it, nor of the router's.
#[tokio::test]
async fn a_connection_is_small() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, address) = listener.accept().await.unwrap();
    let place = Places::new(1, 1).take(address.ip()).unwrap();
    let client = Client { socket, stall: SOON, place };
    let stop = CancellationToken::new();
    let future = connection(Protocols::new(SOON).into(), client, router(), stop);
    let size = size_of_val(&future);
    assert!(size <= 1024, "{size} bytes");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_our_words_behind_answers_that_are_like_it() {
    // What somebody says who knows how hyper begins.
    let router = router().route("/sly", get(async || "HTTP/1.1 431 ".repeat(2_000)));
    let (mut client, serving, _tasks) = pair(router).await;
    let many = "a: b\r\n".repeat(101);
    let ask = format!(
        "GET /sly HTTP/1.1\r\nhost: x\r\n\r\nGET /plain HTTP/1.1\r\nhost: x\r\n\r\n\
         GET /plain HTTP/1.1\r\nhost: x\r\n{many}\r\n"
    );
    client.write_all(ask.as_bytes()).await.unwrap();
    let said = said(&mut client).await;
    let (answers, refused) = said.split_once("plainHTTP/1.1 431 ").expect("a refusal");
    assert_eq!(answers.matches("HTTP/1.1 431 ").count(), 2_000, "all that was sly");
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"], "headers_too_large");
    assert!(head.contains(&format!("x-request-id: {}", body["request_id"].as_str().unwrap())));
    serving.await.unwrap();
}
