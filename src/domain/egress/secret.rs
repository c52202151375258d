//! The operator's secrets, as far as everybody may know them: names, and whom they are for. No values.

use std::collections::BTreeMap;

use crate::domain::ids::WorkspaceId;

/// Whom a secret is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFacts {
    /// The hosts that it may be sent to, as URLs spell them.
    pub hosts: Vec<String>,
    /// The workspaces whose tools may send it.
    pub workspaces: Vec<WorkspaceId>,
}

/// Whom all secrets are for, by their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretRules(pub BTreeMap<String, SecretFacts>);

/// Why a secret may not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretRefused {
    /// Nothing of this name is there for this workspace. Says nothing about others'.
    #[error(
        "there is no secret {0}: the operator declares secrets, and whose they are, in stepwell.yaml"
    )]
    Unknown(String),
    /// It is for other hosts.
    #[error("the secret {name} is not for the host {host}")]
    Host {
        /// Which secret.
        name: String,
        /// Which host.
        host: String,
    },
}

impl SecretRules {
    /// Whether a tool of this workspace may send a secret to this host.
    ///
    /// # Errors
    /// Why not.
    pub fn check(
        &self,
        name: &str,
        host: &str,
        workspace_id: WorkspaceId,
    ) -> Result<(), SecretRefused> {
        let facts = self.0.get(name).filter(|facts| facts.workspaces.contains(&workspace_id));
        let facts = facts.ok_or_else(|| SecretRefused::Unknown(name.to_owned()))?;
        if facts.hosts.iter().any(|allowed| allowed == host) {
            Ok(())
        } else {
            Err(SecretRefused::Host { name: name.to_owned(), host: host.to_owned() })
        }
    }
}

/// Whether a secret may have this name: `^[A-Za-z0-9_-]{1,64}$`.
pub fn is_secret_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=64).contains(&name.len()) && name.bytes().all(fits)
}
