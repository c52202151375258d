//! When a stream has been silent for too long, and when it has been open for long enough.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// After so much silence a comment is sent: proxies close what looks dead, and a write is how a
/// dead client is noticed.
const SILENCE: Duration = Duration::from_secs(15);

/// The clocks of a stream. One timer, looked at when it fires, and not moved at every event.
pub struct Pace {
    times: Times,
    timer: Pin<Box<Sleep>>,
}

#[derive(Clone, Copy)]
struct Times {
    last_sent: Instant,
    rotate_at: Instant,
}

impl Times {
    /// Whether a comment is due; then it counts as sent.
    fn is_silent(&mut self, now: Instant) -> bool {
        let silent = now >= self.last_sent + SILENCE;
        if silent {
            self.last_sent = now;
        }
        silent
    }

    /// When it is time to look again.
    fn next(self) -> Instant {
        self.rotate_at.min(self.last_sent + SILENCE)
    }
}

impl Pace {
    /// Of a stream that begins now and may be open for so long.
    pub fn new(lifetime: Duration) -> Self {
        let now = Instant::now();
        let times = Times { last_sent: now, rotate_at: now + lifetime };
        Self { times, timer: Box::pin(tokio::time::sleep_until(times.next())) }
    }

    /// Resolves when it is time to ask [`Self::is_silent`] and [`Self::is_over`].
    pub async fn tick(&mut self) {
        self.timer.as_mut().await;
    }

    /// Something was sent.
    pub fn sent(&mut self) {
        self.times.last_sent = Instant::now();
    }

    /// Whether a comment is due; then it counts as sent. Sets the timer again.
    pub fn is_silent(&mut self) -> bool {
        let silent = self.times.is_silent(Instant::now());
        self.timer.as_mut().reset(self.times.next());
        silent
    }

    /// Whether the stream has been open for long enough.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.times.rotate_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_due_fifteen_seconds_after_the_last_word_and_the_timer_fires_no_oftener() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        // Something was sent in the tenth second.
        let mut times = Times { last_sent: at(10), rotate_at: at(60) };
        let (mut looks, mut now) = (Vec::new(), at(15));
        while now < times.rotate_at {
            looks.push((now.duration_since(began).as_secs(), times.is_silent(now)));
            now = times.next();
        }
        assert_eq!(looks, [(15, false), (25, true), (40, true), (55, true)]);
        assert_eq!(now, at(60));
    }
}
