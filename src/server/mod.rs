//! The composition root: opens the store, builds every room, binds, supervises, drains.
//!
//! Nothing is decided here; it only says who knows whom.

mod accept;
mod connection;
mod handover;
mod isolated;
mod patience;
mod places;
mod refusal;
mod stream;
mod uptake;

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::api::streams::{StreamLimits, Streams};
use crate::api::{self, AdminKey, ApiState};
use crate::app::agents::NewAgent;
use crate::app::config_agents::SyncError;
use crate::app::{App, Links};
use crate::clock::Clock;
use crate::config::{Config, Edge};
use crate::domain::ids::NodeId;
use crate::egress::Gate;
use crate::engine::{Engine, Parts};
use crate::log::Log;
use crate::models::Models;
use crate::shutdown::Tasks;
use crate::store::{self, OpenOptions, SharedStore, StoreError};
use crate::tools::Tools;

pub use isolated::drive_one;

/// How long background tasks have to end once there is no run any more. Tools that were called for
/// runs which others have taken over are not waited for.
const LAST_TASKS: Duration = Duration::from_secs(1);
/// How long what was begun may take to be committed.
const LAST_COMMITS: Duration = Duration::from_secs(2);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken, or not ours.
    #[error("cannot listen on {address}: choose another with --listen")]
    Bind {
        /// Where it was to listen.
        address: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be opened, migrated or written.
    #[error("{doing} failed")]
    Store {
        /// What was tried.
        doing: &'static str,
        /// What the store said.
        #[source]
        source: StoreError,
    },
    /// The models cannot be set up.
    #[error("the models cannot be set up")]
    Models(#[source] crate::models::ModelsError),
    /// The program cannot be found, to be started again for single runs.
    #[error("the system does not say where this program is")]
    Program(#[source] std::io::Error),
    /// A process for a single run was not started by a server.
    #[error("standard input is no pipe: only a server starts this")]
    Parent(#[source] std::io::Error),
    /// The configured agents cannot be stored.
    #[error("the agents of the configuration cannot be stored")]
    Agents(#[source] SyncError),
}

fn doing(doing: &'static str) -> impl Fn(StoreError) -> StartError {
    move |source| StartError::Store { doing, source }
}

/// A server that runs.
pub struct Server {
    listener: TcpListener,
    address: std::net::SocketAddr,
    router: axum::Router,
    limits: Edge,
    engine: Arc<Engine>,
    store: SharedStore,
    /// What stops first: connections and streams.
    edge: Tasks,
    /// Then the engine and its drivers.
    work: Tasks,
    /// Last the journal, which everything else writes to.
    journal: Tasks,
}

async fn open(config: &Config, lent: bool) -> Result<SharedStore, StartError> {
    let options = OpenOptions { unsafe_durability: config.unsafe_durability, lent };
    store::open(config.database_url.expose(), options).await.map_err(doing("opening the database"))
}

/// What tools are called with.
fn tools(config: &Config, work: &Tasks) -> Tools {
    let gate = Gate::new(config.destinations.clone());
    Tools::new(Clock::system(), gate, config.secrets.clone(), work.clone())
}

/// Brings the database's schema up to date.
///
/// # Errors
/// When the database cannot be opened or a migration fails.
pub async fn migrate(config: &Config) -> Result<(), StartError> {
    let store = open(config, false).await?;
    store.close().await;
    Ok(())
}

/// Starts a server and serves until it is told to stop (SIGTERM or SIGINT), then drains. A second
/// signal stops at once.
///
/// # Errors
/// When it cannot start.
pub async fn serve(config: Config) -> Result<(), StartError> {
    let server = Server::start(config).await?;
    let address = server.address();
    tracing::info!("listening on http://{address} (docs: http://{address}/docs)");
    server.run(any_signal()).await;
    Ok(())
}

impl Server {
    /// Opens, migrates, recovers and binds. Nothing is served yet.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let listener = accept::listen(config.listen)
            .map_err(|source| StartError::Bind { address: config.listen, source })?;
        let address = listener.local_addr().unwrap_or(config.listen);
        let store = open(&config, false).await?;

        let (edge, work, journal) = (Tasks::new(), Tasks::new(), Tasks::new());
        let clock = Clock::system();
        let node_id = NodeId::from_uuid(clock.uuid());
        let slots = config.max_concurrent_runs;
        let catalogue = Arc::new(config.catalogue());
        let models =
            Arc::new(Models::new(config.providers().to_vec()).map_err(StartError::Models)?);

        let (log, handovers) = Log::new(store.clone(), clock, node_id, slots);
        log.start(&work, &journal);
        let engine = Engine::new(Parts {
            log: log.clone(),
            models,
            catalogue: catalogue.clone(),
            tools: tools(&config, &work),
            slots,
            child: Some(isolated::command(&config)?),
            retention: config.retention,
        });
        engine.start(handovers, &work).await.map_err(doing("starting the engine"))?;

        let app =
            App::new(log, catalogue, config.outbound(), Links::new(config.public_url.as_deref()));
        let declared = config.agents.iter().cloned();
        let declared = declared.map(|(agent_id, settings)| NewAgent { agent_id, settings });
        app.sync_config(declared.collect()).await.map_err(StartError::Agents)?;
        if config.admin_key.is_none() {
            tracing::warn!(
                "the API is OPEN to everybody on this machine: no key is set (STEPWELL_ADMIN_KEY)"
            );
        }
        let router = api::router(ApiState {
            app: Arc::new(app),
            tasks: work.clone(),
            stop: edge.token(),
            admin_key: config.admin_key.as_ref().map(AdminKey::new),
            streams: Streams::new(StreamLimits {
                most: config.edge.max_streams,
                most_per_workspace: config.edge.max_streams_per_workspace,
                lifetime: config.edge.stream_lifetime,
            }),
            cors_origins: config.cors_allow_origins.iter().filter_map(|o| o.parse().ok()).collect(),
        });
        let limits = config.edge;
        Ok(Self { listener, address, router, limits, engine, store, edge, work, journal })
    }

    /// Where it listens, with the port that the system chose if it was asked to.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, then drains: streams end politely, runs are handed back at the
    /// end of a step, everything that was shown or promised is durable.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, router, limits, engine, store, edge, work, journal, .. } = self;
        let serving = edge.spawn({
            let edge = edge.clone();
            async move { accept::serve(listener, router, limits, &edge).await }
        });
        stop.await;
        tracing::info!(
            runs = engine.driving(),
            "stopping: no new connections, runs are handed back"
        );
        // Before anybody can see that it stops, and says it again.
        let again = any_signal();
        edge.stop();
        tokio::select! {
            () = drain(&engine, &edge, &work, &journal) => {}
            () = again => tracing::warn!("stopping at once; runs go on when a node starts"),
        }
        drop(serving);
        if timeout(LAST_COMMITS, store.close()).await.is_err() {
            tracing::warn!("the database did not let go in time");
        }
        tracing::info!("stopped");
    }
}

/// Each part is bounded, so that a server whose database is away stops too: what it could not hand
/// back is found by others, and nothing that was shown is lost.
async fn drain(engine: &Engine, edge: &Tasks, work: &Tasks, journal: &Tasks) {
    engine.drain().await;
    edge.finish().await;
    work.stop();
    if timeout(LAST_TASKS, work.finish()).await.is_err() {
        tracing::warn!("some tasks were still at work when the server stopped");
    }
    journal.stop();
    if timeout(LAST_COMMITS, journal.finish()).await.is_err() {
        tracing::warn!("the database took no writes when the server stopped");
    }
}

/// Resolves on SIGTERM or SIGINT. They are listened to from the call on, not from the first poll.
fn any_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            tracing::error!("signals cannot be listened to; stop with SIGKILL");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}
