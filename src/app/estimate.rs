//! How long runs of an agent take, for `estimated_completion_seconds`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::time::Timestamp;

use super::{App, Caller};

/// How long a median is good enough: it is a guess over 50 runs, and clients poll every second.
const FRESH: Duration = Duration::from_secs(10);
/// Agents remembered at most. Beyond it all are forgotten: one query each is what it costs.
const MAX_KEPT: usize = 1_000;

/// The medians of agents that were asked about lately.
#[derive(Debug, Default)]
pub struct Durations(Mutex<HashMap<(WorkspaceId, AgentId), Median>>);

#[derive(Debug, Clone, Copy)]
struct Median {
    millis: Option<u64>,
    at: Timestamp,
}

impl Durations {
    /// A median that may be shown, or `Err` with the duty to find a new one: of all who find it
    /// stale at once, one gets the duty and the others the old value.
    fn look(&self, key: &(WorkspaceId, AgentId), now: Timestamp) -> Result<Option<u64>, Stale> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.get_mut(key) {
            Some(median) if now.since(median.at) < FRESH => Ok(median.millis),
            Some(median) => {
                median.at = now;
                Err(Stale)
            }
            None => {
                if kept.len() >= MAX_KEPT {
                    kept.clear();
                }
                kept.insert(key.clone(), Median { millis: None, at: now });
                Err(Stale)
            }
        }
    }

    fn keep(&self, key: (WorkspaceId, AgentId), median: Median) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, median);
    }
}

struct Stale;

impl App {
    /// Milliseconds that half of the agent's newest completed runs took less than; `None` if there
    /// are none, or if the store does not answer: a guess is not worth an error.
    pub(super) async fn median_duration(
        &self,
        caller: &Caller,
        agent_id: &AgentId,
        now: Timestamp,
    ) -> Option<u64> {
        let key = (caller.workspace_id, agent_id.clone());
        if let Ok(known) = self.durations.look(&key, now) {
            return known;
        }
        let durations = self.store().recent_durations(caller.workspace_id, agent_id).await.ok()?;
        let millis = median(durations);
        self.durations.keep(key, Median { millis, at: now });
        millis
    }
}

fn median(mut durations: Vec<i64>) -> Option<u64> {
    durations.sort_unstable();
    durations.get(durations.len() / 2).and_then(|millis| u64::try_from(*millis).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_there_is_none_of_nothing() {
        assert_eq!(median(vec![900, 100, 500]), Some(500));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn one_of_many_gets_the_duty_to_look_again() {
        let durations = Durations::default();
        let key = (WorkspaceId::DEFAULT, "a".parse().unwrap());
        let at = Timestamp::from_millis(0);
        assert!(durations.look(&key, at).is_err());
        assert!(matches!(durations.look(&key, at), Ok(None)));
        durations.keep(key.clone(), Median { millis: Some(7), at });
        let later = at.plus(FRESH);
        assert!(durations.look(&key, later).is_err());
        assert!(matches!(durations.look(&key, later), Ok(Some(7))));
    }
}
