//! What a server may do with one call, or with everything else of a session, and what is known of it.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::trouble::Trouble;
use crate::egress::{Departure, Left};

/// Where an answer broke off, it is taken up again so often: a server may ask for it without end.
const MAX_RESUMPTIONS: u32 = 5;

/// One call with its answer; or what is no call: greetings, lists, the small talk of a session.
pub(super) struct Exchange {
    /// Its connections are closed when this is cancelled.
    life: CancellationToken,
    /// Of a call: asked before it leaves, and told when it does.
    departure: Option<Arc<Departure>>,
    /// Bytes that the server may still send.
    bytes_left: AtomicUsize,
    resumptions: AtomicU32,
    trouble: Mutex<Option<Trouble>>,
}

impl Exchange {
    /// Whatever is no call.
    pub(super) fn small_talk(life: CancellationToken, most_bytes: usize) -> Arc<Self> {
        Arc::new(Self::new(life, None, most_bytes))
    }

    /// A call.
    pub(super) fn call(
        life: CancellationToken,
        departure: Arc<Departure>,
        most_bytes: usize,
    ) -> Arc<Self> {
        Arc::new(Self::new(life, Some(departure), most_bytes))
    }

    fn new(life: CancellationToken, departure: Option<Arc<Departure>>, most_bytes: usize) -> Self {
        Self {
            life,
            departure,
            bytes_left: AtomicUsize::new(most_bytes),
            resumptions: AtomicU32::new(0),
            trouble: Mutex::new(None),
        }
    }

    /// When this is cancelled, its connections are closed. Whoever is done with a call cancels it.
    pub(super) fn life(&self) -> &CancellationToken {
        &self.life
    }

    /// The departure, if it is a call.
    pub(super) fn departure(&self) -> Option<&Arc<Departure>> {
        self.departure.as_ref()
    }

    /// Whether it is a call that may have reached the server.
    pub(super) fn has_left(&self) -> bool {
        self.departure.as_ref().is_some_and(|departure| departure.left() == Left::Yes)
    }

    /// The first thing that went wrong.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something went wrong. Only the first thing counts: others follow from it.
    pub(super) fn note(&self, trouble: Trouble) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(trouble);
    }

    /// Whether this many more bytes may come.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        let takes =
            self.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok();
        if !takes {
            self.bytes_left.store(0, Ordering::Relaxed);
        }
        takes
    }

    /// Whether an answer that broke off may be taken up once more.
    pub(super) fn may_resume(&self) -> bool {
        self.resumptions.fetch_add(1, Ordering::Relaxed) < MAX_RESUMPTIONS
            && self.bytes_left.load(Ordering::Relaxed) > 0
    }
}
