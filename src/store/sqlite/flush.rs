//! Group commit: a batch in one transaction of a few statements, and what to do when its answer was lost.
//!
//! Nobody else writes while a batch is in: everything is looked up first, decided in memory, and then
//! written without asking again.

use std::collections::{BTreeSet, HashMap};

use sqlx::{Row as _, SqliteConnection};

use crate::domain::ids::RunId;
use crate::store::batch::family_rooms;
use crate::store::turns::{self as store_turns, Changes, Placed};
use crate::store::{
    AppendOutcome, Batch, BatchOutcome, CreateOutcome, Entrance, IdempotencyKey, KeyRow, NewRun,
    Result,
};

use super::creates::Creates;
use super::events::{Events, Writes};
use super::table::Table;
use super::writer::Writer;
use super::{failure, turns};

/// `?1` agents, `?2` keys, `?3` fences, `?4` the node: by the primary keys of `agents` and
/// `idempotency`, and by the unique index of `runs`. `cross join` keeps the parameter outside.
const LOOK: &str = "\
select 1 as what, v.key as place, a.current_version as number, null as fingerprint,
    null as resource
from jsonb_each(?1) v
cross join agents a
on a.workspace_id = v.value ->> 0
and a.agent_id = v.value ->> 1
where a.archived_at is null
union all
select 2, v.key, 0, i.fingerprint, i.resource
from jsonb_each(?2) v
cross join idempotency i
on i.workspace_id = v.value ->> 0
and i.scope = v.value ->> 1
and i.key = v.value ->> 2
union all
select 3, v.key, r.run_no, null, null
from jsonb_each(?3) v
cross join runs r
on r.run_id = unhex(v.value ->> 0)
where r.rev = v.value ->> 1
and r.node_id = ?4
union all
select 4, 0, max(run_no), null, null
from runs";

/// By `runs_by_root`: how many runs there are below each of these.
const FAMILIES: &str = "\
select unhex(v.value ->> 0) as root_run_id, (
    select count(*)
    from runs r
    where r.root_run_id = unhex(v.value ->> 0)
) as runs
from jsonb_each(?1) v";

/// By the unique indexes of `runs`, `run_facts` and `run_deltas`: which of these runs are there, and
/// which of these events.
const READ_BACK: &str = "\
select 1 as what, v.key as place
from jsonb_each(?1) v
cross join runs r
on r.run_id = unhex(v.value ->> 0)
union all
select 2, v.key
from jsonb_each(?2) v
cross join runs r
on r.run_id = unhex(v.value ->> 0)
where exists (
    select 1
    from run_facts f
    where f.run_no = r.run_no
    and f.seq = v.value ->> 1
    and f.data = v.value ->> 2
) or exists (
    select 1
    from run_deltas d
    where d.run_no = r.run_no
    and d.seq = v.value ->> 1
    and d.data = v.value ->> 2
)";

/// Writes the batch.
pub(super) async fn flush(writer: &Writer, batch: &Batch) -> Result<BatchOutcome> {
    if batch.creates.is_empty() && batch.appends.is_empty() {
        return Ok(BatchOutcome::default());
    }
    // Texts of events are shared, so this copies little.
    let batch = batch.clone();
    writer.write(move |connection| Box::pin(async move { apply(connection, &batch).await })).await
}

/// Whether the batch is in. It runs on the writer, behind whatever was handed over before: a flush
/// that nobody waits for any more has run by then, or was never handed over.
pub(super) async fn resolve(writer: &Writer, batch: &Batch) -> Result<Option<BatchOutcome>> {
    let batch = batch.clone();
    writer
        .write(move |connection| Box::pin(async move { read_back(connection, &batch).await }))
        .await
}

/// What a batch needs to know before it is decided.
#[derive(Debug, Default)]
struct Known {
    /// Current versions, by the place in the list of agents.
    agents: HashMap<i64, i64>,
    /// Keys that are bound, by the creation's place.
    keys: HashMap<i64, KeyRow>,
    /// Numbers of the runs whose fence holds, by the append's place.
    held: HashMap<i64, i64>,
    /// The largest number of a run.
    last_run_no: i64,
}

async fn apply(connection: &mut SqliteConnection, batch: &Batch) -> Result<BatchOutcome> {
    let agents: Vec<_> = batch
        .creates
        .iter()
        .map(|create| (create.row.workspace_id, &create.row.agent_id))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let known = look(connection, batch, &agents).await?;
    let families = families(connection, batch).await?;
    let mut turns = turns::look(connection, &store_turns::touched(batch)).await?;
    let (mut changes, mut pasts) = (Changes::default(), Vec::new());
    let mut current = HashMap::new();
    for (place, agent) in (0..).zip(agents) {
        if let Some(version) = known.agents.get(&place) {
            current.insert(agent, *version);
        }
    }

    let mut outcome = BatchOutcome::default();
    let mut events = Events::new();
    let mut creates = Creates::new();
    let mut bound: HashMap<&IdempotencyKey, KeyRow> = HashMap::new();
    let mut new: HashMap<RunId, (i64, &NewRun)> = HashMap::new();
    let mut run_no = known.last_run_no;
    for ((place, create), room) in (0..).zip(&batch.creates).zip(family_rooms(&batch.creates)) {
        let taken = known.keys.get(&place).or_else(|| {
            // Two with one key in one batch: the first one has it. Whoever compares fingerprints
            // learns whether it was the same request.
            let new = create.key.as_ref()?;
            bound.iter().find(|(key, _)| is_same(key, &new.key)).map(|(_, row)| row)
        });
        if let Some(row) = taken {
            outcome.creates.push(CreateOutcome::KeyTaken(row.clone()));
            continue;
        }
        let there = create.row.root_run_id.and_then(|root| families.get(&root)).copied();
        if room.is_some_and(|room| there.unwrap_or(0) > room) {
            outcome.creates.push(CreateOutcome::FamilyFull);
            continue;
        }
        let admission = match turns.admit(create, batch.at) {
            Ok(admission) => admission,
            Err(why) => {
                outcome.creates.push(why);
                continue;
            }
        };
        let agent = (create.row.workspace_id, &create.row.agent_id);
        // A fork is of the version of what it was forked from, which need not be the current one.
        let version = current.get(&agent).copied().filter(|current| {
            *current == i64::from(create.row.agent_version)
                || create.row.forked_from_run_id.is_some()
        });
        if version.is_none() {
            outcome.creates.push(CreateOutcome::AgentMoved);
            continue;
        }
        if let Some(new) = &create.key {
            let row = KeyRow { fingerprint: new.key.fingerprint, resource: new.resource.clone() };
            bound.insert(&new.key, row);
        }
        run_no += 1;
        creates.add(run_no, &admission.row(create))?;
        for entry in std::iter::once(&create.first).chain(&create.copied) {
            events.entry(run_no, entry);
        }
        new.insert(create.row.run_id, (run_no, create));
        outcome.creates.push(admission.outcome());
        if create.turn.is_none() {
            pasts.extend(Placed::of_fork(create));
        }
        turns.entered(admission, &mut changes);
    }
    for (place, append) in (0..).zip(&batch.appends) {
        let held = known.held.get(&place).copied().or_else(|| {
            // A run may be created and go on in the same batch.
            let (run_no, create) = new.get(&append.run_id)?;
            let holds = create.row.rev == append.rev && create.row.node_id == Some(batch.node_id);
            holds.then_some(*run_no)
        });
        let Some(run_no) = held else {
            outcome.appends.push(AppendOutcome::Missed);
            continue;
        };
        for entry in &append.entries {
            events.entry(run_no, entry);
        }
        if let Some(update) = &append.update {
            events.update(run_no, update, Writes::Driver)?;
            if let Some(spoken) = &update.spoken {
                turns.heard(append.run_id, spoken, &mut changes);
            }
        }
        outcome.appends.push(AppendOutcome::Written);
    }
    creates.write(connection).await?;
    events.write(connection, batch.at).await?;
    turns::place(connection, &pasts).await?;
    outcome.promoted = turns::write(connection, turns, changes, batch.at).await?;
    Ok(outcome)
}

/// Whether two keys are one: what they asked for does not count.
fn is_same(one: &IdempotencyKey, other: &IdempotencyKey) -> bool {
    one.key == other.key && one.scope == other.scope && one.workspace_id == other.workspace_id
}

async fn look(
    connection: &mut SqliteConnection,
    batch: &Batch,
    agents: &[(crate::domain::ids::WorkspaceId, &crate::domain::ids::AgentId)],
) -> Result<Known> {
    let mut wanted = Table::new();
    for (workspace_id, agent_id) in agents {
        wanted.row().int(workspace_id.0).text(agent_id.as_str());
    }
    let mut fences = Table::new();
    for append in &batch.appends {
        fences.row().uuid(append.run_id.uuid()).int(append.rev);
    }
    let query = sqlx::query(LOOK)
        .bind(wanted.json())
        .bind(keys(batch).json())
        .bind(fences.json())
        .bind(batch.node_id.uuid());
    let mut known = Known::default();
    for row in query.fetch_all(connection).await.map_err(failure::of)? {
        let place = row.try_get("place").map_err(failure::of)?;
        let number: Option<i64> = row.try_get("number").map_err(failure::of)?;
        let number = number.unwrap_or(0);
        match row.try_get("what").map_err(failure::of)? {
            1 => known.agents.insert(place, number).map(drop),
            2 => known.keys.insert(place, super::keys::read(&row)?).map(drop),
            3 => known.held.insert(place, number).map(drop),
            _ => {
                known.last_run_no = number;
                None
            }
        };
    }
    Ok(known)
}

/// How many runs there are below the tops of the families that get more.
async fn families(connection: &mut SqliteConnection, batch: &Batch) -> Result<HashMap<RunId, i64>> {
    let roots: BTreeSet<_> = batch.creates.iter().filter_map(|new| new.row.root_run_id).collect();
    if roots.is_empty() {
        return Ok(HashMap::new());
    }
    let mut wanted = Table::new();
    for root in roots {
        wanted.row().uuid(root.uuid());
    }
    let query = sqlx::query(FAMILIES).bind(wanted.json());
    let rows = query.fetch_all(connection).await.map_err(failure::of)?;
    let read = |row| {
        let root: sqlx::types::Uuid =
            sqlx::Row::try_get(row, "root_run_id").map_err(failure::of)?;
        let runs = sqlx::Row::try_get(row, "runs").map_err(failure::of)?;
        Ok((RunId::from_uuid(root), runs))
    };
    rows.iter().map(read).collect()
}

/// The keys of the creations, each in its place.
fn keys(batch: &Batch) -> Table {
    let mut keys = Table::new();
    for create in &batch.creates {
        match &create.key {
            Some(new) => {
                keys.row().int(new.key.workspace_id.0).text(new.key.scope).text(&new.key.key)
            }
            None => keys.row().null(),
        };
    }
    keys
}

/// An append is known by its last event, a creation by its run. A batch of which nothing is in, though
/// it ran, is answered like one that did not: running it again changes nothing either.
async fn read_back(
    connection: &mut SqliteConnection,
    batch: &Batch,
) -> Result<Option<BatchOutcome>> {
    let mut runs = Table::new();
    for create in &batch.creates {
        runs.row().uuid(create.row.run_id.uuid());
    }
    let mut last = Table::new();
    for append in &batch.appends {
        last.row().uuid(append.run_id.uuid());
        if let Some(entry) = append.entries.last() {
            last.int(entry.seq).text(entry.text());
        }
    }
    let query = sqlx::query(READ_BACK).bind(runs.json()).bind(last.json());
    let (mut created, mut written) = (BTreeSet::new(), BTreeSet::new());
    for row in query.fetch_all(&mut *connection).await.map_err(failure::of)? {
        let place: i64 = row.try_get("place").map_err(failure::of)?;
        match row.try_get("what").map_err(failure::of)? {
            1 => created.insert(place),
            _ => written.insert(place),
        };
    }
    if created.is_empty() && written.is_empty() {
        return Ok(None);
    }
    let known = look(connection, batch, &[]).await?;
    let turns = batch.creates.iter().filter(|new| new.turn.is_some());
    let run_ids: Vec<RunId> = turns.map(|new| new.row.run_id).collect();
    let entered: HashMap<RunId, Entrance> = if run_ids.is_empty() {
        HashMap::new()
    } else {
        turns::entrances(connection, &run_ids).await?.into_iter().collect()
    };
    let told = |new: &NewRun| match entered.get(&new.row.run_id) {
        Some(entrance) => CreateOutcome::Entered(*entrance),
        None => CreateOutcome::Created,
    };
    let creates = (0..)
        .zip(&batch.creates)
        .map(|(place, new)| match known.keys.get(&place) {
            _ if created.contains(&place) => told(new),
            Some(row) => CreateOutcome::KeyTaken(row.clone()),
            None => CreateOutcome::AgentMoved,
        })
        .collect();
    let appends =
        (0..)
            .zip(&batch.appends)
            .map(|(place, _)| {
                if written.contains(&place) {
                    AppendOutcome::Written
                } else {
                    AppendOutcome::Missed
                }
            })
            .collect();
    // Who was promoted is not known any more: whoever looks finds nothing, or them.
    let promoted = !store_turns::touched(batch).is_empty();
    Ok(Some(BatchOutcome { creates, appends, promoted }))
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[LOOK, FAMILIES, READ_BACK];
