//! The moment at which a request leaves: who is asked before it, and who knows of it behind it.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::task::{Context, Poll};

use tower::{Layer, Service};

/// Says whether this process may still act.
pub type Permit = Arc<dyn Fn() -> bool + Send + Sync>;

/// One attempt at a request. It asks its permit when the connection stands and nothing is left to do but
/// to send: a process that was stopped while it connected finds out before it acts.
pub struct Departure {
    permit: Permit,
    left: AtomicU8,
    /// The status that it was refused with; 0 before that.
    refusal: AtomicU16,
}

/// Whether a request left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Whoever makes it has not said, so it may have.
    Unsaid,
    /// Certainly not.
    NotYet,
    /// It may have arrived.
    Yes,
    /// It arrived, and was answered with this status, which is no success. The body may be missing.
    Refused(u16),
}

const UNSAID: u8 = 0;
const NOT_YET: u8 = 1;
const YES: u8 = 2;
const CALLED_OFF: u8 = 3;

impl Departure {
    /// An attempt that needs this permit.
    pub fn new(permit: Permit) -> Arc<Self> {
        Arc::new(Self { permit, left: AtomicU8::new(UNSAID), refusal: AtomicU16::new(0) })
    }

    /// Whoever makes the request promises to say when it leaves; nothing has left yet.
    pub fn announce(&self) {
        self.left.store(NOT_YET, Ordering::SeqCst);
    }

    /// Nobody waits for it any more: what was announced and has not left stays. Says whether it left;
    /// that does not change behind this.
    pub fn call_off(&self) -> Left {
        let _ = self.left.compare_exchange(NOT_YET, CALLED_OFF, Ordering::SeqCst, Ordering::SeqCst);
        self.left()
    }

    /// Asks for permission to send at this moment; from then on the request may have arrived.
    ///
    /// # Errors
    /// [`Withheld`]: nothing may be sent.
    pub fn leave(&self) -> Result<(), Withheld> {
        if !(self.permit)() {
            return Err(Withheld);
        }
        let leave = |left: u8| (left != CALLED_OFF).then_some(YES);
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave);
        left.map(drop).map_err(|_| Withheld)
    }

    /// The request was answered with this status, which is no success: what became of it is known, whether
    /// or not somebody waits until the body is there too.
    pub fn refused(&self, status: u16) {
        self.refusal.store(status, Ordering::SeqCst);
    }

    /// Sends a request by the gate's client, or by a library that was handed it: this attempt is asked
    /// when the connection stands, and told that it leaves.
    pub async fn during<F: Future>(self: Arc<Self>, sending: F) -> F::Output {
        DEPARTURE.scope(self, sending).await
    }

    /// Whether the request left.
    pub fn left(&self) -> Left {
        match (self.left.load(Ordering::SeqCst), self.refusal.load(Ordering::SeqCst)) {
            (UNSAID, _) => Left::Unsaid,
            (NOT_YET | CALLED_OFF, _) => Left::NotYet,
            (_, 0) => Left::Yes,
            (_, status) => Left::Refused(status),
        }
    }
}

/// Nothing may be sent at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing may be sent at the moment")]
pub struct Withheld;

tokio::task_local! {
    /// The attempt that a connection is made for. Connections are not shared and the client makes them
    /// in the task that sends, so there is exactly one.
    static DEPARTURE: Arc<Departure>;
}

/// A layer around the client's connector: when a connection stands, the attempt is asked.
#[derive(Clone, Copy)]
pub(super) struct AskBeforeSending;

impl<S> Layer<S> for AskBeforeSending {
    type Service = Asking<S>;

    fn layer(&self, connector: S) -> Asking<S> {
        Asking(connector)
    }
}

#[derive(Clone)]
pub(super) struct Asking<S>(S);

type BoxError = Box<dyn Error + Send + Sync>;

impl<S, Target> Service<Target> for Asking<S>
where
    S: Service<Target, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: Target) -> Self::Future {
        let connecting = self.0.call(target);
        Box::pin(async move {
            let connection = connecting.await?;
            // Without an attempt it is no call: greetings and lists need no permit.
            DEPARTURE.try_with(|departure| departure.leave()).unwrap_or(Ok(()))?;
            Ok(connection)
        })
    }
}
