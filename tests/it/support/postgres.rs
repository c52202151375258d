//! Throw-away Postgres databases.
//!
//! [`database`] gives a fresh, migrated database. They live in the server that
//! `STEPWELL_TEST_POSTGRES_URL` names (a superuser's URL; `tests/run.sh` starts one for all test
//! processes), or else in a cluster of this process: `initdb` with its default durability on a free
//! port, gone when the process is, however it ended.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};
use stepwell::store::postgres::{Options, PostgresStore};
use tokio::sync::OnceCell;

/// The superuser's URL of the server that tests use, without the name of a database.
fn server() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(|| match std::env::var_os("STEPWELL_TEST_POSTGRES_URL") {
        Some(url) => {
            let url = url.into_string().expect("STEPWELL_TEST_POSTGRES_URL is not UTF-8");
            let end = url.rfind('/').filter(|at| *at > "postgresql://".len());
            url[..end.unwrap_or(url.len())].to_owned()
        }
        None => {
            static CLUSTER: OnceLock<Cluster> = OnceLock::new();
            CLUSTER.get_or_init(|| Cluster::start(&[])).url.clone()
        }
    })
}

/// The URL of a fresh database with the current schema.
pub async fn database() -> String {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE.get_or_init(|| template(server())).await;
    fresh(server(), Some(template)).await
}

/// The URL of a fresh database without any table.
pub async fn empty_database() -> String {
    fresh(server(), None).await
}

/// A store on a fresh database with the current schema.
pub async fn store() -> PostgresStore {
    open(&database().await).await
}

/// A store on this database.
pub async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(url, Options::default()).await.expect("the database can be opened")
}

/// A connection beside the store's, to look behind it and to be in its way.
pub async fn connect(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().expect("a URL");
    options.connect().await.expect("a connection")
}

/// Waits until a connection to this database waits for a lock.
pub async fn until_somebody_waits(url: &str) {
    let waiting = "select count(*) from pg_locks l join pg_stat_activity a using (pid) \
                   where not l.granted and a.datname = current_database()";
    until(url, waiting).await;
}

/// Waits until the statement counts something. It runs outside of any transaction, in which what it
/// looks at would stand still.
pub async fn until(url: &str, count: &'static str) {
    let mut admin = connect(url).await;
    let look = async {
        while sqlx::query_scalar::<_, i64>(count).fetch_one(&mut admin).await.expect("a count") == 0
        {
        }
    };
    let patience = std::time::Duration::from_secs(60);
    tokio::time::timeout(patience, look).await.expect("what the test waits for happens");
}

async fn fresh(server: &str, template: Option<&str>) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("stepwell_{}_{count}", std::process::id());
    let mut admin = connect(&format!("{server}/postgres")).await;
    let drop = format!("drop database if exists {name} with (force)");
    admin.execute(AssertSqlSafe(drop)).await.expect("an old database goes");
    let template = template.unwrap_or("template1");
    let create = format!("create database {name} template {template}");
    admin.execute(AssertSqlSafe(create)).await.expect("a database");
    admin.close().await.expect("a clean end");
    format!("{server}/{name}")
}

/// The name of a migrated database, made once a server for each content of the migrations.
async fn template(server: &str) -> String {
    let mut admin = connect(&format!("{server}/postgres")).await;
    // Test processes take turns; whoever comes later finds it made.
    admin.execute("select pg_advisory_lock(7230412)").await.expect("a turn");
    let name = format!("stepwell_template_{}", fingerprint());
    let found = sqlx::query("select 1 from pg_database where datname = $1")
        .bind(&name)
        .fetch_optional(&mut admin)
        .await
        .expect("an answer");
    if found.is_none() {
        // Under another name until it is whole.
        let raw = "stepwell_template_raw";
        let drop = format!("drop database if exists {raw} with (force)");
        admin.execute(AssertSqlSafe(drop)).await.expect("an old database goes");
        admin.execute(AssertSqlSafe(format!("create database {raw}"))).await.expect("a database");
        let store = open(&format!("{server}/{raw}")).await;
        store.migrate().await.expect("the migrations");
        stepwell::store::Store::close(&store).await;
        let rename = format!("alter database {raw} rename to {name}");
        // The last backend may still be on its way out.
        while admin.execute(AssertSqlSafe(rename.as_str())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
    admin.close().await.expect("a clean end");
    name
}

/// Changes when a migration does.
fn fingerprint() -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hash = DefaultHasher::new();
    for migration in sqlx::migrate!("migrations/postgres").iter() {
        migration.checksum.hash(&mut hash);
    }
    format!("{:016x}", hash.finish())
}

/// A Postgres cluster of our own.
pub struct Cluster {
    /// The superuser's URL, without the name of a database.
    pub url: String,
    home: PathBuf,
    /// What the server is started with.
    options: String,
    /// Stops the server and removes its files when its standard input ends: when this is dropped, or
    /// the process that holds the other end dies, even by `kill -9`.
    undertaker: Child,
}

impl Cluster {
    /// Makes and starts a cluster with these settings (`name=value`) over its defaults.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(&std::env::temp_dir(), settings)
    }

    /// Makes and starts a cluster in this folder, for example on a disk of its own.
    pub fn start_in(folder: &Path, settings: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let home = folder.join(format!("stepwell-pg-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir_all(&home).expect("a directory");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(&home));
        }
        let bin = bin();
        let data = home.join("data");
        run(as_postgres(&bin.join("initdb"))
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(&data));
        let undertaker = as_postgres(Path::new("/bin/sh"))
            .args(["-c", UNDERTAKER, "undertaker"])
            .arg(&bin)
            .arg(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("an undertaker");
        // Nor does the kernel give it away while the server is down. Somebody else may have it: then
        // another one.
        let (port, options) = (0..10)
            .find_map(|_| {
                let port = port_that_stays();
                let mut options = format!(
                    "-c port={port} -c listen_addresses=127.0.0.1 -c max_connections=300 \
                     -c unix_socket_directories=",
                );
                for setting in settings {
                    options.push_str(" -c ");
                    options.push_str(setting);
                }
                pg_ctl_start(&home, &options).then_some((port, options))
            })
            .unwrap_or_else(|| {
                let log = std::fs::read_to_string(home.join("log"));
                panic!("the cluster does not start: {}", log.unwrap_or_default())
            });
        let url = format!("postgres://postgres@127.0.0.1:{port}");
        Self { url, home, options, undertaker }
    }

    /// The URL of a fresh database without any table.
    pub async fn empty_database(&self) -> String {
        fresh(&self.url, None).await
    }

    /// `kill -9` of the server and all of its processes, as if the machine had lost its power (but
    /// for what the kernel has in memory).
    pub fn kill(&self) {
        let pid_file = self.home.join("data/postmaster.pid");
        let pid = std::fs::read_to_string(&pid_file).expect("a pid");
        let pid = pid.lines().next().expect("a pid").to_owned();
        // Frozen first, so that it starts no process that nobody kills, and buries none that we list.
        run(Command::new("kill").args(["-STOP", &pid]));
        while state(&pid).is_some_and(|state| state != 'T') {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let family: Vec<String> = children(&pid).into_iter().chain([pid]).collect();
        run(Command::new("kill").arg("-KILL").args(&family));
        // The next server refuses to start while an old process holds the shared memory.
        while family.iter().any(|pid| is_alive(pid)) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // A zombie that nobody has reaped yet would be taken for a server that runs.
        std::fs::remove_file(pid_file).expect("the file of a dead server");
    }

    /// Stops the server at once; it closes all connections.
    pub fn stop(&self) {
        run(as_postgres(&bin().join("pg_ctl"))
            .args(["stop", "--mode=fast", "--silent", "-D"])
            .arg(self.home.join("data")));
    }

    /// Starts the server again if it gave up by itself.
    pub fn start_if_it_is_down(&self) {
        let asked = as_postgres(&bin().join("pg_ctl"))
            .args(["status", "--silent", "-D"])
            .arg(self.home.join("data"))
            .stdout(Stdio::null())
            .status();
        if !asked.expect("pg_ctl").success() {
            self.start_again();
        }
    }

    /// Starts the server again, on the same data and port.
    pub fn start_again(&self) {
        if !pg_ctl_start(&self.home, &self.options) {
            let log = std::fs::read_to_string(self.home.join("log"));
            panic!("the cluster does not start again: {}", log.unwrap_or_default());
        }
    }
}

fn pg_ctl_start(home: &Path, options: &str) -> bool {
    let started = as_postgres(&bin().join("pg_ctl"))
        .args(["start", "--wait", "--silent", "-D"])
        .arg(home.join("data"))
        .arg("--log")
        .arg(home.join("log"))
        .args(["-o", options])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    started.is_ok_and(|status| status.success())
}

/// The processes that this one started.
fn children(parent: &str) -> Vec<String> {
    let listed = Command::new("ps").args(["-o", "pid=", "--ppid", parent]).output().expect("ps");
    let listed = String::from_utf8(listed.stdout).expect("numbers");
    listed.split_whitespace().map(str::to_owned).collect()
}

/// Whether the process is there and no zombie.
fn is_alive(pid: &str) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// What the process does: `T` when it is stopped.
fn state(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // It follows the name, which is in parentheses.
    stat.rsplit_once(") ")?.1.chars().next()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.undertaker.stdin.take() {
            let _ = stdin.write_all(b"\n");
        }
        let _ = self.undertaker.wait();
    }
}

/// Ctrl-C at a terminal must not end it before its work.
const UNDERTAKER: &str = "\
trap '' INT TERM HUP
read -r _
\"$1/pg_ctl\" stop --mode=immediate --silent -D \"$2/data\"
rm -rf \"$2\"";

fn bin() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|found| found.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect())
        .unwrap_or_default();
    versions.sort();
    // Elsewhere the programs are on the path.
    versions.pop().unwrap_or_default()
}

/// Postgres refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

/// A port that the kernel gives to nobody by itself, not even while the server is down.
pub fn port_that_stays() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = COUNT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(37);
        let port = 10_000 + u16::try_from(n % 10_000).expect("a port");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n")
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("a program that can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
