//! The server under test: the release binary on a database of its own.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sqlx::Connection as _;

use crate::Fallible;
use crate::client::{Connection, request};
use crate::machine::{Watched, millis, postmaster};
use crate::postgres::{self, Cluster};

/// How long a server may take to listen, and to be ready.
const START: Duration = Duration::from_secs(30);

/// What to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A cluster that only this bench uses, with its default durability.
    Postgres,
}

impl Kind {
    /// What it is called, on the command line and in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// Where databases come from.
pub struct Databases {
    folder: PathBuf,
    cluster: Option<(Cluster, Option<u32>)>,
    made: u32,
}

/// An empty database.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its address.
    pub url: String,
    postmaster: Option<u32>,
}

impl Databases {
    /// A folder for files, and a Postgres cluster if one is asked for.
    pub async fn new(kinds: &[Kind]) -> Fallible<Self> {
        let folder = std::env::temp_dir().join(format!("stepwell-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let mut databases = Self { folder, cluster: None, made: 0 };
        if kinds.contains(&Kind::Postgres) {
            let cluster = Cluster::start(&[]);
            let mut admin = postgres::connect(&format!("{}/postgres", cluster.url)).await;
            let files: String =
                sqlx::query_scalar("show data_directory").fetch_one(&mut admin).await?;
            admin.close().await?;
            databases.cluster = Some((cluster, postmaster(&files)));
        }
        Ok(databases)
    }

    /// A new one.
    pub async fn fresh(&mut self, kind: Kind) -> Fallible<Database> {
        self.made += 1;
        match (kind, &self.cluster) {
            (Kind::Sqlite, _) => {
                let file = self.folder.join(format!("{}.db", self.made));
                Ok(Database { url: format!("sqlite://{}", file.display()), postmaster: None })
            }
            (Kind::Postgres, Some((cluster, postmaster))) => {
                let url = cluster.empty_database().await;
                Ok(Database { url, postmaster: *postmaster })
            }
            (Kind::Postgres, None) => Err("no Postgres was asked for".into()),
        }
    }

    /// Where files may be written, on the disk of the databases.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A server that is ready.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Milliseconds from its start until it was ready.
    pub ready_after: f64,
    postmaster: Option<u32>,
}

impl Server {
    /// Starts the binary on this database, with an agent `bench` whose model is at `model`.
    pub async fn start(database: &Database, model: SocketAddr) -> Fallible<Self> {
        let config =
            std::env::temp_dir().join(format!("stepwell-bench-{}.yaml", std::process::id()));
        std::fs::write(
            &config,
            format!(
                "providers:\n  bench:\n    kind: openai\n    base_url: http://{model}/v1\n    \
                 prices: {{ \"*\": {{ input_usd_per_million: 1.0, output_usd_per_million: 2.0 }} }}\n\
                 agents:\n  bench:\n    model: bench/bench\n    system_prompt: Answer.\n"
            ),
        )?;
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_stepwell"))
            .args(["serve", "--listen", "127.0.0.1:0", "--database-url", &database.url, "--config"])
            .arg(&config)
            .env("STEPWELL_LOG_FORMAT", "json")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().ok_or("no stderr")?;
        let (says, listens) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(address) = line.split("listening on http://").nth(1) {
                    let end = address.find([' ', '"']).unwrap_or(address.len());
                    let _ = says.send(address.get(..end).unwrap_or_default().to_owned());
                } else if line.contains("\"ERROR\"") || line.contains("panicked") {
                    eprintln!("  the server says: {line}");
                }
            }
        });
        let address = tokio::task::spawn_blocking(move || listens.recv_timeout(START)).await?;
        let mut server = Self {
            child,
            address: address.map_err(|_| "the server does not listen")?.parse()?,
            ready_after: 0.0,
            postmaster: database.postmaster,
        };
        let _ = std::fs::remove_file(&config);
        let readyz = request("GET", "/readyz", "");
        let mut connection = Connection::open(server.address).await?;
        while connection.exchange(&readyz).await?.0 != 200 {
            if began.elapsed() > START {
                return Err("the server is not ready".into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.ready_after = millis(began.elapsed());
        Ok(server)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whose use of the processors to watch.
    pub fn watched(&self) -> Watched {
        Watched { server: Some(self.pid()), postgres: self.postmaster }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}
