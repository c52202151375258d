//! The Anthropic wire: messages, streamed.

mod body;
mod decode;

use async_trait::async_trait;

pub use self::body::body;
use self::decode::Answer;
use super::http::{Endpoint, Header, Sockets};
use super::{Model, ModelsError, ProviderSettings, Show, stream};
use crate::domain::model::{ModelAnswer, ModelRequest};
use crate::domain::retry::ModelFailure;

/// The version of the wire that this code was written for.
const VERSION: &str = "2023-06-01";
/// What `provider_state` says that this wire wrote it; another wire's is none of our business.
const WIRE: &str = "anthropic";

/// A provider that speaks this wire.
#[derive(Debug)]
pub struct Anthropic {
    name: String,
    endpoint: Endpoint,
}

impl Anthropic {
    /// The provider of these settings.
    pub(super) fn new(
        sockets: &mut Sockets,
        settings: &ProviderSettings,
    ) -> Result<Self, ModelsError> {
        let mut headers = vec![Header::plain("anthropic-version", VERSION)];
        if let Some(key) = &settings.api_key {
            headers.push(Header::secret("x-api-key", "", key, &settings.name)?);
        }
        // Anthropic's own clients take the address without the version: both are understood.
        let has_version = settings.base_url.trim_end_matches('/').ends_with("/v1");
        let path = if has_version { "/messages" } else { "/v1/messages" };
        let endpoint = Endpoint::new(sockets, settings, path, &headers)?;
        Ok(Self { name: settings.name.clone(), endpoint })
    }
}

#[async_trait]
impl Model for Anthropic {
    async fn call(
        &self,
        request: &ModelRequest,
        show: &mut dyn Show,
    ) -> Result<ModelAnswer, ModelFailure> {
        let mut answer = Answer::default();
        let read = async {
            let mut incoming = self.endpoint.post(body(request)).await?;
            stream::read(&mut incoming, &mut answer, show).await
        };
        read.await.map_err(|fault| fault.at(&self.name))?;
        answer.into_answer(request).map_err(|fault| fault.at(&self.name))
    }
}
