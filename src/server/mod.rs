//! The composition root: opens the store, builds every room, binds, supervises, drains.
//!
//! Nothing is decided here; it only says who knows whom.

mod accept;

use std::sync::Arc;

use tokio::net::TcpListener;

use crate::api::{self, ApiState};
use crate::app::App;
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::ids::{NodeId, WorkspaceId};
use crate::engine::{Engine, Parts};
use crate::log::Log;
use crate::models::Models;
use crate::shutdown::Tasks;
use crate::store::{self, SharedStore, StoreError};

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
    Models(#[source] crate::models::SetupError),
    /// The configured agents cannot be stored.
    #[error("the agents of the configuration cannot be stored")]
    Agents(#[source] crate::app::AppError),
}

fn doing(doing: &'static str) -> impl Fn(StoreError) -> StartError {
    move |source| StartError::Store { doing, source }
}

/// A server that runs.
pub struct Server {
    listener: TcpListener,
    address: std::net::SocketAddr,
    router: axum::Router,
    engine: Arc<Engine>,
    store: SharedStore,
    /// What stops first: connections and streams.
    edge: Tasks,
    /// Then the engine and its drivers.
    work: Tasks,
    /// Last the journal, which everything else writes to.
    journal: Tasks,
}

/// Brings the database's schema up to date.
///
/// # Errors
/// When the database cannot be opened or a migration fails.
pub async fn migrate(config: &Config) -> Result<(), StartError> {
    let options = config.store_options();
    let store =
        store::open(&config.database_url, &options).await.map_err(doing("opening the database"))?;
    store.migrate().await.map_err(doing("migrating the database"))?;
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
        let listener = TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Bind { address: config.listen, source })?;
        let address = listener.local_addr().unwrap_or(config.listen);
        let store = store::open(&config.database_url, &config.store_options())
            .await
            .map_err(doing("opening the database"))?;
        store.migrate().await.map_err(doing("migrating the database"))?;

        let (edge, work, journal) = (Tasks::new(), Tasks::new(), Tasks::new());
        let clock = Clock::system();
        let node_id = NodeId::from_uuid(clock.uuid());
        let slots = config.max_concurrent_runs;
        let catalogue = Arc::new(config.catalogue());
        let models = Arc::new(Models::new(config.providers()).map_err(StartError::Models)?);

        let (log, handovers) = Log::new(store.clone(), clock, node_id, slots);
        log.start(&work, &journal);
        let engine = Engine::new(Parts { log: log.clone(), models, catalogue: catalogue.clone(), slots });
        engine.start(handovers, &work).await.map_err(doing("starting the engine"))?;

        let app = App::new(log, catalogue, config.public_url.clone());
        app.sync_config_agents(WorkspaceId::DEFAULT, &config.agents)
            .await
            .map_err(StartError::Agents)?;

        let alive = engine.clone();
        let router = api::router(ApiState::new(app, &config, edge.clone(), move || alive.is_alive()));
        Ok(Self { listener, address, router, engine, store, edge, work, journal })
    }

    /// Where it listens, with the port that the system chose if it was asked to.
    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, then drains: streams end politely, runs are handed back at the
    /// end of a step, everything that was shown or promised is durable.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, router, engine, store, edge, work, journal, .. } = self;
        let serving = edge.spawn({
            let edge = edge.clone();
            async move { accept::serve(listener, router, &edge).await }
        });
        stop.await;
        tracing::info!(runs = engine.driving(), "stopping: no new connections, runs are handed back");
        edge.stop();
        tokio::select! {
            () = drain(&engine, &edge, &work, &journal) => {}
            () = any_signal() => tracing::warn!("stopping at once; runs go on when a node starts"),
        }
        drop(serving);
        store.close().await;
        tracing::info!("stopped");
    }
}

async fn drain(engine: &Engine, edge: &Tasks, work: &Tasks, journal: &Tasks) {
    engine.drain().await;
    edge.finish().await;
    work.stop();
    work.finish().await;
    journal.stop();
    journal.finish().await;
}

/// Resolves on SIGTERM or SIGINT.
async fn any_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be listened to; stop with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
