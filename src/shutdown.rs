//! Tracked tasks and the word to stop. Nothing runs in the background that nobody waits for.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The server's background tasks and the token that tells them to stop.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// No task yet, and no word to stop.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task, to be waited for by [`Tasks::finish`].
    #[expect(clippy::disallowed_methods, reason = "this is the one home of tasks")]
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tracker.track_future(future))
    }

    /// The word to stop, for those who need no more of the tasks.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Resolves when it is time to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Whether it is time to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Tells all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all tasks have ended.
    pub async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
