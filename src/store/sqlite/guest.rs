//! Writes of everybody who is not the driver: look under the writer's turn, decide, append.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::types::Uuid;
use sqlx::{FromRow as _, Row as _, SqliteConnection};

use crate::domain::event::Entry;
use crate::domain::ids::{RunId, WorkspaceId};
use crate::domain::time::Timestamp;
use crate::store::rows::{self, RunFields};
use crate::store::turns::Changes;
use crate::store::{
    GuestDecision, GuestOutcome, GuestWrite, Locked, Result, RunUpdate, StoreError,
};

use super::events::{Events, Writes};
use super::table::Table;
use super::writer::Writer;
use super::{failure, keys, log, runs, turns};

/// By the unique index of `runs` and the primary key of `run_bodies`.
const LOCK: &str = concat!(
    "select r.run_no, ",
    runs::columns!(),
    "
from runs r
join run_bodies b
on b.run_id = r.run_id
where r.workspace_id = ?1
and r.run_id = ?2
and r.deleted_at is null"
);

/// By primary keys and unique indexes. What people wrote goes; what the run cost stays.
const ERASE_BODY: &str = "\
delete from run_bodies
where run_id = ?1";
const ERASE_LABELS: &str = "\
delete from run_labels
where (workspace_id, key, value, run_id) in (
    select ?1, v.value ->> 0, v.value ->> 1, ?2
    from jsonb_each(?3) v
)";
const ERASE_FACTS: &str = "\
delete from run_facts
where run_no = ?1";
const ERASE_DELTAS: &str = "\
delete from run_deltas
where run_no = ?1";
const BURY: &str = "\
update runs
set rev = rev + 1,
    deleted_at = ?2,
    fact_seq = 0,
    node_id = null,
    due_at = null,
    status_message = null,
    end_user_id = null
where run_no = ?1";

/// Does the guest's write, or nothing.
pub(super) async fn guest(writer: &Writer, write: GuestWrite) -> Result<GuestOutcome> {
    writer.write(move |connection| Box::pin(async move { apply(connection, &write).await })).await
}

async fn apply(connection: &mut SqliteConnection, write: &GuestWrite) -> Result<GuestOutcome> {
    if let Some(row) = keys::taken(connection, write.key.as_ref()).await? {
        return Ok(GuestOutcome::KeyTaken(row));
    }
    let Some((run_no, locked)) = lock(connection, write).await? else {
        return Ok(GuestOutcome::Absent);
    };
    let decision = (write.decide)(&locked).map_err(StoreError::Corrupt)?;
    let mut promoted = false;
    let appended = match decision {
        GuestDecision::Nothing => Vec::new(),
        GuestDecision::Append { facts, update } => {
            append(connection, run_no, &locked, &facts, &update).await?;
            if let Some(spoken) = &update.spoken {
                let mut turns = turns::look(connection, &[spoken.conversation_id]).await?;
                let mut changes = Changes::default();
                turns.heard(write.run_id, spoken, &mut changes);
                promoted = turns::write(connection, turns, changes, spoken.at).await?;
            }
            facts
        }
        // It has written nothing yet.
        GuestDecision::Refuse(refusal) => return Ok(GuestOutcome::Refused(refusal)),
        GuestDecision::Erase { at } => {
            erase(connection, run_no, &locked, at).await?;
            Vec::new()
        }
    };
    keys::bind(connection, write.key.as_ref()).await?;
    Ok(GuestOutcome::Done { node_id: locked.record.row.node_id, appended, promoted })
}

async fn lock(
    connection: &mut SqliteConnection,
    write: &GuestWrite,
) -> Result<Option<(i64, Locked)>> {
    let query = sqlx::query(LOCK).bind(write.workspace_id.0).bind(write.run_id.uuid());
    let row = query.fetch_optional(&mut *connection).await.map_err(failure::of)?;
    let Some(row) = row else { return Ok(None) };
    let run_no: i64 = row.try_get("run_no").map_err(failure::of)?;
    let record = RunFields::from_row(&row).map_err(failure::of)?.record()?;
    let facts = log::facts_of(connection, run_no).await?;
    Ok(Some((run_no, Locked { record, facts })))
}

async fn append(
    connection: &mut SqliteConnection,
    run_no: i64,
    locked: &Locked,
    facts: &[Entry],
    update: &RunUpdate,
) -> Result<()> {
    let mut follows = (locked.record.last_seq.saturating_add(1)..).zip(facts);
    if facts.is_empty()
        || !follows.all(|(seq, fact)| fact.seq == seq && !fact.event_type.is_delta())
    {
        return Err(rows::corrupt("a guest's facts", "they do not follow the log"));
    }
    let mut events = Events::new();
    for fact in facts {
        events.entry(run_no, fact);
    }
    events.update(run_no, update, Writes::Guest)?;
    // There are no deltas among them, so no time is written.
    events.write(connection, Timestamp::from_millis(0)).await
}

/// A log has 50,000 events at most, which go in one piece: half a run is no answer to anybody.
async fn erase(
    connection: &mut SqliteConnection,
    run_no: i64,
    locked: &Locked,
    at: Timestamp,
) -> Result<()> {
    let row = &locked.record.row;
    let erased = Erased {
        run_no,
        run_id: row.run_id.uuid(),
        workspace_id: row.workspace_id.0,
        labels: locked.record.body.metadata.clone(),
    };
    erase_log(connection, &erased, at).await
}

/// A run that is erased: what its parts are found by.
#[derive(Debug)]
pub(super) struct Erased {
    run_no: i64,
    run_id: Uuid,
    workspace_id: i32,
    labels: BTreeMap<String, String>,
}

impl Erased {
    /// Out of the columns of `runs` and, if it has one, its body.
    pub(super) fn read(row: &SqliteRow) -> Result<Self> {
        let metadata: Option<String> = row.try_get("metadata").map_err(failure::of)?;
        Ok(Self {
            run_no: row.try_get("run_no").map_err(failure::of)?,
            run_id: row.try_get("run_id").map_err(failure::of)?,
            workspace_id: row.try_get("workspace_id").map_err(failure::of)?,
            labels: metadata.as_deref().map(rows::read_metadata).transpose()?.unwrap_or_default(),
        })
    }

    /// Which run it is.
    pub(super) const fn place(&self) -> (WorkspaceId, RunId) {
        (WorkspaceId(self.workspace_id), RunId::from_uuid(self.run_id))
    }
}

/// Erases everything of a run but its tombstone.
pub(super) async fn erase_log(
    connection: &mut SqliteConnection,
    run: &Erased,
    at: Timestamp,
) -> Result<()> {
    let mut labels = Table::new();
    for (key, value) in &run.labels {
        labels.row().text(key).text(value);
    }
    let erase = [
        sqlx::query(ERASE_BODY).bind(run.run_id),
        sqlx::query(ERASE_LABELS).bind(run.workspace_id).bind(run.run_id).bind(labels.json()),
        sqlx::query(ERASE_FACTS).bind(run.run_no),
        sqlx::query(ERASE_DELTAS).bind(run.run_no),
        sqlx::query(BURY).bind(run.run_no).bind(at.millis()),
    ];
    for query in erase {
        query.execute(&mut *connection).await.map_err(failure::of)?;
    }
    Ok(())
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] =
    &[LOCK, ERASE_BODY, ERASE_LABELS, ERASE_FACTS, ERASE_DELTAS, BURY];
