//! How many event streams there may be, in all and in one workspace, and for how long each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::ids::WorkspaceId;

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// On this node.
    pub most: usize,
    /// On this node, of one workspace.
    pub most_per_workspace: usize,
    /// After so long a stream ends and is taken up again: no deployment waits for a reader.
    pub lifetime: Duration,
}

/// The open event streams of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Streams {
    limits: StreamLimits,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_workspace: HashMap<WorkspaceId, usize>,
}

/// An open stream, until this is dropped.
#[derive(Debug)]
pub struct OpenStream {
    streams: Streams,
    workspace_id: WorkspaceId,
}

impl Streams {
    /// None is open yet.
    pub fn new(limits: StreamLimits) -> Self {
        Self { limits, open: Arc::default() }
    }

    /// How long a stream lives.
    pub const fn lifetime(&self) -> Duration {
        self.limits.lifetime
    }

    /// Opens one more; `None` when there are as many as there may be.
    pub fn open(&self, workspace_id: WorkspaceId) -> Option<OpenStream> {
        let mut open = self.lock();
        if open.all >= self.limits.most {
            return None;
        }
        let of_workspace = open.by_workspace.entry(workspace_id).or_default();
        if *of_workspace >= self.limits.most_per_workspace {
            return None;
        }
        *of_workspace += 1;
        open.all += 1;
        Some(OpenStream { streams: self.clone(), workspace_id })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Both counts change together, and nothing in between can panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        open.all -= 1;
        if let Some(of_workspace) = open.by_workspace.get_mut(&self.workspace_id) {
            *of_workspace -= 1;
            if *of_workspace == 0 {
                open.by_workspace.remove(&self.workspace_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_counted_in_all_and_by_workspace_and_closed() {
        let lifetime = Duration::from_secs(1);
        let streams = Streams::new(StreamLimits { most: 3, most_per_workspace: 2, lifetime });
        let [one, two] = [1, 2].map(WorkspaceId);
        let first = streams.open(one).unwrap();
        let _second = streams.open(one).unwrap();
        assert!(streams.open(one).is_none(), "the workspace has its share");
        let _third = streams.open(two).unwrap();
        assert!(streams.open(two).is_none(), "the node has its share");
        drop(first);
        assert!(streams.open(one).is_some());
        assert_eq!(streams.lock().all, 2);
    }
}
