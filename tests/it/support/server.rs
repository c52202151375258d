//! A real server: the binary, as a process, on a database and a port of its own.
//!
//! Several setups with the same Postgres URL are nodes of one cluster.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::client::Client;
use super::postgres::port_that_stays;

/// How long a server may take to say that it listens.
const START: Duration = Duration::from_secs(60);
/// How long it may take to stop when it is asked to.
const STOP: Duration = Duration::from_secs(40);
/// How long sockets and log lines may take that are on their way.
const SETTLED: Duration = Duration::from_secs(30);

/// A folder of its own, removed when it goes.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("stepwell-it-{}-{n}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // Of a process with the same number that was killed: a new server must not find its files.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("a folder: {error}"),
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a server is started with; it may be started again with the same.
pub struct Setup {
    pub database_url: String,
    pub yaml: String,
    /// More arguments for `serve`.
    pub args: Vec<String>,
    /// More variables of its environment.
    pub env: Vec<(String, String)>,
    /// 0: another one at every start.
    port: u16,
    folder: Folder,
}

impl Setup {
    pub fn new(database_url: impl Into<String>, yaml: impl Into<String>) -> Self {
        Self {
            database_url: database_url.into(),
            yaml: yaml.into(),
            args: Vec::new(),
            env: Vec::new(),
            port: 0,
            folder: Folder::new(),
        }
    }

    /// The same with a port that stays, so that clients find the server again after a restart.
    #[must_use]
    pub fn on_a_port_that_stays(mut self) -> Self {
        self.port = port_that_stays();
        self
    }

    /// A client of the server that is or will be at this setup's port.
    pub fn client(&self) -> Client {
        assert_ne!(self.port, 0, "the port is another one at every start");
        Client::new(&format!("http://127.0.0.1:{}", self.port))
    }

    pub async fn start(&self) -> Server {
        self.try_start().await.unwrap_or_else(|young| panic!("it did not start:\n{}", young.log))
    }

    /// A server, or how it ended before it listened: what it recovers may take it down at once.
    pub async fn try_start(&self) -> Result<Server, DiedYoung> {
        let config = self.folder.path().join("stepwell.yaml");
        std::fs::write(&config, &self.yaml).expect("the configuration is written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_stepwell"))
            .args(["serve", "--listen", &format!("127.0.0.1:{}", self.port), "--config"])
            .arg(&config)
            .args(["--database-url", &self.database_url])
            .args(&self.args)
            .env("STEPWELL_LOG_FORMAT", "json")
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (said, listens) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().expect("stderr"));
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if let Some(address) = line.split("listening on http://").nth(1) {
                    let end = address.find([' ', '"']).unwrap_or(address.len());
                    let _ = said.send(address[..end].to_owned());
                }
                let mut log = lines.lock().expect("log");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let address = tokio::task::spawn_blocking(move || listens.recv_timeout(START)).await;
        let Ok(Ok(address)) = address else {
            let _ = child.kill();
            let _ = child.wait();
            let log = log.lock().expect("log").clone();
            return Err(DiedYoung { pid: child.id(), log });
        };
        Ok(Server { child, client: Client::new(&format!("http://{address}")), log })
    }
}

/// A server that ended before it listened.
pub struct DiedYoung {
    pub pid: u32,
    pub log: String,
}

/// A server that runs.
pub struct Server {
    child: Child,
    pub client: Client,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("log").clone()
    }

    /// How often it has logged this, once it is at least `count` times, or else after a while: we read what
    /// it writes a moment later.
    pub async fn logged(&self, what: &str, count: usize) -> usize {
        let began = Instant::now();
        loop {
            let found = self.log.lock().expect("log").matches(what).count();
            if found >= count || began.elapsed() > SETTLED {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many files and sockets it has open.
    pub fn open_files(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        fds.expect("its files can be counted: it runs, and is ours").count()
    }

    /// How many of them are sockets: the database's files are not, whose readers are opened when they
    /// are needed first.
    pub fn open_sockets(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        let fds = fds.expect("its files can be listed: it runs, and is ours").flatten();
        // One that was closed meanwhile does not count.
        let what = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        what.filter(|what| what.to_string_lossy().starts_with("socket:")).count()
    }

    /// Its open sockets, once they are no more than `most`, or else after a while: a client hears that its
    /// connection ends a moment before the server has closed it.
    pub async fn open_sockets_fall_to(&self, most: usize) -> usize {
        let began = Instant::now();
        loop {
            let open = self.open_sockets();
            if open <= most || began.elapsed() > SETTLED {
                return open;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The memory that it has, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("it runs, and is ours");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("kB");
        kibibytes * 1024
    }

    /// Sends it a signal, like `TERM`, `STOP` or `CONT`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill");
        assert!(sent.success(), "SIG{name} was sent");
    }

    /// Resolves when it says that it can take work.
    pub async fn ready(&self) {
        let until = std::time::Instant::now() + START;
        while self.client.get("/readyz").await.status != 200 {
            assert!(std::time::Instant::now() < until, "it is not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether its process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("waited").is_none()
    }

    /// SIGKILL: no good-byes.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    /// SIGTERM, and waits until it is gone.
    pub async fn terminate(self) -> ExitStatus {
        self.signal("TERM");
        self.gone().await
    }

    /// Waits until it is gone.
    pub async fn gone(mut self) -> ExitStatus {
        let until = std::time::Instant::now() + STOP;
        loop {
            if let Some(status) = self.child.try_wait().expect("waited") {
                return status;
            }
            assert!(std::time::Instant::now() < until, "it did not stop:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        // A panic of the server is never fine, whatever a test looked at.
        if log.contains("panicked at") && !std::thread::panicking() {
            panic!("the server panicked:\n{log}");
        }
    }
}
