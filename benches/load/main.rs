//! The load bench: starts the release server on each database, with a fast model server over real HTTP,
//! and measures what `README.md` ("Benchmarks") lists, beside what this machine can do at all.
//!
//! ```sh
//! cargo bench --bench load [-- --quick --only w1,w3 --db sqlite --json FILE]
//! ```
//!
//! The clients, the model server and the server under test share one machine, so the first two are
//! made as cheap as they can be (`client.rs`, `model.rs`). Figures drift by half from hour to hour:
//! compare in one sitting, and look at "other cores", which is what others used meanwhile.
//!
//! To add a workload: a function in `workloads.rs` that returns what it saw, its name in [`WORKLOADS`],
//! and its rows with their goals below.

// Clippy takes what may panic for a test's only under this mark.
#[cfg(test)]
#[expect(dead_code, reason = "tests use more of it")]
#[path = "../../tests/it/support/postgres.rs"]
mod postgres;

mod client;
mod crash;
mod limits;
mod machine;
mod model;
mod server;
mod table;
mod turns;
mod workloads;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use limits::Limits;
use machine::{Used, median, percentile};
use model::Answer;
use server::{Database, Databases, Kind, Server};
use table::{Goal, Row};

/// What may go wrong here ends the bench, with a word on standard error.
type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The names that `--only` knows.
const WORKLOADS: &[&str] =
    &["start", "w1", "w2", "w3", "w3plus", "w4", "w5", "replay", "get", "turns"];

const W2: Answer = Answer { tokens: 500, delay: 0 };
const W3: Answer = Answer { tokens: 200, delay: 20 };
/// What W3 takes if nobody ever waits, in seconds.
const W3_IDEAL: f64 = 4.0;

/// What is measured, and how thoroughly.
struct Plan {
    kinds: Vec<Kind>,
    only: Option<Vec<String>>,
    json: Option<String>,
    /// Repetitions of what is short.
    times: usize,
    /// What is repeated as often as possible takes so long.
    each: Duration,
    /// The same for a limit of the machine.
    limit: Duration,
    /// How long W4 holds its streams.
    hold: Duration,
}

impl Plan {
    fn wants(&self, workload: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == workload))
    }
}

const USAGE: &str = "usage: cargo bench --bench load -- \
[--quick] [--only w1,w3,…] [--db sqlite|postgres] [--json FILE]";

fn plan(mut arguments: impl Iterator<Item = String>) -> Fallible<Plan> {
    let mut plan = Plan {
        kinds: vec![Kind::Sqlite, Kind::Postgres],
        only: None,
        json: None,
        times: 3,
        each: Duration::from_secs(2),
        limit: Duration::from_millis(1_000),
        hold: Duration::from_secs(5),
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(USAGE);
        match argument.as_str() {
            // What cargo adds by itself.
            "--bench" => {}
            "--quick" => {
                plan.times = 1;
                plan.each = Duration::from_secs(1);
                plan.limit = Duration::from_millis(400);
                plan.hold = Duration::from_secs(2);
            }
            "--only" => {
                let names: Vec<String> = value()?.split(',').map(str::to_owned).collect();
                if let Some(unknown) = names.iter().find(|name| !WORKLOADS.contains(&name.as_str()))
                {
                    return Err(format!("no workload {unknown:?}: there are {WORKLOADS:?}").into());
                }
                plan.only = Some(names);
            }
            "--db" => {
                plan.kinds = match value()?.as_str() {
                    "sqlite" => vec![Kind::Sqlite],
                    "postgres" => vec![Kind::Postgres],
                    _ => return Err(USAGE.into()),
                }
            }
            "--json" => plan.json = Some(value()?),
            _ => return Err(USAGE.into()),
        }
    }
    Ok(plan)
}

/// The clients' thread is one of the two that this process keeps busy; the model server's is the other.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let (plan, began) = (plan(std::env::args().skip(1))?, Instant::now());
    machine::raise_open_files()?;
    let model = model::start()?;
    let mut databases = Databases::new(&plan.kinds).await?;
    eprintln!("the machine's limits …");
    let limits = Limits::measure(&plan.kinds, &mut databases, plan.limit).await?;
    let mut rows = limit_rows(&limits, &plan.kinds);
    for kind in &plan.kinds {
        let mut bench = Bench { plan: &plan, kind: *kind, limits, model, rows: Vec::new() };
        bench.run(&mut databases).await?;
        rows.extend(bench.rows.into_iter().map(|row| Row { database: kind.name(), ..row }));
    }
    table::print(&rows)?;
    if let Some(file) = &plan.json {
        std::fs::write(file, serde_json::to_vec_pretty(&rows)?)?;
    }
    eprintln!("in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn limit_rows(limits: &Limits, kinds: &[Kind]) -> Vec<Row> {
    let mut rows = vec![
        Row::new("fdatasync", limits.fdatasync_ms, "ms"),
        Row::new("axum JSON echo, 64 connections", limits.echoes, "a second"),
        Row::new("axum SSE, 64 streams", limits.sse_events, "events/s"),
    ];
    if kinds.contains(&Kind::Sqlite) {
        rows.push(Row::new("SQLite WAL FULL, commits of a row", limits.sqlite_commits, "a second"));
        rows.push(Row::new("SQLite WAL FULL, rows in 500s", limits.sqlite_rows, "rows/s"));
    }
    if kinds.contains(&Kind::Postgres) {
        for (connections, value) in
            [(1, limits.pg_commits_1), (8, limits.pg_commits_8), (32, limits.pg_commits_32)]
        {
            let name = format!("Postgres, commits of a row, c={connections}");
            rows.push(Row::new(name, value, "a second"));
        }
        rows.push(Row::new("Postgres, rows in 500s by unnest, c=1", limits.pg_rows, "rows/s"));
    }
    rows
}

/// The workloads on one database.
struct Bench<'a> {
    plan: &'a Plan,
    kind: Kind,
    limits: Limits,
    model: SocketAddr,
    rows: Vec<Row>,
}

impl Bench<'_> {
    async fn run(&mut self, databases: &mut Databases) -> Fallible<()> {
        let plan = self.plan;
        if plan.wants("start") {
            self.start(&databases.fresh(self.kind).await?).await?;
        }
        if ["w1", "w2", "w3", "w3plus", "replay", "get"].iter().any(|name| plan.wants(name)) {
            let server = Server::start(&databases.fresh(self.kind).await?, self.model).await?;
            self.say("warming up");
            workloads::wait_for_runs(&server, 16, Duration::from_millis(500)).await?;
            self.on(&server).await?;
        }
        if plan.wants("turns") {
            let server = Server::start(&databases.fresh(self.kind).await?, self.model).await?;
            self.turns(&server).await?;
        }
        if plan.wants("w5") {
            self.w5(&databases.fresh(self.kind).await?).await?;
        }
        // Last: it leaves a thousand runs behind that have not ended.
        if plan.wants("w4") {
            self.w4(&databases.fresh(self.kind).await?).await?;
        }
        Ok(())
    }

    async fn on(&mut self, server: &Server) -> Fallible<()> {
        let plan = self.plan;
        if plan.wants("w1") {
            self.w1_alone(server).await?;
            self.w1(server, 16).await?;
            self.w1(server, 64).await?;
        }
        if plan.wants("w2") {
            self.w2(server).await?;
        }
        let mut run_ids = Vec::new();
        if plan.wants("w3") {
            run_ids = self.w3(server).await?;
        }
        if plan.wants("w3plus") {
            self.w3plus(server).await?;
        }
        if run_ids.is_empty() && (plan.wants("replay") || plan.wants("get")) {
            self.say("runs to read");
            run_ids = workloads::stream_runs(server, 200, W3).await?.run_ids;
        }
        if plan.wants("replay") {
            self.replay(server, &run_ids).await?;
        }
        if plan.wants("get") {
            self.get(server, &run_ids).await?;
        }
        Ok(())
    }

    fn say(&self, what: &str) {
        eprintln!("{}: {what} …", self.kind.name());
    }

    async fn start(&mut self, database: &Database) -> Fallible<()> {
        self.say("start");
        // The first start makes the schema.
        let ready_after = Server::start(database, self.model).await?.ready_after;
        let server = Server::start(database, self.model).await?;
        let memory = machine::resident_kib(server.pid()) / 1024.0;
        self.rows.extend([
            Row::new("first start to ready", ready_after, "ms").goal(Goal::AtMost(500.0, 100.0)),
            Row::new("start to ready", server.ready_after, "ms").goal(Goal::AtMost(500.0, 100.0)),
            Row::new("idle memory", memory, "MiB").goal(Goal::AtMost(40.0, 20.0)),
        ]);
        Ok(())
    }

    async fn w1_alone(&mut self, server: &Server) -> Fallible<()> {
        self.say("W1 at 1");
        let (mut p50, mut p99, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.plan.times {
            let mut asked = workloads::wait_for_runs(server, 1, self.plan.each).await?;
            p50.push(percentile(&mut asked.took, 0.5));
            p99.push(percentile(&mut asked.took, 0.99));
            used.push(asked.used);
        }
        // Two commits lie in its way: its creation, and its end.
        let syncs = 2.0 * self.limits.fdatasync_ms;
        self.rows.extend([
            Row::new("W1 at 1, a run, p50", median(p50), "ms")
                .goal(Goal::AtMost(8.0 + syncs, 3.0 + syncs))
                .limit(syncs, "2 fdatasync")
                .used(&used),
            Row::new("W1 at 1, a run, p99", median(p99), "ms"),
        ]);
        Ok(())
    }

    async fn w1(&mut self, server: &Server, callers: usize) -> Fallible<()> {
        self.say(&format!("W1 at {callers}"));
        let (mut rates, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
        let (mut used, mut runs) = (Vec::new(), 0.0);
        for _ in 0..self.plan.times {
            let mut asked = workloads::wait_for_runs(server, callers, self.plan.each).await?;
            rates.push(asked.per_second);
            p50.push(percentile(&mut asked.took, 0.5));
            p99.push(percentile(&mut asked.took, 0.99));
            runs += asked.count;
            used.push(asked.used);
        }
        let name = format!("W1 at {callers}");
        let a_run = |of: fn(&Used) -> f64| used.iter().map(of).sum::<f64>() * 1e3 / runs;
        let (server_ms, postgres_ms) = (a_run(|used| used.server), a_run(|used| used.postgres));
        self.rows.extend([
            Row::new(name.clone(), median(rates), "runs/s")
                .goal(Goal::AtLeast(800.0, 2_500.0))
                .limit(self.limits.echoes, "JSON echo")
                .used(&used),
            Row::new(format!("{name}, p50"), median(p50), "ms"),
            Row::new(format!("{name}, p99"), median(p99), "ms").goal(Goal::AtMost(80.0, 80.0)),
            Row::new(format!("{name}, server's CPU a run"), server_ms, "ms")
                .goal(Goal::AtMost(0.5, 0.5)),
        ]);
        if self.kind == Kind::Postgres {
            let row = Row::new(format!("{name}, Postgres' CPU a run"), postgres_ms, "ms");
            self.rows.push(row.goal(Goal::AtMost(0.3, 0.3)));
        }
        Ok(())
    }

    async fn w2(&mut self, server: &Server) -> Fallible<()> {
        self.say("W2");
        let (mut rates, mut firsts, mut used) = (Vec::new(), Vec::new(), Vec::new());
        // It is over in a fraction of a second.
        for _ in 0..self.plan.times * 3 {
            let mut streamed = workloads::stream_runs(server, 64, W2).await?;
            rates.push(streamed.tokens / streamed.seconds);
            firsts.push(percentile(&mut streamed.first, 0.99));
            used.push(streamed.used);
        }
        self.rows.extend([
            Row::new("W2, tokens delivered", median(rates), "tokens/s")
                .goal(Goal::AtLeast(42_000.0, 200_000.0))
                .limit(self.limits.rows(self.kind), "rows in 500s")
                .used(&used),
            Row::new("W2, first token, p99", median(firsts), "ms").goal(Goal::AtMost(60.0, 60.0)),
        ]);
        Ok(())
    }

    async fn w3(&mut self, server: &Server) -> Fallible<Vec<String>> {
        let (mut seconds, mut p50, mut p99, mut cores) = (vec![], vec![], vec![], vec![]);
        let (mut used, mut run_ids) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.times {
            self.say("W3");
            let mut streamed = workloads::stream_runs(server, 200, W3).await?;
            seconds.push(streamed.seconds);
            cores.push(streamed.cores());
            p50.push(percentile(&mut streamed.delays, 0.5));
            p99.push(percentile(&mut streamed.delays, 0.99));
            used.push(streamed.used);
            run_ids = streamed.run_ids;
        }
        self.rows.extend([
            Row::new("W3, 200 streams", median(seconds), "s")
                .goal(Goal::AtMost(4.2, 4.1))
                .limit(W3_IDEAL, "the ideal")
                .used(&used),
            Row::new("W3, added delay, p50", median(p50), "ms").goal(Goal::AtMost(8.0, 4.0)),
            Row::new("W3, added delay, p99", median(p99), "ms").goal(Goal::AtMost(30.0, 15.0)),
            Row::new("W3, server and database", median(cores), "cores")
                .goal(Goal::AtMost(1.0, 0.6)),
        ]);
        Ok(run_ids)
    }

    async fn w3plus(&mut self, server: &Server) -> Fallible<()> {
        self.say("W3+");
        let mut streamed = workloads::stream_runs(server, 1_000, W3).await?;
        let p50 = percentile(&mut streamed.delays, 0.5);
        let p99 = percentile(&mut streamed.delays, 0.99);
        self.rows.extend([
            Row::new("W3+, 1,000 streams", streamed.seconds, "s")
                .goal(Goal::AtMost(5.0, 4.3))
                .limit(W3_IDEAL, "the ideal")
                .used(&[streamed.used]),
            Row::new("W3+, added delay, p50", p50, "ms"),
            Row::new("W3+, added delay, p99", p99, "ms").goal(Goal::AtMost(60.0, 60.0)),
            Row::new("W3+, server and database", streamed.cores(), "cores"),
            Row::new("W3+, clients and model", streamed.used.bench / streamed.used.wall, "cores"),
        ]);
        Ok(())
    }

    async fn w4(&mut self, database: &Database) -> Fallible<()> {
        self.say("W4");
        let server = Server::start(database, self.model).await?;
        workloads::wait_for_runs(&server, 16, Duration::from_millis(500)).await?;
        let held = workloads::hold_runs(&server, 1_000, self.plan.hold).await?;
        self.rows.push(
            Row::new("W4, memory a stream with its run", held.kib_a_run, "KiB")
                .goal(Goal::AtMost(25.0, 12.0))
                .used(&[held.used]),
        );
        Ok(())
    }

    async fn w5(&mut self, database: &Database) -> Fallible<()> {
        self.say("W5");
        let crashed = crash::kill_and_restart(database, self.model, 200, W3).await?;
        // The model says the open step again, from its beginning.
        let rest = Goal::AtMost(2.0 + W3_IDEAL, 2.0 + W3_IDEAL);
        self.rows.extend([
            Row::new("W5, events lost", crashed.lost, "").goal(Goal::AtMost(0.0, 0.0)),
            Row::new("W5, gaps", crashed.gaps, "").goal(Goal::AtMost(0.0, 0.0)),
            Row::new("W5, ready until all go on", crashed.goes_on, "s")
                .goal(Goal::AtMost(3.0, 3.0)),
            Row::new("W5, from there to a run's end", crashed.rest, "s").goal(rest),
            Row::new("W5, ready until all have ended", crashed.ended, "s"),
        ]);
        Ok(())
    }

    /// What one more turn costs, early in a conversation and late, in which the model reads as much as it
    /// may from the fiftieth turn on.
    async fn turns(&mut self, server: &Server) -> Fallible<()> {
        self.say("turns");
        let mut before = None;
        for (turn, talked) in turns::talk(server, &[10, 100, 1_000]).await? {
            let name = format!("turn {turn} of a conversation");
            let count = talked.took.len() as f64;
            let took = median(talked.took);
            let goal = before.map_or(Goal::None, |before| Goal::AtMost(before * 1.5, before * 1.2));
            self.rows.extend([
                Row::new(format!("{name}, p50"), took, "ms").goal(goal).used(&[talked.used]),
                Row::new(format!("{name}, server's CPU"), talked.used.server * 1e3 / count, "ms"),
            ]);
            if self.kind == Kind::Postgres {
                let cpu = talked.used.postgres * 1e3 / count;
                self.rows.push(Row::new(format!("{name}, Postgres' CPU"), cpu, "ms"));
            }
            // The tenth reads less than those that follow.
            before = (turn >= 100).then_some(took);
        }
        Ok(())
    }

    async fn replay(&mut self, server: &Server, run_ids: &[String]) -> Fallible<()> {
        self.say("replay");
        let (mut rates, mut used) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.times {
            let asked = workloads::replay(server, run_ids, self.plan.each).await?;
            rates.push(asked.per_second);
            used.push(asked.used);
        }
        let raw = self.limits.sse_events;
        self.rows.push(
            Row::new("replay of ended runs", median(rates), "events/s")
                .goal(Goal::AtLeast(raw * 0.5, raw))
                .limit(raw, "axum SSE")
                .used(&used),
        );
        Ok(())
    }

    async fn get(&mut self, server: &Server, run_ids: &[String]) -> Fallible<()> {
        self.say("GET");
        let (mut rates, mut used) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.times {
            let asked = workloads::get_runs(server, run_ids, self.plan.each).await?;
            rates.push(asked.per_second);
            used.push(asked.used);
        }
        let raw = self.limits.echoes;
        self.rows.push(
            Row::new("GET of an ended run", median(rates), "a second")
                .goal(Goal::AtLeast(raw * 0.2, raw * 0.5))
                .limit(raw, "JSON echo")
                .used(&used),
        );
        Ok(())
    }
}
