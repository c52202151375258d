//! How this process does, as its engine last knew: the engine writes it down every second, and
//! `/readyz` tells it without asking the database anything.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Beats come every second, and one that fails is tried again at once: this is an outage.
const NO_BEAT: Duration = Duration::from_secs(5);
/// A lost listener is back within a second where the database is. Until then others wake this node
/// by its own looking once a second.
const DEAF: Duration = Duration::from_secs(5);
/// Other nodes see a new one within so long, and tell it what they write: they look once a second.
const KNOWN: Duration = Duration::from_secs(3);
/// A run that waits for so long while slots are free is not waiting for a slot.
const STUCK: Duration = Duration::from_secs(30);

/// What is wrong with this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Its engine has not begun, or has ended.
    NoEngine,
    /// The database has taken no write of it for so long.
    NoBeat(Duration),
    /// It has not heard other nodes for so long.
    Deaf(Duration),
    /// A run has waited for so long, although slots are free.
    Stuck(Duration),
}

/// A connection by which the other nodes could see that this process is there.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    /// It has been there since this moment at the latest.
    pub since: Instant,
    /// When the last question to it that was answered was sent.
    pub asked: Instant,
}

/// The pulse of this process.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    beat_at: Option<Instant>,
    deaf_since: Option<Instant>,
    /// Since when it hears the others, if there are any.
    hears_since: Option<Instant>,
    presence: Option<Presence>,
    waits: Duration,
}

impl Pulse {
    /// The database has taken a write.
    pub fn beat(&self) {
        self.state().beat_at = Some(Instant::now());
    }

    /// The engine has ended.
    pub fn stop(&self) {
        self.state().beat_at = None;
    }

    /// This node hears the others, or there are none; or not any more.
    pub fn hears(&self, hears: bool) {
        let mut state = self.state();
        if hears {
            state.deaf_since = None;
            state.hears_since.get_or_insert_with(Instant::now);
        } else {
            state.deaf_since.get_or_insert_with(Instant::now);
            state.hears_since = None;
        }
    }

    /// Whether this node is told what the others write: it hears them, and has for long enough that they
    /// all know of it.
    pub fn is_told(&self) -> bool {
        self.state().hears_since.is_some_and(|since| since.elapsed() >= KNOWN)
    }

    /// The other nodes could see that this process is there, or cannot any more.
    pub fn present(&self, presence: Option<Presence>) {
        self.state().presence = presence;
    }

    /// How the other nodes could last see, for sure, that this process is there.
    pub fn presence(&self) -> Option<Presence> {
        self.state().presence
    }

    /// How long the oldest due run has been waiting although slots are free; zero when none is.
    pub fn waits(&self, waits: Duration) {
        self.state().waits = waits;
    }

    /// What is wrong at this moment; nothing means that all is well.
    pub fn troubles(&self) -> Vec<Trouble> {
        let state = self.state();
        let Some(beat_at) = state.beat_at else { return vec![Trouble::NoEngine] };
        let silent = Some(beat_at.elapsed()).filter(|since| *since >= NO_BEAT);
        let deaf = state.deaf_since.map(|since| since.elapsed()).filter(|since| *since >= DEAF);
        let stuck = Some(state.waits).filter(|waits| *waits >= STUCK);
        let troubles = [
            silent.map(Trouble::NoBeat),
            deaf.map(Trouble::Deaf),
            // What the database does not answer is no news of the queue.
            stuck.filter(|_| silent.is_none()).map(Trouble::Stuck),
        ];
        troubles.into_iter().flatten().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each field stands for itself: a panic leaves none half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_tells_what_is_wrong_and_nothing_else() {
        let pulse = Pulse::default();
        assert_eq!(pulse.troubles(), [Trouble::NoEngine]);
        pulse.beat();
        assert_eq!(pulse.troubles(), []);
        // A listener that was just lost, and a queue that is just long, are no trouble.
        pulse.hears(false);
        pulse.waits(Duration::from_secs(29));
        assert_eq!(pulse.troubles(), []);
        pulse.waits(Duration::from_secs(31));
        assert_eq!(pulse.troubles(), [Trouble::Stuck(Duration::from_secs(31))]);
        assert!(!pulse.is_told(), "it listens to nobody yet");
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds));
        pulse.state().deaf_since = ago(6);
        pulse.state().beat_at = ago(7);
        let troubles = pulse.troubles();
        let [Trouble::NoBeat(silent), Trouble::Deaf(deaf)] = troubles[..] else {
            panic!("{troubles:?}")
        };
        assert!(silent >= Duration::from_secs(7) && deaf >= Duration::from_secs(6));
        assert!(silent > deaf, "{troubles:?}");
        pulse.hears(true);
        assert!(!pulse.is_told(), "nobody knows of it yet");
        pulse.state().hears_since = ago(3);
        pulse.hears(true);
        assert!(pulse.is_told());
        pulse.hears(false);
        assert!(!pulse.is_told());
        pulse.hears(true);
        pulse.beat();
        pulse.waits(Duration::ZERO);
        assert_eq!(pulse.troubles(), []);
        pulse.stop();
        assert_eq!(pulse.troubles(), [Trouble::NoEngine]);
    }
}
