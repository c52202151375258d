//! What this machine can do, measured beside everything else: a figure without it says little.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::response::sse::{Event, Sse};
use axum::routing::{get, post};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Fallible;
use crate::client::{Connection, Events, request};
use crate::machine::{median, millis};
use crate::postgres;
use crate::server::{Databases, Kind};

/// Connections of what is measured on sockets.
const CONNECTIONS: usize = 64;
/// Events of one stream of the fan-out, about as many as a run of W3 has.
const STREAM_EVENTS: usize = 206;
/// Rows of a batch on Postgres.
const PG_BATCH: i32 = 500;
/// Rows of a batch on SQLite.
const SQLITE_BATCH: u32 = 500;
/// About what an event of a token weighs.
const DATA: &str = r#"{"type":"message.delta","seq":123,"run_id":"run_01a2013c3de077178fb8dfe05284e9cb","created_at":"2026-11-22T03:10:55.097Z","step":1,"content":"@12345678 "}"#;

/// The same, to be written as JSON for every reader, as a server does that keeps nothing.
#[derive(Serialize)]
struct Delta {
    r#type: &'static str,
    seq: usize,
    run_id: &'static str,
    created_at: &'static str,
    step: i32,
    content: &'static str,
}

const DELTA: Delta = Delta {
    r#type: "message.delta",
    seq: 0,
    run_id: "run_01a2013c3de077178fb8dfe05284e9cb",
    created_at: "2026-11-22T03:10:55.097Z",
    step: 1,
    content: "@12345678 ",
};

/// The limits. All but the first in units a second.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Limits {
    /// Milliseconds of one `fdatasync` behind a write of 4 KiB.
    pub fdatasync_ms: f64,
    /// Small JSON bodies sent back by axum, at 64 connections.
    pub echoes: f64,
    /// Events sent by axum's `Sse`, over 64 streams.
    pub sse_events: f64,
    /// Commits of one row, over one connection of Postgres.
    pub pg_commits_1: f64,
    /// Over eight.
    pub pg_commits_8: f64,
    /// Over 32.
    pub pg_commits_32: f64,
    /// Rows in statements of 500, over one connection.
    pub pg_rows: f64,
    /// Commits of one row on SQLite, WAL, `synchronous=FULL`.
    pub sqlite_commits: f64,
    /// Rows in statements of 500.
    pub sqlite_rows: f64,
}

impl Limits {
    /// Measures them, each for so long.
    pub async fn measure(
        kinds: &[Kind],
        databases: &mut Databases,
        each: Duration,
    ) -> Fallible<Self> {
        let mut limits = Self { fdatasync_ms: fdatasync(databases, each)?, ..Self::default() };
        let raw = raw_server()?;
        limits.echoes = echoes(raw, each).await?;
        limits.sse_events = events(raw, each).await?;
        if kinds.contains(&Kind::Sqlite) {
            let url = databases.fresh(Kind::Sqlite).await?.url;
            limits.sqlite_commits = sqlite(&url, 1, each).await?;
            limits.sqlite_rows = sqlite(&url, SQLITE_BATCH, each).await?;
        }
        if kinds.contains(&Kind::Postgres) {
            let url = databases.fresh(Kind::Postgres).await?.url;
            let mut admin = postgres::connect(&url).await;
            admin.execute("create table limits (run_id uuid, seq int, data text not null, primary key (run_id, seq))").await?;
            admin.close().await?;
            limits.pg_commits_1 = pg(&url, 1, 1, each).await?;
            limits.pg_commits_8 = pg(&url, 8, 1, each).await?;
            limits.pg_commits_32 = pg(&url, 32, 1, each).await?;
            limits.pg_rows = pg(&url, 1, PG_BATCH, each).await?;
        }
        Ok(limits)
    }

    /// Rows of events a second in batches.
    pub fn rows(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Sqlite => self.sqlite_rows,
            Kind::Postgres => self.pg_rows,
        }
    }
}

fn fdatasync(databases: &Databases, each: Duration) -> Fallible<f64> {
    let path = databases.folder().join("fdatasync");
    let mut file = File::create(&path)?;
    let (began, mut took) = (Instant::now(), Vec::new());
    while began.elapsed() < each {
        file.write_all(&[7; 4096])?;
        let sync = Instant::now();
        file.sync_data()?;
        took.push(millis(sync.elapsed()));
    }
    std::fs::remove_file(path)?;
    Ok(median(took))
}

#[derive(Serialize, Deserialize)]
struct Echo {
    input: String,
    agent_id: String,
}

/// An axum server without anything behind it, with a thread for each processor, as ours has.
fn raw_server() -> Fallible<SocketAddr> {
    let router =
        axum::Router::new().route("/echo", post(async |Json(echo): Json<Echo>| Json(echo))).route(
            "/events",
            get(async || {
                let event = |seq: usize| {
                    let event = Event::default().id(seq.to_string()).event("message.delta");
                    event.json_data(Delta { seq, ..DELTA })
                };
                Sse::new(stream::iter((0..STREAM_EVENTS).map(event)))
            }),
        );
    let (listens, address) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let served: std::io::Result<()> = runtime.and_then(|runtime| {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                let _ = listens.send(listener.local_addr()?);
                let listener = axum::serve::ListenerExt::tap_io(listener, |socket| {
                    let _ = socket.set_nodelay(true);
                });
                axum::serve(listener, router).await
            })
        });
        eprintln!("the raw server ended: {served:?}");
    });
    Ok(address.recv()?)
}

async fn echoes(raw: SocketAddr, each: Duration) -> Fallible<f64> {
    let request = request("POST", "/echo", r#"{"input":"tokens=20 delay=0","agent_id":"bench"}"#);
    let (began, mut callers) = (Instant::now(), JoinSet::new());
    for _ in 0..CONNECTIONS {
        let request = request.clone();
        callers.spawn(async move {
            let mut connection = Connection::open(raw).await?;
            let mut count = 0_u32;
            while began.elapsed() < each {
                connection.exchange(&request).await?;
                count += 1;
            }
            Ok::<_, std::io::Error>(count)
        });
    }
    let count: u32 = callers.join_all().await.into_iter().sum::<Result<_, _>>()?;
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

async fn events(raw: SocketAddr, each: Duration) -> Fallible<f64> {
    let (began, mut readers) = (Instant::now(), JoinSet::new());
    for _ in 0..CONNECTIONS {
        readers.spawn(async move {
            let request = request("GET", "/events", "");
            let mut connection = Connection::open(raw).await?;
            let mut count = 0_u32;
            while began.elapsed() < each {
                let head = connection.begin(&request).await?;
                let mut events = Events::default();
                connection.body(&head, |piece| events.take(piece, &mut |_| count += 1)).await?;
            }
            Ok::<_, std::io::Error>(count)
        });
    }
    let count: u32 = readers.join_all().await.into_iter().sum::<Result<_, _>>()?;
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}

async fn sqlite(url: &str, batch: u32, each: Duration) -> Fallible<f64> {
    let mut connection = SqliteConnection::connect(&format!("{url}?mode=rwc")).await?;
    connection.execute("pragma journal_mode = wal; pragma synchronous = full").await?;
    connection
        .execute("create table if not exists limits (run_no int, seq int, data text not null, unique (run_no, seq))")
        .await?;
    let places = vec!["(?, ?, ?)"; batch as usize].join(", ");
    let insert = format!("insert into limits (run_no, seq, data) values {places}");
    let (began, mut rows) = (Instant::now(), 0_u32);
    while began.elapsed() < each {
        let mut query = sqlx::query(AssertSqlSafe(insert.as_str()));
        for n in 0..batch {
            query = query.bind(n % 50 + batch * 50).bind(rows + n).bind(DATA);
        }
        query.execute(&mut connection).await?;
        rows += batch;
    }
    let rate = f64::from(rows) / began.elapsed().as_secs_f64();
    connection.close().await?;
    Ok(rate)
}

async fn pg(url: &str, connections: usize, batch: i32, each: Duration) -> Fallible<f64> {
    let (began, mut writers) = (Instant::now(), JoinSet::new());
    for _ in 0..connections {
        let connection = postgres::connect(url).await;
        writers.spawn(insert(connection, batch, began, each));
    }
    let rows: i32 = writers.join_all().await.into_iter().sum::<Result<_, _>>()?;
    Ok(f64::from(rows) / began.elapsed().as_secs_f64())
}

const INSERT: &str = "\
insert into limits (run_id, seq, data)
select run_id, seq, data from unnest($1::uuid[], $2::int[], $3::text[]) e(run_id, seq, data)";

async fn insert(
    mut connection: PgConnection,
    batch: i32,
    began: Instant,
    each: Duration,
) -> sqlx::Result<i32> {
    let run_id = stepwell::clock::Clock::system().uuid();
    let run_ids: Vec<Uuid> = vec![run_id; usize::try_from(batch).unwrap_or_default()];
    let data = vec![DATA; run_ids.len()];
    let mut rows = 0;
    while began.elapsed() < each {
        let seqs: Vec<i32> = (rows..rows + batch).collect();
        let query = sqlx::query(INSERT).bind(&run_ids).bind(seqs).bind(&data);
        query.execute(&mut connection).await?;
        rows += batch;
    }
    connection.close().await?;
    Ok(rows)
}
