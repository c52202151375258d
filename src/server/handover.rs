//! How an event stream comes out of hyper's hands into ours.
//!
//! hyper keeps two buffers and much state for a connection of HTTP/1, 24 KiB in all, whether something
//! is said on it or not. An event stream is silent most of its time, and there are thousands of them.
//! So hyper reads the request, the router answers it, and when the answer is a stream, it does not go
//! back to hyper: the service leaves it in the connection's [`Slot`] and stays pending, the connection
//! finds it there, takes hyper apart for its socket, and [`super::stream`] writes it. After the stream
//! the socket may go back to a new hyper, for the next request.
//!
//! What must hold when hyper is taken apart: the request was read to its end, for what is left of it
//! would be taken for the next one ([`Slot::receive`] sees to it); and hyper has nothing left to write,
//! such as the end of an answer before this one ([`super::patience::Phase`] knows).

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::{Method, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::{Request, Response, Version};

use crate::api::sse::IsStream;

use super::connection::Whole;

/// Where a connection's service leaves the answer that is to be streamed: one, for HTTP/1 answers one
/// request at a time.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Shared>);

#[derive(Default)]
struct Shared {
    left: Mutex<Option<Streamed>>,
    /// Whether something of the request has not been read.
    unread: AtomicBool,
}

/// An answer that is to be streamed.
pub(super) struct Streamed {
    pub(super) answer: Response<Whole>,
    pub(super) framing: Framing,
}

/// How a reader learns where a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its last chunk (HTTP/1.1).
    Chunks {
        /// Whether the connection may be used for another request then.
        keep: bool,
    },
    /// By the end of the connection (HTTP/1.0 knows no chunks).
    UntilClose,
}

impl Framing {
    /// What this request asks for; `None` if no answer to it has a body.
    fn asked_by<B>(request: &Request<B>) -> Option<Self> {
        if request.method() == Method::HEAD {
            return None;
        }
        if request.version() < Version::HTTP_11 {
            return Some(Self::UntilClose);
        }
        let mut said = request.headers().get_all(header::CONNECTION).iter();
        let is_close = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"close");
        let closes = said.any(|value| value.as_bytes().split(|b| *b == b',').any(is_close));
        Some(Self::Chunks { keep: !closes })
    }

    /// The same, but the connection is closed unless this holds.
    pub(super) const fn kept_if(self, holds: bool) -> Self {
        match self {
            Self::Chunks { keep } => Self::Chunks { keep: keep && holds },
            Self::UntilClose => Self::UntilClose,
        }
    }
}

impl Slot {
    /// A request as the router gets it, and how its answer could be streamed.
    pub(super) fn receive(&self, request: Request<Incoming>) -> (Request<Body>, Option<Framing>) {
        let framing = Framing::asked_by(&request);
        let unread = !request.body().is_end_stream();
        self.0.unread.store(unread, Ordering::Relaxed);
        let request = request.map(|body| match unread {
            true => Body::new(Asked { body, slot: self.clone() }),
            false => Body::empty(),
        });
        (request, framing)
    }

    /// Leaves an answer here; gives it back if it is hyper's to write. That is everything but a stream,
    /// and a stream whose request was not read to its end.
    pub(super) fn leave(
        &self,
        answer: Response<Whole>,
        framing: Option<Framing>,
    ) -> Option<Response<Whole>> {
        let is_stream = answer.extensions().get::<IsStream>().is_some();
        // How it ends has been said already, or what becomes of the connection.
        let said = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
        let is_said = said.iter().any(|name| answer.headers().contains_key(name));
        match framing {
            Some(framing) if is_stream && !is_said && !self.0.unread.load(Ordering::Relaxed) => {
                *self.left() = Some(Streamed { answer, framing });
                None
            }
            _ => Some(answer),
        }
    }

    /// What was left here.
    pub(super) fn take(&self) -> Option<Streamed> {
        self.left().take()
    }

    fn left(&self) -> MutexGuard<'_, Option<Streamed>> {
        // It is put in and taken out in one step.
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a request, which says so when it was read to its end.
struct Asked {
    body: Incoming,
    slot: Slot,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        // hyper knows of the end when it gives the last piece, if it knows the length; else after it.
        let is_over = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_over {
            self.slot.0.unread.store(false, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
