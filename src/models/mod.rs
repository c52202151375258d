//! WHO THINKS. The one place that talks to model providers.
//!
//! A [`Model`] gets a [`ModelRequest`] and shows pieces of text while they come; in the end it returns
//! the whole answer or a [`ModelFailure`]. It makes exactly one attempt: the engine decides about
//! others. Dropping the future closes the provider's socket.
//!
//! What this room must never do: take an answer without its end marker for whole, buffer without a
//! bound, put a provider's text or a key into an error, or know what a run is.
//!
//! To add a provider: if it speaks the OpenAI or the Anthropic wire, it is a few lines of
//! `stepwell.yaml`. Another wire is one file here with a [`Model`] and a line in [`Models::new`].

use std::pin::Pin;

use async_trait::async_trait;

use crate::domain::model::{ModelAnswer, ModelRequest};
use crate::domain::retry::ModelFailure;

/// Where pieces of an answer go while they come. The receiver joins and bounds them.
pub trait Show: Send {
    /// A piece of text.
    fn text(&mut self, piece: &str);
    /// A piece of reasoning.
    fn reasoning(&mut self, piece: &str);
    /// Resolves at once unless too much is waiting to be stored; until then the provider's socket
    /// must not be read. Await it once for each chunk read from a socket.
    fn room(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Whether [`Show::room`] would wait; asked first, so that the common case allocates nothing.
    fn is_full(&self) -> bool;
}

/// A model of a provider.
#[async_trait]
pub trait Model: Send + Sync {
    /// Makes one attempt at a call.
    ///
    /// # Errors
    /// Why the attempt failed, and whether another may succeed.
    async fn call(
        &self,
        request: &ModelRequest,
        show: &mut dyn Show,
    ) -> Result<ModelAnswer, ModelFailure>;
}
