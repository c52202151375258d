//! Who is dead, as far as this process can see. Pure: the time comes in.
//!
//! No clocks are compared. What counts is how long a beat stood still *while this process could read
//! it*: an outage of the database, in which nobody can beat, kills nobody, nor does a pause of our own.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ids::NodeId;
use crate::store::{Neighbour, NodeBeat};

/// A node whose beat stood still for so long is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);
/// The same for a node whose process the database has no connection to: the third look finds it dead,
/// even if one of them came a little early.
pub const GONE_AFTER: Duration = Duration::from_millis(1_900);
/// Between two looks nobody counts more than this, however long it was: looks come every second, and
/// what was not looked at may have moved and been set back.
const MOST_BETWEEN: Duration = Duration::from_millis(1_500);

/// The beats of others, as this process has seen them.
#[derive(Debug, Default)]
pub struct Observer {
    still: HashMap<NodeId, Still>,
    last_look: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Still {
    beat: i64,
    /// For how long the beat was seen standing still.
    stood: Duration,
    /// For how long of that its process was not there; `None` while it was.
    gone: Option<Duration>,
}

impl Observer {
    /// Takes in what was just read; returns those that are dead.
    pub fn look(&mut self, neighbours: &[Neighbour], now: Instant) -> Vec<NodeBeat> {
        let since =
            self.last_look.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let since = since.min(MOST_BETWEEN);
        self.last_look = Some(now);
        let mut still = HashMap::with_capacity(neighbours.len());
        let mut dead = Vec::new();
        for Neighbour { seen, listens } in neighbours {
            let before = self.still.get(&seen.node_id).filter(|before| before.beat == seen.beat);
            let stood = before.map_or(Duration::ZERO, |before| before.stood + since);
            // Counted from the first look that missed it: it may have been there until just before.
            let gone = match (before.and_then(|before| before.gone), listens) {
                (Some(gone), Some(false)) => Some(gone + since),
                (None, Some(false)) => Some(Duration::ZERO),
                (_, Some(true) | None) => None,
            };
            if stood >= DEAD_AFTER || gone.is_some_and(|gone| gone >= GONE_AFTER) {
                dead.push(*seen);
            }
            still.insert(seen.node_id, Still { beat: seen.beat, stood, gone });
        }
        self.still = still;
        dead
    }

    /// The beats could not be read: time until the next look counts against nobody.
    pub fn missed(&mut self) {
        self.last_look = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn seen(beat: i64) -> NodeBeat {
        NodeBeat { node_id: NodeId::from_uuid(Uuid::from_u128(1)), beat }
    }

    /// Looks once a second; returns the second in which the node was found dead.
    fn watch(
        observer: &mut Observer,
        from: Instant,
        looks: &[(i64, Option<bool>)],
    ) -> Option<usize> {
        looks.iter().enumerate().find_map(|(second, (beat, listens))| {
            let neighbour = Neighbour { seen: seen(*beat), listens: *listens };
            let now = from + Duration::from_secs(second as u64);
            let dead = observer.look(&[neighbour], now);
            assert!(dead.iter().all(|dead| *dead == seen(*beat)));
            (!dead.is_empty()).then_some(second)
        })
    }

    #[test]
    fn a_node_is_dead_when_its_beat_stood_still_for_fifteen_seconds_of_looking() {
        let now = Instant::now();
        for listens in [Some(true), None] {
            assert_eq!(watch(&mut Observer::default(), now, &[(7, listens); 30]), Some(15));
        }
        let beating: Vec<_> = (0..60).map(|beat| (beat / 10, Some(true))).collect();
        assert_eq!(watch(&mut Observer::default(), now, &beating), None);
    }

    #[test]
    fn a_node_without_a_process_is_dead_after_two_seconds_unless_it_beats() {
        let now = Instant::now();
        assert_eq!(watch(&mut Observer::default(), now, &[(7, Some(false)); 9]), Some(2));
        // It lost its listener, not its life.
        let beating: Vec<_> = (0..60).map(|beat| (beat, Some(false))).collect();
        assert_eq!(watch(&mut Observer::default(), now, &beating), None);
        // Its listener comes back in time.
        let back = [(7, Some(false)), (7, Some(false)), (7, Some(true)), (7, Some(false))];
        assert_eq!(watch(&mut Observer::default(), now, &back), None);
    }

    #[test]
    fn neither_an_outage_nor_a_pause_of_the_observer_kills() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut observer = Observer::default();
        let look = |observer: &mut Observer, seconds, listens| {
            observer.look(&[Neighbour { seen: seen(1), listens: Some(listens) }], at(seconds)).len()
        };
        assert_eq!(look(&mut observer, 0, true), 0);
        observer.missed();
        // A minute in which nobody could beat; and then a second in which all come back.
        assert_eq!(look(&mut observer, 60, false), 0);
        assert_eq!(look(&mut observer, 61, false), 0);
        assert_eq!(look(&mut observer, 62, true), 0);
        // We were stopped for a minute: so the others may have been.
        assert_eq!(look(&mut observer, 122, false), 0);
        assert_eq!(look(&mut observer, 123, false), 0);
        assert_eq!(look(&mut observer, 124, false), 1);
    }
}
