//! What servers have told of their tools.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

use super::trouble::Trouble;
use crate::domain::ids::{AgentId, WorkspaceId};
use crate::domain::tool::Listing;

/// How long a list is taken for true.
const FRESH: Duration = Duration::from_secs(600);
/// How long an old one is, when its server was asked for a new one in vain.
const FRESH_ENOUGH: Duration = Duration::from_secs(60);
/// Lists in memory at most: the one that was not needed for the longest time goes first.
const MAX_LISTS: usize = 1_000;
/// Bytes of all of them: as many as the largest lists that 16 servers may send.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What a run is pinned to: what is known is known for an agent's version, since that names the URL
/// and the headers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pinned {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The agent.
    pub agent_id: AgentId,
    /// Its version.
    pub version: i32,
}

type Key = (Pinned, String);
type Answer = Result<Listing, Trouble>;
type Asking = BoxFuture<'static, Answer>;

/// Lists of tools by agent version and tool.
#[derive(Default)]
pub(super) struct Known(Mutex<State>);

#[derive(Default)]
struct State {
    lists: HashMap<Key, Entry>,
    bytes: usize,
    /// Servers that are being asked at this moment. Whoever needs a list waits for the same answer;
    /// when nobody does any more, the question is dropped.
    asking: HashMap<Key, WeakShared<Asking>>,
}

struct Entry {
    listing: Listing,
    bytes: usize,
    good_until: Instant,
    used_at: Instant,
}

impl Known {
    /// The list of an agent's tool: what is known, or what `ask` brings.
    ///
    /// # Errors
    /// Those of `ask`, if there is no older list either.
    pub(super) async fn listing(
        &self,
        of: &Pinned,
        tool: &str,
        ask: impl Future<Output = Answer> + Send + 'static,
    ) -> Answer {
        let key = (of.clone(), tool.to_owned());
        let answer = match self.state().find_or_ask(&key, Instant::now(), ask) {
            Ok(listing) => return Ok(listing),
            Err(asking) => asking,
        };
        let answer = answer.await;
        self.state().settle(key, Instant::now(), answer)
    }

    /// A server does not know a tool that it had listed: the next one who needs the list asks again.
    pub(super) fn doubt(&self, of: &Pinned, tool: &str) {
        self.state().doubt(&(of.clone(), tool.to_owned()), Instant::now());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking holder could leave behind is a wrong sum of bytes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find_or_ask(
        &mut self,
        key: &Key,
        now: Instant,
        ask: impl Future<Output = Answer> + Send + 'static,
    ) -> Result<Listing, Shared<Asking>> {
        if let Some(entry) = self.lists.get_mut(key).filter(|entry| now < entry.good_until) {
            entry.used_at = now;
            return Ok(entry.listing.clone());
        }
        if let Some(asking) = self.asking.get(key).and_then(WeakShared::upgrade) {
            return Err(asking);
        }
        let asking = ask.boxed().shared();
        self.asking.retain(|_, asking| asking.upgrade().is_some());
        if let Some(weak) = asking.downgrade() {
            self.asking.insert(key.clone(), weak);
        }
        Err(asking)
    }

    /// Keeps an answer. All who waited for it come by with the same one.
    fn settle(&mut self, key: Key, now: Instant, answer: Answer) -> Answer {
        self.asking.remove(&key);
        match answer {
            Ok(listing) => {
                self.keep(key, listing.clone(), now);
                Ok(listing)
            }
            Err(trouble) => {
                let Some(entry) = self.lists.get_mut(&key) else { return Err(trouble) };
                tracing::warn!(
                    agent_id = %key.0.agent_id, tool = key.1, trouble = trouble.what,
                    "an MCP server could not be asked again; its tools stay as they were"
                );
                entry.good_until = now + FRESH_ENOUGH;
                entry.used_at = now;
                Ok(entry.listing.clone())
            }
        }
    }

    fn doubt(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.lists.get_mut(key) {
            entry.good_until = now;
        }
    }

    fn keep(&mut self, key: Key, listing: Listing, now: Instant) {
        self.forget(&key);
        let bytes = bytes(&listing);
        while self.lists.len() >= MAX_LISTS || self.bytes + bytes > MAX_BYTES {
            let oldest = self.lists.iter().min_by_key(|(_, entry)| entry.used_at);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.forget(&oldest);
        }
        self.bytes += bytes;
        self.lists.insert(key, Entry { listing, bytes, good_until: now + FRESH, used_at: now });
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.lists.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

/// A rough size in memory; a compiled schema is a few times its text.
fn bytes(listing: &Listing) -> usize {
    let specs = listing.iter().map(|tool| &tool.spec);
    specs.map(|spec| 256 + spec.description.len() + spec.parameters.to_string().len()).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::Map;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::domain::tool::{Discovered, Listed};

    fn key(version: i32) -> Key {
        let agent_id = "a".parse().unwrap();
        (Pinned { workspace_id: WorkspaceId::DEFAULT, agent_id, version }, "s".to_owned())
    }

    fn listing() -> Listing {
        let (name, description) = ("t".to_owned(), String::new());
        Arc::new([Arc::new(Discovered::new(
            "s",
            Listed { name, description, parameters: Map::new() },
        ))])
    }

    fn trouble() -> Trouble {
        Trouble::passing("could not be reached")
    }

    /// What is said at this time, if the server answers like this.
    fn told(state: &mut State, version: i32, now: Instant, answer: Answer) -> Answer {
        let given = answer.clone();
        match state.find_or_ask(&key(version), now, async move { given }) {
            Ok(listing) => Ok(listing),
            Err(_asking) => state.settle(key(version), now, answer),
        }
    }

    #[test]
    fn a_list_is_asked_for_again_after_ten_minutes_or_when_it_was_doubted() {
        let (mut state, start) = (State::default(), Instant::now());
        let (first, second) = (listing(), listing());
        let mut is = |now: Instant, answer: &Listing, listing: &Listing, doubt: bool| {
            if doubt {
                state.doubt(&key(1), now);
            }
            let told = told(&mut state, 1, now, Ok(answer.clone())).unwrap();
            assert!(Arc::ptr_eq(&told, listing));
        };
        is(start, &first, &first, false);
        is(start + FRESH - Duration::from_secs(1), &second, &first, false);
        is(start + FRESH, &second, &second, false);
        is(start + FRESH, &first, &second, false);
        is(start + FRESH, &first, &first, true);
    }

    #[test]
    fn a_server_that_falls_silent_keeps_the_tools_that_it_had() {
        let (mut state, start) = (State::default(), Instant::now());
        let (first, second) = (listing(), listing());
        assert_eq!(told(&mut state, 1, start, Err(trouble())).unwrap_err(), trouble());
        told(&mut state, 1, start, Ok(first.clone())).unwrap();
        let silent = start + FRESH;
        let kept = told(&mut state, 1, silent, Err(trouble())).unwrap();
        assert!(Arc::ptr_eq(&kept, &first));
        // And is not asked before every single step.
        let kept = told(&mut state, 1, silent, Ok(second.clone())).unwrap();
        assert!(Arc::ptr_eq(&kept, &first));
        let kept = told(&mut state, 1, silent + FRESH_ENOUGH, Ok(second.clone())).unwrap();
        assert!(Arc::ptr_eq(&kept, &second));
    }

    #[test]
    fn what_was_not_needed_for_the_longest_time_goes_first() {
        let (mut state, start) = (State::default(), Instant::now());
        let at = |millis: u64| start + Duration::from_millis(millis);
        for version in 0..1_000 {
            told(&mut state, version, at(version.unsigned_abs().into()), Ok(listing())).unwrap();
        }
        told(&mut state, 0, at(1_000), Err(trouble())).expect("it is known, and needed");
        told(&mut state, 1_000, at(1_001), Ok(listing())).unwrap();
        told(&mut state, 0, at(1_002), Err(trouble())).expect("it was needed just now");
        told(&mut state, 1, at(1_003), Err(trouble())).expect_err("it had to go");
        assert_eq!(state.lists.len(), 1_000);
        assert_eq!(state.bytes, 1_000 * bytes(&listing()));
    }

    #[tokio::test]
    async fn many_who_need_a_list_ask_once() {
        let known = Known::default();
        let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let one = || {
            let (asked, answer, known) = (asked.clone(), answer.clone(), &known);
            async move {
                let ask = async move {
                    asked.fetch_add(1, Ordering::SeqCst);
                    let _ = answer.acquire().await;
                    Ok(listing())
                };
                known.listing(&key(1).0, "s", ask).await.unwrap()
            }
        };
        // The one who asked first gives up; the others get the answer.
        let mut first = Box::pin(one());
        assert!(futures_util::poll!(first.as_mut()).is_pending());
        let mut others: Vec<_> = (0..10).map(|_| Box::pin(one())).collect();
        for other in &mut others {
            assert!(futures_util::poll!(other.as_mut()).is_pending());
        }
        drop(first);
        answer.add_permits(1);
        let lists = futures_util::future::join_all(others).await;
        assert!(lists.iter().all(|list| Arc::ptr_eq(list, &lists[0])));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
