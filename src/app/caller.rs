//! Who asks.

use crate::domain::ids::WorkspaceId;

/// Whoever sent a request, as far as it was proved. The first argument of every use case: what a
/// caller may not see is not there for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The workspace that all look-ups stay in.
    pub workspace_id: WorkspaceId,
    /// The key that was shown; `None` where the server runs open.
    pub key_id: Option<String>,
    /// The agent that calls, as it named itself; logged, and never trusted.
    pub caller_agent_id: Option<String>,
}

impl Caller {
    /// Anybody, on a server that asks for no key.
    pub const fn open() -> Self {
        Self { workspace_id: WorkspaceId::DEFAULT, key_id: None, caller_agent_id: None }
    }

    /// Whoever holds the operator's own key.
    pub fn admin() -> Self {
        Self { key_id: Some("admin".to_owned()), ..Self::open() }
    }
}
