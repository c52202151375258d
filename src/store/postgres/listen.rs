//! Hints through `NOTIFY`, and the lock that shows that this process is there.
//!
//! Both live on one connection of their own. A notification is a transaction of its own, never part of
//! one that writes: the database lets only one transaction with notifications commit at a time, which
//! halves the commits of everybody.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgListener, PgNotification, PgPoolOptions};
use sqlx::{ConnectOptions as _, Executor as _, Row as _};
use tokio::time::timeout;

use crate::domain::ids::{NodeId, RunId};
use crate::store::{Ear, Hint, Result, StoreError};

use super::failure;

/// The channel. Channels belong to a database, so two installations on one server do not meet.
const CHANNEL: &str = "stepwell";
/// How long opening the connection may take.
const OPEN: Duration = Duration::from_secs(3);
/// How long one statement on it may take. Together with the time between two questions this must stay
/// below what others wait for before they take a process for dead that has no connection.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// The database takes payloads of less than 8,000 bytes: so many run ids of 32 digits fit behind the
/// sender and the kind.
const IDS_PER_PAYLOAD: usize = 248;

/// For the one connection that listens. A hint that is lost in a crash is worth nothing, so nobody
/// waits for the disk.
const SETTINGS: &str = "\
set tcp_user_timeout = '10s';
set statement_timeout = '2s';
set synchronous_commit = off;
";

const NOTIFY: &str = "\
select pg_notify('stepwell', v.payload)
from unnest($1::text[]) v (payload)";

const ASK: &str = "select 1";

/// Belongs to the session: it is free as soon as the database knows that the process is gone.
const LOCK: &str = "select pg_try_advisory_lock($1)";

/// The number of a node's lock: the random half of its id. `nodes.rs` makes the same in SQL.
pub(super) fn lock_number(node_id: NodeId) -> i64 {
    let (_, random) = node_id.uuid().as_u64_pair();
    random.cast_signed()
}

/// An ear on Postgres.
struct PgEar {
    listener: PgListener,
    node_id: NodeId,
    locked: bool,
}

/// Opens a connection and listens on it. The first question takes the node's lock.
pub(super) async fn listen(options: &PgConnectOptions, node_id: NodeId) -> Result<Box<dyn Ear>> {
    let open = async {
        // A pool of one, because sqlx's listener wants a pool. Nobody reconnects by it: whoever loses
        // the connection must look at everything again, and so must know.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .test_before_acquire(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(OPEN)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SETTINGS).await.map(drop) })
            })
            // It asks something twice a second.
            .connect_lazy_with(options.clone().disable_statement_logging());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.ignore_pool_close_event(true);
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    };
    let listener = match timeout(OPEN, open).await {
        Ok(opened) => opened.map_err(failure::of_lease)?,
        Err(_) => return Err(failure::too_late()),
    };
    Ok(Box::new(PgEar { listener, node_id, locked: false }))
}

#[async_trait]
impl Ear for PgEar {
    async fn hear(&mut self) -> Result<Hint> {
        loop {
            let said = self.listener.try_recv().await.map_err(failure::of_lease)?;
            let said = said.ok_or_else(lost)?;
            if let Some(hint) = read(&said, self.node_id) {
                return Ok(hint);
            }
        }
    }

    async fn tell(&mut self, hints: &[Hint]) -> Result<()> {
        let payloads: Vec<String> =
            hints.iter().flat_map(|hint| write(self.node_id, hint)).collect();
        let notify = sqlx::query(NOTIFY).bind(payloads).execute(&mut self.listener);
        in_time(notify).await.map(drop)
    }

    async fn ask(&mut self) -> Result<bool> {
        if self.locked {
            in_time(self.listener.execute(ASK)).await?;
        } else {
            self.lock().await?;
        }
        Ok(self.locked)
    }
}

impl PgEar {
    /// Takes the node's lock. An earlier connection of this process may still have it, until the
    /// database finds that connection dead: then the next time.
    async fn lock(&mut self) -> Result<()> {
        let query = sqlx::query(LOCK).bind(lock_number(self.node_id));
        let row = in_time(query.fetch_one(&mut self.listener)).await?;
        self.locked = row.try_get(0).map_err(failure::of_value)?;
        Ok(())
    }
}

async fn in_time<T>(
    statement: impl Future<Output = std::result::Result<T, sqlx::Error>>,
) -> Result<T> {
    match timeout(PATIENCE, statement).await {
        Ok(answer) => answer.map_err(failure::of_read),
        Err(_) => Err(failure::too_late()),
    }
}

fn lost() -> StoreError {
    failure::of_lease(sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into()))
}

/// The sender, the kind, and the ids, without anything between them.
fn write(sender: NodeId, hint: &Hint) -> Vec<String> {
    let head = |kind: char| format!("{}{kind}", sender.uuid().simple());
    let spread = |kind: char, run_ids: &[RunId]| {
        let payloads = run_ids.chunks(IDS_PER_PAYLOAD).map(|chunk| {
            chunk.iter().fold(head(kind), |mut payload, run_id| {
                let mut digits = [0; uuid::fmt::Simple::LENGTH];
                payload.push_str(run_id.uuid().simple().encode_lower(&mut digits));
                payload
            })
        });
        payloads.collect()
    };
    match hint {
        Hint::Grown(run_ids) => spread('g', run_ids),
        Hint::Changed(run_ids) => spread('c', run_ids),
        Hint::Due => vec![head('d')],
    }
}

/// What another node said. What cannot be read is left alone: a newer version may say more.
fn read(said: &PgNotification, me: NodeId) -> Option<Hint> {
    read_payload(said.payload(), me)
}

fn read_payload(payload: &str, me: NodeId) -> Option<Hint> {
    let (sender, rest) = payload.split_at_checked(uuid::fmt::Simple::LENGTH)?;
    if uuid::Uuid::try_parse(sender).ok()? == me.uuid() {
        return None;
    }
    let (kind, ids) = rest.split_at_checked(1)?;
    let run_ids = || {
        let digits = ids.as_bytes().chunks_exact(uuid::fmt::Simple::LENGTH);
        digits.filter_map(|id| uuid::Uuid::try_parse_ascii(id).ok()).map(RunId::from_uuid).collect()
    };
    match kind {
        "g" => Some(Hint::Grown(run_ids())),
        "c" => Some(Hint::Changed(run_ids())),
        "d" => Some(Hint::Due),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn node(n: u128) -> NodeId {
        NodeId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn hints_come_through_and_ones_own_are_not_heard() {
        let runs: Vec<RunId> = (0..600).map(|n| RunId::from_uuid(Uuid::from_u128(n))).collect();
        let payloads = write(node(1), &Hint::Grown(runs.clone()));
        assert_eq!(payloads.len(), 3);
        assert!(payloads.iter().all(|payload| payload.len() < 8_000));
        let heard = payloads.iter().flat_map(|payload| match read_payload(payload, node(2)) {
            Some(Hint::Grown(run_ids)) => run_ids,
            other => panic!("{other:?}"),
        });
        assert_eq!(heard.collect::<Vec<_>>(), runs);
        assert_eq!(read_payload(&payloads[0], node(1)), None);
        let changed = Hint::Changed(runs[..1].to_vec());
        assert_eq!(read_payload(&write(node(1), &changed)[0], node(2)), Some(changed));
        assert_eq!(read_payload(&write(node(1), &Hint::Due)[0], node(2)), Some(Hint::Due));
    }

    #[test]
    fn what_makes_no_sense_is_left_alone() {
        let newer = format!("{}x123", Uuid::from_u128(7).simple());
        for payload in ["", "x", "zz", &"ä".repeat(40), &newer, &Uuid::nil().simple().to_string()]
        {
            assert_eq!(read_payload(payload, node(1)), None, "{payload}");
        }
    }
}
