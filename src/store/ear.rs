//! Words between nodes: *look again*. They carry no data, may come late, twice or never, and nothing
//! depends on them but how soon somebody looks.

use async_trait::async_trait;

use crate::domain::ids::RunId;

use super::Result;

/// What one node tells the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// These logs have grown: for readers.
    Grown(Vec<RunId>),
    /// These runs came to rest, or somebody who does not drive them wrote to them: for drivers, and
    /// for all who wait.
    Changed(Vec<RunId>),
    /// A run waits for an engine.
    Due,
}

/// A connection on which this node hears the others and speaks to them. While it is there, the others
/// know that this node's process is.
#[async_trait]
pub trait Ear: Send {
    /// The next hint of another node. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, and with it whatever was said meanwhile: open another ear, then look at
    /// everything again.
    async fn hear(&mut self) -> Result<Hint>;

    /// Tells the others. Not cancel-safe.
    ///
    /// # Errors
    /// As [`Ear::hear`].
    async fn tell(&mut self, hints: &[Hint]) -> Result<()>;

    /// Asks whether the connection lives: `true` says that when this was asked the others could see
    /// that this process is there. Answers or fails within 1.2 s. Not cancel-safe.
    ///
    /// # Errors
    /// As [`Ear::hear`].
    async fn ask(&mut self) -> Result<bool>;
}
