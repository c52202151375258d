//! What a request is answered with.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// A piece of a streamed body.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Bytes, sent as one HTTP chunk.
    Bytes(Vec<u8>),
    /// Bytes, sent as one HTTP chunk of so many times these bytes.
    Repeat(Vec<u8>, usize),
    /// Time that passes.
    Wait(Duration),
    /// The test opens it; until then the stream stands still.
    Gate(Gate),
}

/// How a streamed body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As HTTP says.
    Clean,
    /// The connection is closed in the middle of the body.
    Close,
    /// The connection is reset.
    Reset,
    /// Never.
    Hang,
}

/// Something that a stream waits for.
#[derive(Debug, Clone)]
pub struct Gate(pub(super) Arc<Semaphore>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Opens it for good: who waits at it for a permit is told that there will be none, and goes on.
    pub fn open(&self) {
        self.0.close();
    }
}

/// What a request is answered with.
#[derive(Debug, Clone)]
pub enum Reply {
    /// 200 and a body of pieces.
    Stream {
        /// Headers beside `content-type: text/event-stream`, which they may replace.
        headers: Vec<(String, String)>,
        /// The body.
        pieces: Vec<Piece>,
        /// How it ends.
        end: End,
    },
    /// A status and a whole body.
    Whole {
        /// The status.
        status: u16,
        /// All headers but the length.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// A status, and nothing of the body.
    Head {
        /// The status.
        status: u16,
        /// All headers.
        headers: Vec<(String, String)>,
    },
    /// The connection is reset before the head of an answer.
    Reset,
    /// Nothing is ever answered.
    Hang,
}

impl Reply {
    /// A stream of these chunks that ends as it should.
    pub fn stream(chunks: Vec<Vec<u8>>) -> Self {
        Self::Stream {
            headers: Vec::new(),
            pieces: chunks.into_iter().map(Piece::Bytes).collect(),
            end: End::Clean,
        }
    }

    /// An error of this status, as providers word them.
    pub fn status(status: u16) -> Self {
        Self::error(status, json!({"type": "some_error", "message": "provider text"}), &[])
    }

    /// An error of this status, with this error object and these headers.
    pub fn error(status: u16, error: Value, headers: &[(&str, &str)]) -> Self {
        let mut all = vec![("content-type".to_owned(), "application/json".to_owned())];
        all.extend(headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let body = json!({"type": "error", "error": error}).to_string().into_bytes();
        Self::Whole { status, headers: all, body }
    }

    /// 200 and a JSON text instead of a stream.
    pub fn json(body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self::Whole { status: 200, headers, body: body.to_string().into_bytes() }
    }

    /// The same stream with another end.
    #[must_use]
    pub fn ending(mut self, as_: End) -> Self {
        if let Self::Stream { end, .. } = &mut self {
            *end = as_;
        }
        self
    }

    /// The same stream, cut off behind its first `count` pieces.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        if let Self::Stream { pieces, .. } = &mut self {
            pieces.truncate(count);
        }
        self
    }

    /// The same stream with a wait before each piece.
    #[must_use]
    pub fn slowly(mut self, wait: Duration) -> Self {
        if let Self::Stream { pieces, .. } = &mut self {
            *pieces = pieces.drain(..).flat_map(|piece| [Piece::Wait(wait), piece]).collect();
        }
        self
    }

    /// The same stream with a piece put in at a place.
    #[must_use]
    pub fn with(mut self, at: usize, piece: Piece) -> Self {
        if let Self::Stream { pieces, .. } = &mut self {
            pieces.insert(at, piece);
        }
        self
    }

    /// The same stream, all of its bytes in chunks of this size.
    #[must_use]
    pub fn in_chunks_of(self, size: usize) -> Self {
        let bytes = self.bytes();
        Self::stream(bytes.chunks(size).map(<[u8]>::to_vec).collect())
    }

    /// The bytes of a streamed body.
    pub fn bytes(&self) -> Vec<u8> {
        let Self::Stream { pieces, .. } = self else { return Vec::new() };
        pieces
            .iter()
            .filter_map(|piece| match piece {
                Piece::Bytes(bytes) => Some(bytes.clone()),
                Piece::Repeat(bytes, times) => Some(bytes.repeat(*times)),
                Piece::Wait(_) | Piece::Gate(_) => None,
            })
            .collect::<Vec<_>>()
            .concat()
    }
}
