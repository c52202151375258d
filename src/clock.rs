//! The one home of the system's clock and of randomness. Everything else gets them from here.
//!
//! A manual clock lets tests say what time it is; ids then carry that time too.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::domain::ids::{CallId, ConversationId, MessageId, RunId};
use crate::domain::time::Timestamp;
use crate::domain::write::NewIds;

/// Tells the time and makes ids.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    manual: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Self {
        Self { manual: None }
    }

    /// A clock that stands still until it is moved.
    pub fn manual(at: Timestamp) -> Self {
        Self { manual: Some(Arc::new(AtomicI64::new(at.millis()))) }
    }

    /// Moves a manual clock forward; the machine's own cannot be moved.
    pub fn advance(&self, by: Duration) {
        if let Some(millis) = &self.manual {
            millis.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }

    /// The time.
    #[expect(clippy::disallowed_methods, reason = "this is the clock's one home")]
    pub fn now(&self) -> Timestamp {
        match &self.manual {
            Some(millis) => Timestamp::from_millis(millis.load(Ordering::SeqCst)),
            None => Timestamp::from_millis(chrono::Utc::now().timestamp_millis()),
        }
    }

    /// A new UUIDv7, later than every one made before by this process.
    #[expect(clippy::disallowed_methods, reason = "this is the ids' one home")]
    pub fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }

    /// A number that is uniform in 0..1.
    #[expect(clippy::disallowed_methods, reason = "this is randomness' one home")]
    pub fn chance(&self) -> f64 {
        let (_, random) = Uuid::new_v4().as_u64_pair();
        (random & ((1 << 52) - 1)) as f64 / (1_u64 << 52) as f64
    }

    /// A new run id.
    pub fn run_id(&self) -> RunId {
        RunId::from_uuid(self.uuid())
    }

    /// A new conversation id.
    pub fn conversation_id(&self) -> ConversationId {
        ConversationId::from_uuid(self.uuid())
    }
}

impl NewIds for Clock {
    fn now(&self) -> Timestamp {
        Self::now(self)
    }
    fn message_id(&mut self) -> MessageId {
        MessageId::from_uuid(self.uuid())
    }
    fn call_id(&mut self) -> CallId {
        CallId::from_uuid(self.uuid())
    }
}
