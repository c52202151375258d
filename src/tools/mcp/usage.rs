//! Which sessions are needed: those that calls use, and those that were used not long ago.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A session that no call has used for so long is closed though its run goes on: servers forget them
/// no later, and a run may think for hours.
const IDLE: Duration = Duration::from_secs(300);
/// Sessions that a process keeps open beside those that calls use at the moment. Each costs two tasks
/// here, and something at its server.
const MAX_SESSIONS: usize = 1_000;

/// How a session is used. Its keeper closes it when it is not needed any more.
pub(super) struct Usage {
    state: Mutex<State>,
    unneeded: CancellationToken,
}

struct State {
    calls: usize,
    used_at: Instant,
    is_over: bool,
}

impl Usage {
    /// Used now, by nobody yet.
    pub(super) fn new(now: Instant) -> Arc<Self> {
        let state = Mutex::new(State { calls: 0, used_at: now, is_over: false });
        Arc::new(Self { state, unneeded: CancellationToken::new() })
    }

    /// A call begins, unless the session is over. It lasts until what is returned is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Option<InUse> {
        let mut state = self.state();
        if state.is_over {
            return None;
        }
        state.calls += 1;
        Some(InUse(self.clone()))
    }

    /// No call begins any more; the session is closed.
    pub(super) fn end(&self) {
        self.state().is_over = true;
        self.unneeded.cancel();
    }

    /// Resolves when the session must be closed: nobody needs it, or it was not used for too long.
    pub(super) async fn over(&self) {
        loop {
            let idle_at = self.idle_since().unwrap_or_else(Instant::now) + IDLE;
            tokio::select! {
                () = self.unneeded.cancelled() => return,
                () = tokio::time::sleep_until(idle_at) => self.end_if_idle(Instant::now()),
            }
        }
    }

    fn end_if_idle(&self, now: Instant) {
        let mut state = self.state();
        if state.calls == 0 && now.duration_since(state.used_at) >= IDLE {
            state.is_over = true;
            self.unneeded.cancel();
        }
    }

    /// Since when no call has used it; `None`: one does, or it is over.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.calls == 0 && !state.is_over).then_some(state.used_at)
    }

    fn is_over(&self) -> bool {
        self.state().is_over
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody panics while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call uses a session as long as it has this.
pub(super) struct InUse(Arc<Usage>);

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls = state.calls.saturating_sub(1);
        state.used_at = Instant::now();
    }
}

/// The sessions that this process keeps.
#[derive(Default)]
pub(super) struct Kept(Mutex<Vec<Weak<Usage>>>);

impl Kept {
    /// One more: if there are too many, the one that was not used for the longest time is closed.
    /// Those that calls use are left alone: there are no more of them than calls.
    pub(super) fn add(&self, usage: &Arc<Usage>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_SESSIONS {
            kept.retain(|usage| usage.upgrade().is_some_and(|usage| !usage.is_over()));
            let idle = kept.iter().filter_map(|usage| {
                let usage = usage.upgrade()?;
                Some((usage.idle_since()?, usage))
            });
            let longest = idle.min_by_key(|(since, _)| *since);
            if let Some((_, usage)) = longest.filter(|_| kept.len() >= MAX_SESSIONS) {
                usage.end();
            }
        }
        kept.push(Arc::downgrade(usage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_not_used_for_five_minutes_is_over() {
        let start = Instant::now();
        let usage = Usage::new(start);
        let call = usage.begin().expect("it is open");
        usage.end_if_idle(start + IDLE * 3);
        assert!(!usage.is_over(), "a call uses it");
        let before = Instant::now();
        drop(call);
        usage.end_if_idle(before + IDLE - Duration::from_secs(1));
        assert!(!usage.is_over(), "it was used just now");
        usage.end_if_idle(Instant::now() + IDLE);
        assert!(usage.is_over());
        assert!(usage.begin().is_none(), "no call begins in a session that is being closed");
    }

    #[tokio::test]
    async fn its_keeper_hears_when_a_session_is_over() {
        let long_ago = Instant::now().checked_sub(IDLE).expect("a time");
        Usage::new(long_ago).over().await;
        let usage = Usage::new(Instant::now());
        let mut over = Box::pin(usage.over());
        assert!(futures_util::poll!(over.as_mut()).is_pending());
        usage.end();
        over.await;
    }

    #[test]
    fn the_thousand_and_first_session_closes_the_one_that_was_idle_longest() {
        let (kept, start) = (Kept::default(), Instant::now());
        let mut all = Vec::new();
        for n in 0..1_000 {
            let usage = Usage::new(start + Duration::from_millis(n));
            kept.add(&usage);
            all.push(usage);
        }
        let _call = all[0].begin().unwrap();
        kept.add(&Usage::new(start));
        let over: Vec<usize> = (0..all.len()).filter(|n| all[*n].is_over()).collect();
        assert_eq!(over, [1], "the first is in use");
        // Those that are gone make room: none is closed for the sake of another.
        all.truncate(500);
        kept.add(&Usage::new(start));
        assert_eq!(all.iter().filter(|usage| usage.is_over()).count(), 1);
    }
}
