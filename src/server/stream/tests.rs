use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::Response;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::super::patience::{Limits, Patient, Phase};
use super::*;

const CHUNKS: Framing = Framing::Chunks { keep: true };
const WHOLE: End = End::Whole { reusable: true };
/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);

/// A body of what comes from a channel, and how often it was asked.
struct Told {
    told: mpsc::UnboundedReceiver<&'static [u8]>,
    asked: Arc<AtomicUsize>,
}

fn body() -> (mpsc::UnboundedSender<&'static [u8]>, Told, Arc<AtomicUsize>) {
    let (tell, told) = mpsc::unbounded_channel();
    let asked = Arc::new(AtomicUsize::new(0));
    (tell, Told { told, asked: asked.clone() }, asked)
}

fn body_of(pieces: &[&'static [u8]]) -> Told {
    let (tell, body, _) = body();
    pieces.iter().for_each(|piece| tell.send(piece).unwrap());
    body
}

impl Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let piece = self.told.poll_recv(context);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
    }
}

async fn write<S, B>(socket: S, head: &'static str, body: B, framing: Framing, ahead: usize) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes> + Unpin,
{
    Stream::new(socket, head.into(), body, framing, ahead).write().await
}

/// What is on the wire when this has been written, and how that ended.
async fn wire(pieces: &[&'static [u8]], framing: Framing, room: usize) -> (String, End) {
    let (ours, mut theirs) = duplex(room);
    let mut got = Vec::new();
    let written = write(ours, "head\r\n\r\n", body_of(pieces), framing, 0);
    let (end, read) = tokio::join!(written, theirs.read_to_end(&mut got));
    read.unwrap();
    (String::from_utf8(got).unwrap(), end)
}

/// A socket that takes whole vectors, and remembers how much each write took.
#[derive(Default)]
struct Vectored {
    takes: VecDeque<usize>,
    got: Vec<u8>,
    writes: Vec<usize>,
}

impl AsyncRead for Vectored {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Vectored {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        panic!("one piece at a time")
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let takes = self.takes.pop_front().unwrap_or(usize::MAX).min(all.len());
        self.got.extend_from_slice(&all[..takes]);
        self.writes.push(takes);
        Poll::Ready(Ok(takes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_head_has_every_header_and_says_how_the_body_ends() {
    let response = Response::builder()
        .header("content-type", "text/event-stream")
        .header("vary", "origin")
        .header("vary", "accept")
        .body(())
        .unwrap();
    let (parts, ()) = response.into_parts();
    let now = Timestamp::from_millis(784_111_777_999);
    let text = |framing| String::from_utf8(head(&parts, framing, now).to_vec()).unwrap();
    let ours = "content-type: text/event-stream\r\nvary: origin\r\nvary: accept\r\n\
        date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    assert_eq!(
        text(CHUNKS),
        format!("HTTP/1.1 200 OK\r\n{ours}transfer-encoding: chunked\r\n\r\n")
    );
    assert_eq!(
        text(Framing::Chunks { keep: false }),
        format!("HTTP/1.1 200 OK\r\n{ours}transfer-encoding: chunked\r\nconnection: close\r\n\r\n")
    );
    assert_eq!(
        text(Framing::UntilClose),
        format!("HTTP/1.0 200 OK\r\n{ours}connection: close\r\n\r\n")
    );
}

#[tokio::test]
async fn pieces_are_chunks_and_the_end_is_one_without_bytes() {
    let pieces: &[&[u8]] = &[b"one", b"", b"and twenty two bytes ."];
    let expected = "head\r\n\r\n3\r\none\r\n16\r\nand twenty two bytes .\r\n0\r\n\r\n";
    // However little fits at a time.
    for room in [1, 2, 3, 7, 1024] {
        assert_eq!(wire(pieces, CHUNKS, room).await, (expected.to_owned(), WHOLE), "{room}");
    }
    assert_eq!(wire(&[], CHUNKS, 1024).await.0, "head\r\n\r\n0\r\n\r\n");
}

#[tokio::test]
async fn who_knows_no_chunks_gets_the_bytes_and_the_end_of_the_connection() {
    let (got, end) = wire(&[b"one", b"", b"two"], Framing::UntilClose, 5).await;
    assert_eq!((got.as_str(), end), ("head\r\n\r\nonetwo", End::Whole { reusable: false }));
    assert_eq!(wire(&[], Framing::UntilClose, 1024).await.0, "head\r\n\r\n");
}

#[tokio::test]
async fn what_comes_at_the_same_time_goes_in_one_write() {
    let mut socket = Vectored::default();
    let body = body_of(&[b"retry", b"page"]);
    assert_eq!(write(&mut socket, "head", body, CHUNKS, 0).await, WHOLE);
    assert_eq!(socket.got, b"head5\r\nretry\r\n4\r\npage\r\n0\r\n\r\n");
    assert_eq!(socket.writes, [socket.got.len()]);
}

#[tokio::test]
async fn a_write_that_stops_anywhere_is_gone_on_with_from_there() {
    let pieces: &[&[u8]] = &[b"0123456789abcdef", b"x", b"y", b"z", b"behind the others"];
    let mut whole = Vectored::default();
    write(&mut whole, "head", body_of(pieces), CHUNKS, 0).await;
    assert_eq!(whole.writes.len(), 2, "three pieces at a time");
    for cut in 1..whole.got.len() {
        let mut socket = Vectored { takes: [cut, 1, 2].into(), ..Vectored::default() };
        assert_eq!(write(&mut socket, "head", body_of(pieces), CHUNKS, 0).await, WHOLE);
        assert_eq!(socket.got, whole.got, "cut at {cut}");
    }
}

#[tokio::test]
async fn pieces_are_gathered_up_to_a_bound() {
    static LARGE: [u8; ENOUGH] = [b'x'; ENOUGH];
    let mut socket = Vectored::default();
    write(&mut socket, "", body_of(&[&LARGE, b"y"]), CHUNKS, 0).await;
    assert_eq!(socket.writes.len(), 2, "the large one is enough for one write");
}

#[tokio::test]
async fn the_body_is_asked_for_no_more_than_there_is_room_for() {
    let (tell, body, asked) = body();
    let (ours, mut theirs) = duplex(4);
    let mut writing = Box::pin(write(ours, "head", body, CHUNKS, 0));
    for _ in 0..MAX_PIECES {
        tell.send(b"this does not fit").unwrap();
    }
    assert!(futures_util::poll!(writing.as_mut()).is_pending());
    assert_eq!(asked.load(Ordering::Relaxed), MAX_PIECES);
    tell.send(b"nor this").unwrap();
    assert!(futures_util::poll!(writing.as_mut()).is_pending());
    assert_eq!(asked.load(Ordering::Relaxed), MAX_PIECES);
    drop(tell);
    let mut got = Vec::new();
    let (end, read) = tokio::join!(writing, theirs.read_to_end(&mut got));
    read.unwrap();
    assert_eq!(end, WHOLE);
    let text = String::from_utf8(got).unwrap();
    let many = "11\r\nthis does not fit\r\n".repeat(MAX_PIECES);
    assert_eq!(text, format!("head{many}8\r\nnor this\r\n0\r\n\r\n"));
}

/// It may hold what others wait for: a turn at the database.
#[tokio::test]
async fn a_body_that_was_asked_is_asked_until_it_answers_though_nothing_can_be_written() {
    let (tell, body, asked) = body();
    let (mut ours, _theirs) = duplex(4);
    let mut writing = Box::pin(write(&mut ours, "head", body, CHUNKS, 0));
    tell.send(b"this does not fit").unwrap();
    assert!(futures_util::poll!(writing.as_mut()).is_pending());
    let before = asked.load(Ordering::Relaxed);
    tell.send(b"an answer").unwrap();
    assert!(futures_util::poll!(writing.as_mut()).is_pending());
    assert_eq!(asked.load(Ordering::Relaxed), before + 2, "it answered, and has no other");
}

fn patient(stall: Duration) -> (Patient<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(64);
    let phase = Phase::default();
    phase.busy();
    (Patient::new(ours, Limits { head: SOON, stall }, phase), theirs)
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_given_up() {
    static LARGE: [u8; 1000] = [b'x'; 1000];
    let (tell, body, _) = body();
    tell.send(&LARGE).unwrap();
    let (mut socket, _theirs) = patient(Duration::from_millis(50));
    let end = tokio::time::timeout(SOON, write(&mut socket, "", body, CHUNKS, 0)).await;
    assert_eq!(end, Ok(End::BrokenOff));
    assert!(tell.is_closed(), "the body is gone");
}

#[tokio::test]
async fn a_stream_on_which_nothing_is_said_is_not() {
    let stall = Duration::from_millis(10);
    let (tell, body, _) = body();
    tell.send(b"hello").unwrap();
    let (socket, mut theirs) = patient(stall);
    let silence = async {
        let mut got = [0; 10];
        theirs.read_exact(&mut got).await.unwrap();
        tokio::time::sleep(stall * 10).await;
        tell.send(b"again").unwrap();
        drop(tell);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).await.unwrap();
        got
    };
    let (end, got) = tokio::join!(write(socket, "", body, CHUNKS, 0), silence);
    assert_eq!((end, got.as_slice()), (WHOLE, b"5\r\nagain\r\n0\r\n\r\n".as_slice()));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_stream_though_it_sent_more_before() {
    for sent in ["", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let (tell, body, _) = body();
        let (mut ours, mut theirs) = duplex(1024);
        let writing = write(&mut ours, "head", body, CHUNKS, 0);
        tokio::pin!(writing);
        theirs.write_all(sent.as_bytes()).await.unwrap();
        assert!(futures_util::poll!(writing.as_mut()).is_pending(), "it is still there");
        drop(theirs);
        assert_eq!(tokio::time::timeout(SOON, writing).await, Ok(End::BrokenOff), "{sent:?}");
        assert!(tell.is_closed(), "the body is gone");
    }
}

#[tokio::test]
async fn who_sends_ahead_gets_the_whole_stream_on_a_connection_for_nothing_else() {
    let (tell, body, _) = body();
    let (mut ours, mut theirs) = duplex(1024);
    theirs.write_all(b"GET ").await.unwrap();
    let mut writing = Box::pin(write(&mut ours, "", body, CHUNKS, 0));
    assert!(futures_util::poll!(writing.as_mut()).is_pending());
    drop(tell);
    assert_eq!(writing.await, End::Whole { reusable: false });

    let end = write(&mut ours, "", body_of(&[]), CHUNKS, 1).await;
    assert_eq!(end, End::Whole { reusable: false }, "it was seen behind the request");
}

#[tokio::test]
async fn who_sends_without_end_is_cut_off() {
    let (_tell, body, _) = body();
    let (ours, mut theirs) = duplex(1024);
    let flood = async { while theirs.write_all(&[b'x'; 512]).await.is_ok() {} };
    let writing = write(ours, "", body, CHUNKS, 0);
    let (end, ()) =
        tokio::time::timeout(SOON, async { tokio::join!(writing, flood) }).await.unwrap();
    assert_eq!(end, End::BrokenOff);
}
