//! Whether this process may still believe that its runs are its own.
//!
//! Others take a node for dead when its beat stood still for 15 s. So 12 s after the last beat that
//! succeeded was *sent*, this process stops to act on the outside: it drops its sockets to models and
//! starts no tool, whatever it was doing. It is looked at whenever something outbound is polled, so a
//! process that was stopped for a minute finds out before it sends another byte.
//!
//! A driver believes in the node that it began under. When this process was declared dead and goes on
//! under a new id, no old driver gets its faith back.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::domain::ids::NodeId;

/// Below the 15 s after which others take over, with room for a request on its way.
const TRUSTED_FOR: Duration = Duration::from_secs(12);

/// The trust of this process in itself.
pub struct Trust {
    /// Nobody else can use the database, so nobody can take over.
    unconditional: bool,
    state: Mutex<State>,
    renewed: Notify,
}

#[derive(Clone, Copy)]
struct State {
    node_id: NodeId,
    until: Instant,
}

/// A driver's share: trust in the node that it drives for.
#[derive(Clone)]
pub struct Faith {
    trust: Arc<Trust>,
    node_id: NodeId,
}

impl Trust {
    /// Trust that begins now.
    pub fn new(node_id: NodeId, unconditional: bool) -> Arc<Self> {
        let state = State { node_id, until: Instant::now() + TRUSTED_FOR };
        Arc::new(Self { unconditional, state: Mutex::new(state), renewed: Notify::new() })
    }

    /// A beat of this node that was sent then has succeeded.
    pub fn renew(&self, node_id: NodeId, sent: Instant) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            State { node_id, until: sent + TRUSTED_FOR };
        self.renewed.notify_waiters();
    }

    /// Faith in the node as it is now.
    pub fn faith(self: &Arc<Self>) -> Faith {
        Faith { trust: self.clone(), node_id: self.state().node_id }
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faith {
    /// Whether it holds at this moment.
    pub fn holds(&self) -> bool {
        let state = self.trust.state();
        state.node_id == self.node_id && (self.trust.unconditional || Instant::now() < state.until)
    }

    /// Resolves as soon as it does not hold. Looks at the clock whenever it is polled: poll it before
    /// what depends on it.
    pub async fn lost(&self) {
        while self.holds() {
            if self.trust.unconditional {
                return std::future::pending().await;
            }
            let mut timer = pin!(sleep_until(self.trust.state().until));
            std::future::poll_fn(|context| {
                if !self.holds() {
                    return Poll::Ready(());
                }
                timer.as_mut().poll(context)
            })
            .await;
        }
    }

    /// Resolves when there is something to read again: the trust was renewed, or the node is another
    /// one by now and the run somebody else's.
    pub async fn settled(&self) {
        loop {
            let renewed = self.trust.renewed.notified();
            let mut renewed = pin!(renewed);
            renewed.as_mut().enable();
            let is_old = self.trust.state().node_id != self.node_id;
            if is_old || self.holds() {
                return;
            }
            renewed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId::from_uuid(Uuid::from_u128(n))
    }

    /// A beat that was sent so long ago.
    fn sent(ago: Duration) -> Instant {
        Instant::now().checked_sub(ago).expect("a machine that has been up for a minute")
    }

    #[tokio::test]
    async fn faith_is_lost_twelve_seconds_after_the_last_beat_was_sent() {
        let trust = Trust::new(node(1), false);
        let faith = trust.faith();
        let almost = TRUSTED_FOR - Duration::from_millis(20);
        trust.renew(node(1), sent(almost));
        assert!(faith.holds());
        faith.lost().await;
        assert!(!faith.holds());
        trust.renew(node(1), Instant::now());
        faith.settled().await;
        assert!(faith.holds());
    }

    #[tokio::test]
    async fn a_process_that_was_stopped_finds_out_at_the_first_poll() {
        let trust = Trust::new(node(1), false);
        let faith = trust.faith();
        let mut lost = pin!(faith.lost());
        assert!(futures_util::poll!(lost.as_mut()).is_pending());
        // As after a minute: the timer was set before, and has not been looked at since.
        trust.renew(node(1), sent(Duration::from_secs(60)));
        assert!(futures_util::poll!(lost.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_node_that_goes_on_under_a_new_id_gives_no_old_driver_its_faith_back() {
        let trust = Trust::new(node(1), false);
        let old = trust.faith();
        trust.renew(node(2), Instant::now());
        assert!(!old.holds());
        old.lost().await;
        old.settled().await;
        assert!(trust.faith().holds());
    }

    #[tokio::test]
    async fn where_nobody_can_take_over_there_is_no_doubt() {
        let trust = Trust::new(node(1), true);
        let faith = trust.faith();
        trust.renew(node(1), sent(Duration::from_secs(60)));
        assert!(faith.holds());
        assert!(futures_util::poll!(pin!(faith.lost())).is_pending());
    }
}
