//! From names to addresses that were checked.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::domain::egress::Destinations;

/// Names that are looked up at the same time. The system's resolver blocks a thread for each, and
/// may take half a minute for a name whose servers are silent.
const MAX_LOOKUPS: usize = 64;
/// Addresses of one name that are looked at. No honest answer has more.
const MAX_ADDRESSES: usize = 64;

/// Who knows the addresses of names.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// All addresses of a host.
    ///
    /// # Errors
    /// The name is not known, or nobody who knows answers.
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
pub struct SystemLookup {
    slots: Arc<Semaphore>,
}

impl Default for SystemLookup {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

#[async_trait]
impl Lookup for SystemLookup {
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        // The semaphore is never closed; whoever waits for it does so within the connect time-out.
        let slot = self.slots.clone().acquire_owned().await.map_err(io::Error::other)?;
        let name = (host.to_owned(), 0);
        let looking = tokio::task::spawn_blocking(move || {
            let found = name.to_socket_addrs();
            // Not before the thread is free, whoever has given up waiting since.
            drop(slot);
            found
        });
        Ok(looking.await.map_err(io::Error::other)??.map(|address| address.ip()).collect())
    }
}

/// Gives the client the addresses of a name only if all of them may be reached.
pub(super) struct Vetted {
    pub destinations: Arc<Destinations>,
    pub lookup: Arc<dyn Lookup>,
    /// Whether connections to them are made without TLS.
    pub is_plain: bool,
}

impl Resolve for Vetted {
    fn resolve(&self, name: Name) -> Resolving {
        let (destinations, lookup) = (self.destinations.clone(), self.lookup.clone());
        let is_plain = self.is_plain;
        Box::pin(async move {
            let host = name.as_str();
            let addresses = lookup.lookup(host).await?;
            if addresses.len() > MAX_ADDRESSES {
                return Err(io::Error::other("a name with too many addresses").into());
            }
            destinations.check_addresses(host, &addresses, is_plain)?;
            // The client fills in the port.
            let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}
