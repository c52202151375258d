//! An event stream on its way to the socket, on HTTP/1: a cursor that is asked, and shared bytes that
//! are written. No buffer of its own, and nothing allocated for an event.
//!
//! - The body is asked for more only while there is room for what it will give: a client that takes
//!   nothing holds some pages that others share, and reads nothing from the log. Once asked, it is asked
//!   until it answers: it may be in the middle of a read, with a turn at the database that others wait
//!   for.
//! - What has come at the same time goes in one write: the head, the size of each chunk, the chunks.
//! - A client that goes away is noticed at once, by the end of what it sends, and its body is dropped.
//!   What it sends otherwise while it reads, a next request perhaps, is thrown away, and its connection
//!   closed after the stream: whoever sends requests ahead knows what was not answered (RFC 9112,
//!   section 9.3.2). More than [`MAX_SENT_AHEAD`] of it ends the stream.

use std::future::poll_fn;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::http::header;
use axum::http::response::Parts;
use chrono::DateTime;
use hyper::body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::domain::time::Timestamp;

use super::handover::Framing;

/// Pieces of the body that go in one write: at the beginning there are two, later usually one.
const MAX_PIECES: usize = 3;
/// Bytes from which on no other piece is asked for: what is waiting is held until it is written.
const ENOUGH: usize = 32 * 1024;
/// Bytes that a client may send while it reads a stream: some requests, sent ahead.
const MAX_SENT_AHEAD: usize = 64 * 1024;
/// Bytes of it that are read at once.
const READ: usize = 512;
/// Room for the head of an answer: ours have about 300 bytes.
const HEAD: usize = 512;

/// The end of each chunk.
const LINE: &[u8] = b"\r\n";
/// The end of all chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The size of a chunk, in hexadecimal digits, and the end of its line.
const SIZE_LINE: usize = 2 * size_of::<usize>() + LINE.len();
/// The head, the size, bytes and end of each chunk, and the last of all.
const MAX_SLICES: usize = 1 + 3 * MAX_PIECES + 1;

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// All of it is written.
    Whole {
        /// Whether the connection can be used for another request.
        reusable: bool,
    },
    /// The client is gone, or takes nothing, or the body broke off.
    BrokenOff,
}

/// What goes in front of the body.
pub(super) fn head(parts: &Parts, framing: Framing, now: Timestamp) -> Bytes {
    let (version, framed): (&[u8], &[u8]) = match framing {
        Framing::Chunks { keep: true } => (b"HTTP/1.1", b"transfer-encoding: chunked\r\n"),
        Framing::Chunks { keep: false } => {
            (b"HTTP/1.1", b"transfer-encoding: chunked\r\nconnection: close\r\n")
        }
        Framing::UntilClose => (b"HTTP/1.0", b"connection: close\r\n"),
    };
    let mut head = Vec::with_capacity(HEAD);
    let mut say = |words: &[&[u8]]| words.iter().for_each(|word| head.extend_from_slice(word));
    let (code, reason) = (parts.status.as_str(), parts.status.canonical_reason());
    say(&[version, b" ", code.as_bytes(), b" ", reason.unwrap_or_default().as_bytes(), LINE]);
    // No name and no value can have the end of a line in it: their types see to that.
    for (name, value) in &parts.headers {
        say(&[name.as_str().as_bytes(), b": ", value.as_bytes(), LINE]);
    }
    if !parts.headers.contains_key(header::DATE) {
        let now = DateTime::from_timestamp_millis(now.millis()).unwrap_or_default();
        let date = now.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        say(&[b"date: ", date.as_bytes(), LINE]);
    }
    say(&[framed, LINE]);
    head.into()
}

/// A stream that is being written.
pub(super) struct Stream<S, B> {
    socket: S,
    body: B,
    out: Outbox,
    framing: Framing,
    /// Whether the body has ended.
    is_over: bool,
    /// Bytes of the client that were found behind its request, and thrown away.
    sent_ahead: usize,
}

impl<S, B> Stream<S, B>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: Body<Data = Bytes> + Unpin,
{
    /// A stream of which nothing is written yet. `sent_ahead` is how many bytes of the client were found
    /// behind its request.
    pub(super) fn new(
        socket: S,
        head: Bytes,
        body: B,
        framing: Framing,
        sent_ahead: usize,
    ) -> Self {
        let is_chunked = matches!(framing, Framing::Chunks { .. });
        let out = Outbox { head, is_chunked, ..Outbox::default() };
        Self { socket, body, out, framing, is_over: false, sent_ahead }
    }

    /// Writes until the body ends, or the client goes away.
    pub(super) async fn write(&mut self) -> End {
        match (poll_fn(|context| self.poll(context)).await, self.framing) {
            (Ok(()), Framing::Chunks { keep }) => {
                End::Whole { reusable: keep && self.sent_ahead == 0 }
            }
            (Ok(()), Framing::UntilClose) => End::Whole { reusable: false },
            // Clients that go away are no news.
            (Err(error), _) => {
                tracing::trace!(%error, "a stream broke off");
                End::BrokenOff
            }
        }
    }

    /// The socket, for what comes after the stream.
    pub(super) fn into_socket(self) -> S {
        self.socket
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // No longer than the runtime lets one task go on: then the socket says that it is not ready.
        loop {
            self.gather(context)?;
            if self.out.is_empty() {
                if self.is_over {
                    return Poll::Ready(Ok(()));
                }
                break;
            }
            match self.out.write(&mut self.socket, context) {
                Poll::Ready(written) => written?,
                Poll::Pending => break,
            }
        }
        self.listen(context)
    }

    /// Asks the body for what there is, while there is room for it.
    fn gather(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while !self.is_over && self.out.has_room() {
            match Pin::new(&mut self.body).poll_frame(context) {
                // Trailers would be another kind of frame; ours has none.
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(piece) = frame.into_data() {
                        self.out.push(piece);
                    }
                }
                Poll::Ready(Some(Err(_))) => return Err(io::ErrorKind::InvalidData.into()),
                Poll::Ready(None) => {
                    self.is_over = true;
                    self.out.end();
                }
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Waits for the client to go away. What it sends until then is thrown away.
    fn listen(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut sent = [0; READ];
            let mut sent = ReadBuf::new(&mut sent);
            match Pin::new(&mut self.socket).poll_read(context, &mut sent) {
                Poll::Ready(read) => read?,
                Poll::Pending => return Poll::Pending,
            }
            if sent.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.sent_ahead += sent.filled().len();
            if self.sent_ahead > MAX_SENT_AHEAD {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
    }
}

/// What waits to be written, in this order; only the pieces are chunks. What comes to it comes behind
/// what is there, so that some of it may have been written already.
#[derive(Default)]
struct Outbox {
    head: Bytes,
    pieces: [Bytes; MAX_PIECES],
    /// How many of the pieces there are.
    count: usize,
    /// Bytes of all of them.
    size: usize,
    /// What comes behind them.
    last: &'static [u8],
    /// Bytes of all this that have been written.
    written: usize,
    is_chunked: bool,
}

impl Outbox {
    const fn is_empty(&self) -> bool {
        self.head.is_empty() && self.count == 0 && self.last.is_empty()
    }

    const fn has_room(&self) -> bool {
        self.count < MAX_PIECES && self.size < ENOUGH
    }

    fn push(&mut self, piece: Bytes) {
        // A chunk without bytes would be the last.
        if piece.is_empty() {
            return;
        }
        if let Some(free) = self.pieces.get_mut(self.count) {
            self.size += piece.len();
            self.count += 1;
            *free = piece;
        }
    }

    fn end(&mut self) {
        self.last = if self.is_chunked { LAST_CHUNK } else { b"" };
    }

    /// Writes as much as the socket takes.
    fn write<S: AsyncWrite + Unpin>(
        &mut self,
        socket: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut sizes = [[0; SIZE_LINE]; MAX_PIECES];
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut used, mut total) = (0, 0);
        let mut put = |bytes| {
            if let Some(free) = slices.get_mut(used) {
                *free = IoSlice::new(bytes);
                used += 1;
                total += bytes.len();
            }
        };
        put(&self.head);
        for (piece, size) in self.pieces.iter().take(self.count).zip(&mut sizes) {
            if self.is_chunked {
                let mut rest = size.as_mut_slice();
                write!(rest, "{:x}\r\n", piece.len())?;
                let left = rest.len();
                put(size.get(..SIZE_LINE - left).unwrap_or_default());
            }
            put(piece);
            if self.is_chunked {
                put(LINE);
            }
        }
        put(self.last);
        let mut waiting = slices.get_mut(..used).unwrap_or_default();
        IoSlice::advance_slices(&mut waiting, self.written);
        let written = Pin::new(socket).poll_write_vectored(context, waiting);
        let Poll::Ready(written) = written? else { return Poll::Pending };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.written += written;
        if self.written == total {
            let is_chunked = self.is_chunked;
            *self = Self { is_chunked, ..Self::default() };
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
