//! `on_disconnect: "cancel"`: the run stops when the client that started it goes away.

use crate::app::Caller;
use crate::domain::ids::RunId;

use super::ApiState;

/// Cancels the run when dropped before [`OnDisconnect::done`]. Held by whatever answers, which is
/// dropped when the connection is gone.
pub struct OnDisconnect {
    state: ApiState,
    caller: Caller,
    run_id: RunId,
    armed: bool,
}

impl OnDisconnect {
    /// Watches over a run.
    pub const fn cancel(state: ApiState, caller: Caller, run_id: RunId) -> Self {
        Self { state, caller, run_id, armed: true }
    }

    /// The answer was given, or the server itself ends it: no disconnect.
    pub const fn done(&mut self) {
        self.armed = false;
    }
}

impl Drop for OnDisconnect {
    fn drop(&mut self) {
        if !self.armed || self.state.stop.is_cancelled() {
            return;
        }
        let (app, caller, run_id) = (self.state.app.clone(), self.caller.clone(), self.run_id);
        self.state.tasks.spawn(async move {
            if let Err(error) = app.cancel_run(&caller, run_id, None).await {
                tracing::warn!(
                    %run_id,
                    error = &error as &dyn std::error::Error,
                    "the run of a client that went away could not be cancelled"
                );
            }
        });
    }
}
