//! WHO THINKS. The one place that talks to model providers.
//!
//! A [`Model`] gets a [`ModelRequest`] and shows pieces of text while they come; in the end it returns
//! the whole answer or a [`ModelFailure`]. It makes exactly one attempt: the engine decides about
//! others, and asks [`Models::retry_allowed`] first. Dropping the future closes the provider's socket.
//!
//! Reading order: [`openai`] and [`anthropic`] are the wires, each with a `body` (what is asked) and
//! a `decode` (what is answered); `stream` reads an answer to its end, `sse` cuts it into events,
//! `json` reads what is in them, `http` has the sockets and the time-outs, `fault` the words for what
//! goes wrong, `wire` what both wires ask alike. [`echo`] and [`script`] need no provider.
//!
//! What this room must never do: take an answer without its end marker for whole, buffer without a
//! bound, put a provider's text or a key into an error, or know what a run is.
//!
//! To add a provider: if it speaks the OpenAI or the Anthropic wire, it is a few lines of
//! `stepwell.yaml`. Another wire is one file here with a [`Model`] and a line in [`Models::new`].

pub mod anthropic;
pub mod budget;
pub mod echo;
mod fault;
mod http;
mod json;
pub mod openai;
pub mod script;
pub mod sse;
mod stream;
mod tokens;
#[cfg(test)]
mod transcripts;
mod wire;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::Deserialize;

use self::budget::RetryBudget;
use crate::domain::model::{BUILTIN, ECHO, ModelAnswer, ModelName, ModelRequest, SCRIPT};
use crate::domain::retry::ModelFailure;
use crate::domain::time::Timestamp;

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

/// The language that a provider speaks: `kind` in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// OpenAI's chat completions, which most servers speak.
    OpenAi,
    /// Anthropic's messages.
    Anthropic,
}

/// How long a provider may take. None of it limits how long a whole answer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To take a connection.
    pub connect: Duration,
    /// From the request to the first token, connecting included.
    pub first_token: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_token: Duration::from_secs(60),
            idle: Duration::from_secs(45),
        }
    }
}

/// What the operator says of one provider.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// Its name in `provider/model`.
    pub name: String,
    /// What it speaks.
    pub wire: Wire,
    /// Where it is, usually ending in `/v1`. A query stays on every request.
    pub base_url: String,
    /// The key to show, if it wants one.
    pub api_key: Option<SecretString>,
    /// How long it may take.
    pub timeouts: Timeouts,
}

/// A provider cannot be used as it is configured. Holds no key.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    /// Two providers have one name, or one is called like the built-in one.
    #[error("provider {0:?} is configured twice, or is built in")]
    NameTaken(String),
    /// Its address is none.
    #[error("the base_url of provider {provider:?} {why}")]
    BaseUrl {
        /// Which provider.
        provider: String,
        /// What is wrong with it.
        why: String,
    },
    /// Its key cannot stand in a header.
    #[error("the API key of provider {provider:?} holds characters that no header can carry")]
    ApiKey {
        /// Which provider.
        provider: String,
    },
    /// TLS cannot be spoken with it.
    #[error("TLS cannot be spoken with provider {provider:?}")]
    Tls {
        /// Which provider.
        provider: String,
        /// Usually that this machine has no root certificates.
        #[source]
        source: rustls::Error,
    },
}

/// All models that can be called.
#[derive(Default)]
pub struct Models {
    providers: BTreeMap<String, Provider>,
    sockets: http::Sockets,
}

struct Provider {
    model: Arc<dyn Model>,
    /// Held for a few instructions, never across an await.
    budget: Mutex<RetryBudget>,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.providers.keys()).finish()
    }
}

impl Models {
    /// The models of these providers, and the built-in ones. Opens no connection.
    ///
    /// # Errors
    /// A provider cannot be used as it is configured.
    pub fn new(settings: Vec<ProviderSettings>) -> Result<Self, ModelsError> {
        let mut sockets = http::Sockets::default();
        let mut providers = BTreeMap::new();
        for settings in settings {
            if settings.name == BUILTIN || providers.contains_key(&settings.name) {
                return Err(ModelsError::NameTaken(settings.name));
            }
            let model: Arc<dyn Model> = match settings.wire {
                Wire::OpenAi => Arc::new(openai::OpenAi::new(&mut sockets, &settings)?),
                Wire::Anthropic => Arc::new(anthropic::Anthropic::new(&mut sockets, &settings)?),
            };
            providers.insert(settings.name, Provider { model, budget: Mutex::default() });
        }
        Ok(Self { providers, sockets })
    }

    /// One provider with this model, whatever is asked of it.
    #[cfg(test)]
    pub fn only(provider: &str, model: Arc<dyn Model>) -> Self {
        let provider_with_model = Provider { model, budget: Mutex::default() };
        let providers = BTreeMap::from([(provider.to_owned(), provider_with_model)]);
        Self { providers, sockets: http::Sockets::default() }
    }

    /// The model of this name; `None` if its provider is not configured (any more).
    pub fn find(&self, name: &ModelName) -> Option<Arc<dyn Model>> {
        if name.provider == BUILTIN {
            return match name.model.as_str() {
                ECHO => Some(Arc::new(echo::Echo)),
                SCRIPT => Some(Arc::new(script::Script::default())),
                _ => None,
            };
        }
        self.providers.get(&name.provider).map(|provider| Arc::clone(&provider.model))
    }

    /// Closes sockets that no call has used for a while; to be asked every few seconds.
    pub fn close_idle_sockets(&self) {
        self.sockets.close_idle();
    }

    /// Counts a call to a provider, first attempts and retries alike; to be told of each one.
    pub fn called(&self, provider: &str, now: Timestamp) {
        if let Some(provider) = self.providers.get(provider) {
            provider.budget.lock().unwrap_or_else(PoisonError::into_inner).called(now);
        }
    }

    /// Whether a failed call to a provider may be tried again; if so, the retry is counted. Beyond 10
    /// in a minute, retries are at most a tenth of the provider's calls: a provider that is down is
    /// not kept down by us. The built-in provider may always be retried.
    pub fn retry_allowed(&self, provider: &str, now: Timestamp) -> bool {
        self.providers.get(provider).is_none_or(|provider| {
            provider.budget.lock().unwrap_or_else(PoisonError::into_inner).take_retry(now)
        })
    }
}
