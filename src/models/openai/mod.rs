//! The OpenAI wire: chat completions, streamed. OpenAI itself, Ollama, vLLM, llama.cpp, LM Studio and
//! most gateways speak it, each a little differently: `decode` takes what they all write.

mod body;
mod calls;
mod decode;

use async_trait::async_trait;

pub use self::body::{TokenLimit, body};
use self::decode::Answer;
use super::http::{Endpoint, Header, Sockets};
use super::{Model, ModelsError, ProviderSettings, Show, stream};
use crate::domain::model::{ModelAnswer, ModelRequest};
use crate::domain::retry::ModelFailure;

/// OpenAI's own host, the only one known to refuse `max_tokens` for its newer models.
const OPENAI_HOST: &str = "api.openai.com";

/// A provider that speaks this wire.
#[derive(Debug)]
pub struct OpenAi {
    name: String,
    endpoint: Endpoint,
    token_limit: TokenLimit,
}

impl OpenAi {
    /// The provider of these settings.
    pub(super) fn new(
        sockets: &mut Sockets,
        settings: &ProviderSettings,
    ) -> Result<Self, ModelsError> {
        let mut headers = Vec::new();
        if let Some(key) = &settings.api_key {
            headers.push(Header::secret("authorization", "Bearer ", key, &settings.name)?);
        }
        let endpoint = Endpoint::new(sockets, settings, "/chat/completions", &headers)?;
        let token_limit = if endpoint.host() == OPENAI_HOST {
            TokenLimit::MaxCompletionTokens
        } else {
            TokenLimit::MaxTokens
        };
        Ok(Self { name: settings.name.clone(), endpoint, token_limit })
    }
}

#[async_trait]
impl Model for OpenAi {
    async fn call(
        &self,
        request: &ModelRequest,
        show: &mut dyn Show,
    ) -> Result<ModelAnswer, ModelFailure> {
        let mut answer = Answer::default();
        let read = async {
            let mut incoming = self.endpoint.post(body(request, self.token_limit)).await?;
            stream::read(&mut incoming, &mut answer, show).await
        };
        read.await.map_err(|fault| fault.at(&self.name))?;
        answer.into_answer(request).map_err(|fault| fault.at(&self.name))
    }
}
