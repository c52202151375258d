//! A model server that costs next to nothing: the OpenAI wire, over real HTTP, with answers made ready.
//!
//! The input says what to do: `tokens=500 delay=20` is an answer of 500 tokens, one every 20 ms. A
//! token is `@` and the microsecond at which it was sent, so that whoever reads it knows its delay.
//! Without a delay the whole answer is one write, the same bytes for everybody.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Fallible;
use crate::machine::micros;

const HEAD: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795340613,"model":"bench","choices":["#;

/// What an input asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Answer {
    /// How many tokens.
    pub tokens: usize,
    /// How many milliseconds lie between two of them; 0: none.
    pub delay: u64,
}

impl Answer {
    /// The input that asks for it.
    pub fn input(self) -> String {
        format!("tokens={} delay={}", self.tokens, self.delay)
    }
}

/// Starts the server on threads of its own, for as long as this process lives. It says where it listens.
pub fn start() -> Fallible<SocketAddr> {
    let (listens, address) = mpsc::channel();
    std::thread::Builder::new().name("model".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.and_then(|runtime| runtime.block_on(serve(&listens)));
        eprintln!("the model server ended: {served:?}");
    })?;
    Ok(address.recv()?)
}

async fn serve(listens: &mpsc::Sender<SocketAddr>) -> std::io::Result<()> {
    // Room for all streams that begin at once, as a provider has: the usual 128 would be overrun.
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = socket.listen(4_096)?;
    let _ = listens.send(listener.local_addr()?);
    let ready: Ready = Arc::default();
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let ready = ready.clone();
        let service = service_fn(move |request| answer(request, ready.clone()));
        let mut http = hyper::server::conn::http1::Builder::new();
        let connection = http.pipeline_flush(true).serve_connection(TokioIo::new(socket), service);
        connections.spawn(async move {
            // A server that was killed leaves its connections as they are: nothing to tell.
            let _ = connection.await;
        });
        // Those that are over are forgotten.
        while connections.try_join_next().is_some() {}
    }
}

/// Whole answers, by what asks for them.
type Ready = Arc<Mutex<HashMap<Answer, Bytes>>>;
type Chunks = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

async fn answer(
    request: Request<Incoming>,
    ready: Ready,
) -> Result<Response<StreamBody<Chunks>>, hyper::Error> {
    let asked = request.into_body().collect().await?.to_bytes();
    let answer = read(&asked);
    let chunks: Chunks = if answer.delay == 0 {
        let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = ready.entry(answer).or_insert_with(|| Bytes::from(whole(answer.tokens)));
        stream::iter([Ok(Frame::data(whole.clone()))]).boxed()
    } else {
        slowly(answer).boxed()
    };
    let mut response = Response::new(StreamBody::new(chunks));
    let event_stream = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, event_stream);
    Ok(response)
}

/// The input is the last place where these words stand.
fn read(asked: &[u8]) -> Answer {
    let number = |key: &[u8], or: u64| {
        let at = memmem::rfind(asked, key).map(|at| at + key.len());
        let digits = at.and_then(|at| asked.get(at..)).unwrap_or_default().iter();
        let digits = digits.take_while(|byte| byte.is_ascii_digit());
        digits
            .fold(None, |sum, byte| Some(sum.unwrap_or(0) * 10 + u64::from(byte - b'0')))
            .unwrap_or(or)
    };
    let tokens = usize::try_from(number(b"tokens=", 20)).unwrap_or(20);
    Answer { tokens, delay: number(b"delay=", 0) }
}

fn whole(tokens: usize) -> String {
    let mut text = String::new();
    for _ in 0..tokens {
        text.push_str(&token(0));
    }
    text + &end(tokens)
}

fn slowly(answer: Answer) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let (began, Answer { tokens, delay }) = (Instant::now(), answer);
    let chunks = stream::iter(0..=tokens).then(move |n| async move {
        // By the clock, not by the token before: what is late once does not stay late.
        let token_time = u64::try_from(n + 1).unwrap_or(u64::MAX).saturating_mul(delay);
        if n < tokens {
            tokio::time::sleep_until(began + Duration::from_millis(token_time)).await;
            return token(micros());
        }
        end(tokens)
    });
    chunks.map(|text| Ok(Frame::data(Bytes::from(text))))
}

fn token(at: u64) -> String {
    let mut text = String::with_capacity(256);
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "data: {HEAD}{{\"index\":0,\"delta\":{{\"content\":\"@{at} \"}},\"finish_reason\":null}}]}}\n\n"
    );
    text
}

fn end(tokens: usize) -> String {
    format!(
        "data: {HEAD}{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\n\
         data: {HEAD}],\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":{tokens},\"total_tokens\":{}}}}}\n\n\
         data: [DONE]\n\n",
        tokens + 10
    )
}
