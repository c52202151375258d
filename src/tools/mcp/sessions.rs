//! The sessions of a run: one with each of its servers, from the first call until nobody drives it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::timeout;

use super::Servers;
use super::session::Session;
use super::trouble::Trouble;
use super::usage::InUse;
use crate::domain::ids::WorkspaceId;
use crate::domain::tool::McpTool;

/// How long a server may take for its greetings. Each call waits no longer than it may take itself.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// The sessions of one run with its servers, kept by whoever drives it and by its calls under way: with
/// the last of them, the sessions are closed.
///
/// A server may keep something in a session: a browser, a shell, a notebook. That lives as long as one
/// process drives the run and it does not park; another driver begins with new sessions.
pub struct Sessions {
    servers: Arc<Servers>,
    all: Mutex<HashMap<Whom, Opening>>,
}

/// With whom a session is: an agent may name a server twice, for tools of different effects.
#[derive(PartialEq, Eq, Hash)]
struct Whom {
    url: String,
    headers: BTreeMap<String, String>,
}

impl Whom {
    fn of(server: &McpTool) -> Self {
        Self { url: server.url.clone(), headers: server.headers.clone() }
    }
}

/// A session that is open or being opened. That goes on in a task of its own: whoever waits for it may
/// give up without the others.
type Opening = Shared<BoxFuture<'static, Result<Arc<Session>, Trouble>>>;

impl Sessions {
    /// None opened yet.
    pub(super) fn new(servers: Arc<Servers>) -> Arc<Self> {
        Arc::new(Self { servers, all: Mutex::default() })
    }

    /// The session with this server, for one call: the one that is there, or else a new one.
    ///
    /// # Errors
    /// What stood in the way. The next one who asks tries again.
    pub(super) async fn with(
        &self,
        server: &McpTool,
        workspace_id: WorkspaceId,
    ) -> Result<(Arc<Session>, InUse), Trouble> {
        // The one that is there may be over; a new one is not, unless its server is playing with us.
        for _ in 0..2 {
            let opening = self.opening(server, workspace_id);
            let opened = opening.clone().await;
            if let Some(in_use) = opened.as_ref().ok().and_then(|session| session.begin()) {
                return Ok((opened?, in_use));
            }
            let mut all = self.all();
            let whom = Whom::of(server);
            if all.get(&whom).is_some_and(|is| is.ptr_eq(&opening)) {
                all.remove(&whom);
            }
            drop(all);
            opened?;
        }
        Err(Trouble::passing("ended the session before it was used"))
    }

    fn opening(&self, server: &McpTool, workspace_id: WorkspaceId) -> Opening {
        let mut all = self.all();
        let opening =
            all.entry(Whom::of(server)).or_insert_with(|| self.open(server, workspace_id));
        opening.clone()
    }

    fn open(&self, server: &McpTool, workspace_id: WorkspaceId) -> Opening {
        let (servers, server) = (self.servers.clone(), server.clone());
        let stop = servers.tasks.token();
        let opening = self.servers.tasks.spawn(async move {
            let opened = tokio::select! {
                opened = timeout(OPEN_WITHIN, servers.session(&server, workspace_id)) => opened,
                () = stop.cancelled() => return Err(broken_off()),
            };
            let session = opened.unwrap_or_else(|_| {
                let seconds = OPEN_WITHIN.as_secs();
                Err(Trouble::passing(format!("did not open a session within {seconds} s")))
            })?;
            servers.kept.add(session.usage());
            Ok(Arc::new(session))
        });
        // The panic hook has logged it, if there was one.
        opening.map(|opened| opened.unwrap_or_else(|_| Err(broken_off()))).boxed().shared()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Whom, Opening>> {
        // A panicking holder leaves nothing half done.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken_off() -> Trouble {
    Trouble::passing("was not asked: this server stops")
}
