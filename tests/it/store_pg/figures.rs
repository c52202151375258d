//! What flushes cost. Not a test: prints figures.
//! `cargo test --test it -- --ignored --nocapture store_pg::figures`

use std::time::Instant;

use stepwell::domain::ids::RunId;
use stepwell::domain::run::RunStatus;
use stepwell::store::{Append, Batch, NewRun, Owner, Store};

use super::sample::*;
use crate::support::postgres;

/// Seconds of processor time that the processes of the database's server have used.
fn database_seconds(postmaster: i32) -> f64 {
    let mut ticks = 0_u64;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = tail.split(' ').collect();
        let pid = head.split(' ').next().and_then(|pid| pid.parse().ok());
        let parent = fields.get(1).and_then(|pid| pid.parse().ok());
        let own: &[usize] = match () {
            () if parent == Some(postmaster) => &[11, 12],
            // And what its children used that ended.
            () if pid == Some(postmaster) => &[11, 12, 13, 14],
            () => &[],
        };
        for at in own {
            ticks += fields.get(*at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    ticks as f64 / 100.0
}

struct Ended {
    postmaster: i32,
    started: Instant,
    database: f64,
}

impl Ended {
    fn start(postmaster: i32) -> Self {
        let database = database_seconds(postmaster);
        Self { postmaster, started: Instant::now(), database }
    }

    fn say(&self, what: &str, count: usize) {
        let seconds = self.started.elapsed().as_secs_f64();
        let database = database_seconds(self.postmaster) - self.database;
        println!(
            "{what}: {:.0}/s, database {:.3} ms each",
            count as f64 / seconds,
            database * 1000.0 / count as f64
        );
    }
}

fn first(run_id: RunId) -> Append {
    Append {
        run_id,
        rev: 1,
        entries: [
            vec![fact(run_id, 2), fact(run_id, 3)],
            (4..14).map(|s| delta(run_id, s)).collect(),
        ]
        .concat(),
        update: Some(update(3)),
    }
}

fn last(run_id: RunId) -> Append {
    let mut end = update(18);
    end.status = RunStatus::Completed;
    end.steps_completed = 1;
    end.completed_at = Some(NOW);
    end.owner = Owner::Nobody { due_at: None };
    let facts = (16..19).map(|s| fact(run_id, s));
    Append {
        run_id,
        rev: 1,
        entries: (14..16).map(|s| delta(run_id, s)).chain(facts).collect(),
        update: Some(end),
    }
}

#[tokio::test]
#[ignore = "prints figures"]
async fn whole_runs_and_deltas() {
    let url = postgres::database().await;
    let store = postgres::open(&url).await;
    let mut admin = postgres::connect(&url).await;
    let file = "select split_part(pg_read_file('postmaster.pid'), chr(10), 1)::int";
    let postmaster: i32 = sqlx::query_scalar(file).fetch_one(&mut admin).await.expect("a number");
    with_agent(&store).await;
    let me = node();
    // W1: 64 at a time; each flush creates some, begins some and ends some.
    for size in [16, 64] {
        let rounds = 12_800 / size;
        let mut created: Vec<RunId> = Vec::new();
        let mut begun: Vec<RunId> = Vec::new();
        let figure = Ended::start(postmaster);
        for _ in 0..rounds {
            let creates: Vec<NewRun> = (0..size).map(|_| run(Some(me))).collect();
            let next = creates.iter().map(|c| c.row.run_id).collect();
            let appends = created
                .iter()
                .map(|id| first(*id))
                .chain(begun.iter().map(|id| last(*id)))
                .collect();
            store.flush(&batch(me, creates, appends)).await.expect("a flush");
            begun = std::mem::replace(&mut created, next);
        }
        figure.say(
            &format!("runs (create, 12 entries, 5 entries) in flushes of {size}"),
            rounds * size,
        );
    }
    // The same without creations in the batch of the appends.
    let rounds = 200;
    let figure = Ended::start(postmaster);
    for _ in 0..rounds {
        let creates: Vec<NewRun> = (0..64).map(|_| run(Some(me))).collect();
        let ids: Vec<RunId> = creates.iter().map(|c| c.row.run_id).collect();
        store.flush(&batch(me, creates, vec![])).await.expect("a flush");
        store
            .flush(&batch(me, vec![], ids.iter().map(|id| first(*id)).collect()))
            .await
            .expect("f");
        store.flush(&batch(me, vec![], ids.iter().map(|id| last(*id)).collect())).await.expect("f");
    }
    figure.say("runs in three flushes of 64, apart", rounds * 64);

    for (runs, each) in [(1, 1), (20, 2), (10, 10), (100, 1), (100, 5), (500, 1)] {
        let mut ids = Vec::new();
        for _ in 0..runs {
            ids.push(driven(&store, me).await);
        }
        let rounds = (40_000 / (runs * each)).min(2000);
        let rows = i32::try_from(each).expect("small");
        let batches: Vec<Batch> = (0..rounds)
            .map(|round| {
                let seq = 2 + i32::try_from(round).expect("small") * rows;
                batch(me, vec![], ids.iter().map(|id| deltas(*id, seq..seq + rows)).collect())
            })
            .collect();
        let figure = Ended::start(postmaster);
        for batch in &batches {
            store.flush(batch).await.expect("a flush");
        }
        figure.say(&format!("delta rows, {runs} runs x {each} a flush"), rounds * runs * each);
        figure.say("    flushes", rounds);
    }
}
