//! Whether this process may still believe that its runs are its own.
//!
//! Others take a node for dead when its beat stood still for 15 s; or for 1.9 s, if the database has
//! no connection of its ear either. So there are two kinds of trust:
//!
//! - 12 s after the last beat that succeeded was *sent*, this process drops its sockets to models: what
//!   they say could not be written down any more. Until then an outage costs nothing.
//! - It begins something that may not happen twice only within 1.7 s of a proof that nobody can have
//!   taken over: a beat that succeeded, or an answer to its ear (while that has a connection, 15 s are
//!   what counts, of which 12 must not be over). A connection that was lost and made again between two
//!   looks of the others is none to them: so it counts only once a beat was sent behind it, which they
//!   cannot overlook.
//!
//! Both are looked at whenever something outbound is polled, so a process that was stopped for a minute
//! finds out before it sends another byte. And a driver believes in the node that it began under: when
//! this process was declared dead and goes on under a new id, no old driver gets its faith back.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::domain::ids::NodeId;
use crate::log::pulse::{Presence, Pulse};

/// Below the 15 s after which others take over, with room for a request on its way.
const TRUSTED_FOR: Duration = Duration::from_secs(12);
/// Below the 1.9 s after which others take over from a process that has no connection.
const PROOF_HOLDS: Duration = Duration::from_millis(1_700);

/// What speaks for a node. Pure: the time comes in.
#[derive(Debug, Clone, Copy)]
pub struct Proof {
    /// When the last beat that succeeded was sent.
    pub beat_sent: Instant,
    /// The connection of the ear.
    pub ear: Option<Presence>,
}

impl Proof {
    /// Whether what is under way may go on.
    pub fn holds(&self, now: Instant) -> bool {
        now < self.beat_sent + TRUSTED_FOR
    }

    /// Whether something may begin that must not happen twice.
    pub fn may_act(&self, now: Instant) -> bool {
        let seen = self.ear.filter(|ear| self.beat_sent >= ear.since);
        let newest = seen.map_or(self.beat_sent, |ear| ear.asked.max(self.beat_sent));
        self.holds(now) && now < newest + PROOF_HOLDS
    }
}

/// The trust of this process in itself.
pub struct Trust {
    /// Nobody else can use the database, so nobody can take over.
    unconditional: bool,
    pulse: Arc<Pulse>,
    state: Mutex<State>,
    renewed: Notify,
}

#[derive(Clone, Copy)]
struct State {
    node_id: NodeId,
    beat_sent: Instant,
}

/// A driver's share: trust in the node that it drives for.
#[derive(Clone)]
pub struct Faith {
    trust: Arc<Trust>,
    node_id: NodeId,
}

impl Trust {
    /// Trust that begins now.
    pub fn new(node_id: NodeId, pulse: Arc<Pulse>, unconditional: bool) -> Arc<Self> {
        let state = Mutex::new(State { node_id, beat_sent: Instant::now() });
        Arc::new(Self { unconditional, pulse, state, renewed: Notify::new() })
    }

    /// A beat of this node that was sent then has succeeded.
    pub fn renew(&self, node_id: NodeId, beat_sent: Instant) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { node_id, beat_sent };
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
    /// Whether what is under way may go on.
    pub fn holds(&self) -> bool {
        self.test(Proof::holds)
    }

    /// Whether something may begin that must not happen twice.
    pub fn may_act(&self) -> bool {
        self.test(Proof::may_act)
    }

    fn test(&self, says: fn(&Proof, Instant) -> bool) -> bool {
        let State { node_id, beat_sent } = self.trust.state();
        let proof = Proof { beat_sent, ear: self.trust.pulse.presence() };
        node_id == self.node_id && (self.trust.unconditional || says(&proof, Instant::now()))
    }

    /// Resolves as soon as it does not hold. Looks at the clock whenever it is polled: poll it before
    /// what depends on it.
    pub async fn lost(&self) {
        while self.holds() {
            if self.trust.unconditional {
                return std::future::pending().await;
            }
            let until = self.trust.state().beat_sent + TRUSTED_FOR;
            let mut timer = pin!(sleep_until(until.into()));
            std::future::poll_fn(|context| {
                if !self.holds() {
                    return Poll::Ready(());
                }
                timer.as_mut().poll(context)
            })
            .await;
        }
    }

    /// Resolves with the next beat that succeeds, or when the node is another one by now: then there is
    /// something to read again.
    pub async fn renewed(&self) {
        let renewed = self.trust.renewed.notified();
        let mut renewed = pin!(renewed);
        renewed.as_mut().enable();
        if self.trust.state().node_id != self.node_id || self.may_act() {
            return;
        }
        renewed.await;
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
        let trust = Trust::new(node(1), Arc::default(), false);
        let faith = trust.faith();
        trust.renew(node(1), sent(TRUSTED_FOR / 2));
        assert!(faith.holds());
        let almost = sent(TRUSTED_FOR - Duration::from_millis(20));
        trust.renew(node(1), almost);
        faith.lost().await;
        assert!(almost.elapsed() >= TRUSTED_FOR && !faith.holds());
        trust.renew(node(1), Instant::now());
        faith.renewed().await;
        assert!(faith.holds());
    }

    #[tokio::test]
    async fn a_process_that_was_stopped_finds_out_at_the_first_poll() {
        let trust = Trust::new(node(1), Arc::default(), false);
        let faith = trust.faith();
        let mut lost = pin!(faith.lost());
        assert!(futures_util::poll!(lost.as_mut()).is_pending());
        // As after a minute: the timer was set before, and has not been looked at since.
        trust.renew(node(1), sent(Duration::from_secs(60)));
        assert!(futures_util::poll!(lost.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn a_node_that_goes_on_under_a_new_id_gives_no_old_driver_its_faith_back() {
        let trust = Trust::new(node(1), Arc::default(), false);
        let old = trust.faith();
        trust.renew(node(2), Instant::now());
        assert!(!old.holds());
        old.lost().await;
        old.renewed().await;
        assert!(trust.faith().holds());
    }

    #[test]
    fn what_must_not_happen_twice_begins_only_behind_a_fresh_proof() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let proof = |beat, asked: Option<u64>| {
            let ear = asked.map(|asked| Presence { since: at(0), asked: at(asked) });
            Proof { beat_sent: at(beat), ear }
        };
        // A beat, and nothing else.
        assert!(proof(0, None).may_act(at(1_699)) && !proof(0, None).may_act(at(1_700)));
        // The ear has a connection: others wait for 15 s.
        assert!(proof(0, Some(9_000)).may_act(at(10_600)));
        assert!(!proof(0, Some(9_000)).may_act(at(10_700)));
        // But not for longer.
        assert!(proof(0, Some(11_900)).may_act(at(11_999)));
        assert!(!proof(0, Some(11_900)).may_act(at(12_000)));
        // A connection that was made after the last beat proves nothing yet.
        let ear = Some(Presence { since: at(5_000), asked: at(9_000) });
        assert!(!Proof { beat_sent: at(4_000), ear }.may_act(at(9_100)));
        assert!(Proof { beat_sent: at(6_000), ear }.may_act(at(9_100)));
        // What is under way goes on without.
        assert!(proof(0, None).holds(at(11_999)) && !proof(0, None).holds(at(12_000)));
        assert!(PROOF_HOLDS < super::super::observe::GONE_AFTER);
        assert!(TRUSTED_FOR < super::super::observe::DEAD_AFTER);
    }

    #[tokio::test]
    async fn where_nobody_can_take_over_there_is_no_doubt() {
        let trust = Trust::new(node(1), Arc::default(), true);
        let faith = trust.faith();
        trust.renew(node(1), sent(Duration::from_secs(60)));
        assert!(faith.holds());
        assert!(futures_util::poll!(pin!(faith.lost())).is_pending());
    }
}
