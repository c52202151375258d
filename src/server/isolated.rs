//! A process for a single run: how a server starts it, and what it is. `engine::isolate` says why.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::engine::{ChildCommand, Engine, Order, Parts};
use crate::log::Log;
use crate::models::Models;
use crate::shutdown::Tasks;

use super::{StartError, any_signal, doing, drain, open, tools};

/// Memory that a child may have for data, in bytes. A run needs a few megabytes; a run that needs more
/// than this took its servers down by it, and must not take its neighbours' machine down.
const MEMORY: u64 = 1024 * 1024 * 1024;
/// After the parent's end was seen, nobody waits for us: how long the run has to be given back before
/// the process goes as it is, and the run is found by whoever finds its node dead.
const LAST: Duration = Duration::from_secs(30);

/// How children of a server with this configuration are started: the same program with the same
/// settings. What was said in flags goes into the environment, which only its owner can read.
///
/// # Errors
/// When the program cannot be found.
pub(super) fn command(config: &Config) -> Result<ChildCommand, StartError> {
    let program = config::program().map_err(StartError::Program)?;
    let inherited = config.inherited.clone();
    Ok(Arc::new(move |order: &Order| {
        let mut command = Command::new(&program);
        command
            .arg0("stepwell")
            .arg("drive-one")
            .args(["--run", &order.run_id.to_string()])
            .args(["--from", &order.from.to_string()])
            .args(["--as", &order.node_id.to_string()])
            // The allocator begins with a gigabyte of addresses. Unless it leaves them unusable until they
            // are needed, they count against the limit.
            .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
            .envs(inherited.variables());
        command
    }))
}

/// Drives one run in this process, until it rests, the parent is gone, or a signal comes.
///
/// # Errors
/// When it cannot begin. The run is the parent's as before then, and nothing is held against it.
pub async fn drive_one(config: Config, order: Order) -> Result<(), StartError> {
    // Before anything else: a signal that kills us is taken for the run's deed.
    let signal = any_signal();
    let parent = parent().map_err(StartError::Parent)?;
    limit_memory();
    let store = open(&config, true).await?;
    let models = Models::new(config.providers().to_vec()).map_err(StartError::Models)?;
    let (edge, work, journal) = (Tasks::new(), Tasks::new(), Tasks::new());
    let (log, _nothing_is_created_here) =
        Log::new(store.clone(), Clock::system(), order.node_id, 1);
    log.start(&work, &journal);
    let engine = Engine::new(Parts {
        log,
        models: Arc::new(models),
        catalogue: Arc::new(config.catalogue()),
        tools: tools(&config, &work),
        slots: 1,
        child: None,
        retention: config.retention,
    });
    tokio::select! {
        done = engine.drive_alone(order, &work) => done.map_err(doing("taking the run over"))?,
        () = gone(parent) => tracing::info!("the server stops or is gone; the run is given back"),
        () = signal => tracing::info!("stopping; the run is given back"),
    }
    if tokio::time::timeout(LAST, drain(&engine, &edge, &work, &journal)).await.is_err() {
        tracing::warn!("the database is away; the run goes on when this node is found dead");
    } else {
        store.close().await;
    }
    Ok(())
}

/// The pipe whose other end the parent holds, and nobody else.
fn parent() -> std::io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)
}

/// Resolves when the parent closes the pipe, or is gone.
async fn gone(mut parent: pipe::Receiver) {
    // Nothing is ever written to it: whatever a read says, there is nobody to talk to.
    let _ = parent.read_u8().await;
}

fn limit_memory() {
    let most = getrlimit(Resource::Data).maximum.map_or(MEMORY, |most| most.min(MEMORY));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    if let Err(error) = setrlimit(Resource::Data, limit) {
        tracing::warn!(%error, "the memory of this process cannot be limited");
    }
}
