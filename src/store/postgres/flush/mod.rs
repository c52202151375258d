//! Group commit: a batch in one statement; [`doubt`]: what to do when its answer was lost.

mod doubt;

use std::collections::{HashMap, HashSet};

use sqlx::Row as _;
use sqlx::types::Uuid;

use crate::domain::event::Entry;
use crate::domain::ids::{ConversationId, NodeId};
use crate::domain::limits;
use crate::store::turns::{self, Changes, Placed};
use crate::store::{
    Append, AppendOutcome, Batch, BatchOutcome, CreateOutcome, KeyRow, NewRun, Result, StoreError,
};

use super::actions;
use super::connections::{Lease, Statement};
use super::{PostgresStore, binding, failure, keys, statements};

/// A node's flush, by what makes its number unique.
pub(super) type FlushId = (NodeId, i16, i64);

/// Facts of runs that the same transaction has created.
const COPY: &str = "\
insert into run_facts (run_id, seq, kind, data)
select v.run_id, v.seq, v.kind, v.data
from unnest($1::uuid[], $2::int[], $3::smallint[], $4::text[]) v (run_id, seq, kind, data)";

/// By the primary key of `idempotency`.
const KEYS: &str = "\
select v.ord, i.fingerprint, i.resource
from unnest($1::int[], $2::int[], $3::text[], $4::text[]) v (ord, workspace_id, scope, key)
cross join lateral (
    select i.fingerprint, i.resource
    from idempotency i
    where i.workspace_id = v.workspace_id
    and i.scope = v.scope
    and i.key = v.key
    limit 1
) i";

/// By `runs_by_root`: which of these families have so many runs below their top.
const FULL: &str = "\
select v.root_run_id
from unnest($1::uuid[]) v (root_run_id)
where $2 <= (
    select count(*)
    from runs r
    where r.root_run_id = v.root_run_id
)";

/// By the primary key of `flushes`: the lane's oldest numbers, as far as they are old enough.
const TRIM: &str = "\
delete from flushes
where node_id = $1
and lane = $2
and n <= (
    select max(oldest.n)
    from (
        select f.n, f.at
        from flushes f
        where f.node_id = $1
        and f.lane = $2
        and f.n < $3
        order by f.n
        limit 512
    ) oldest
    where abs(oldest.at) < $4
)";

/// Numbers that are kept whatever their age: a lane has one batch in doubt at most.
const KEPT_NUMBERS: i64 = 4096;
/// How long a number is kept: far longer than a statement can be on its way.
const KEPT_MILLIS: i64 = 3_600_000;
/// A lane trims once in so many flushes, half of what it may delete then.
const TRIM_EVERY: i64 = 256;

impl PostgresStore {
    pub(super) async fn flush_batch(&self, batch: &Batch) -> Result<BatchOutcome> {
        let mut lease = self.journal.lease().await.map_err(failure::of_lease)?;
        let backend = lease.backend();
        let outcome = flush_in(&mut lease, batch).await;
        if matches!(outcome, Err(StoreError::InDoubt(_)))
            && let Some(backend) = backend
        {
            self.doubts().insert(id(batch), backend);
        }
        if outcome.is_ok() && batch.number % TRIM_EVERY == 0 {
            trim(&mut lease, batch).await;
        }
        outcome
    }
}

const fn id(batch: &Batch) -> FlushId {
    (batch.node_id, batch.lane, batch.number)
}

async fn flush_in(lease: &mut Lease<'_>, batch: &Batch) -> Result<BatchOutcome> {
    let conversations = turns::touched(batch);
    if conversations.is_empty() {
        return flush_runs(lease, batch).await;
    }
    lease.begin().await.map_err(failure::of_read)?;
    match flush_turns(lease, batch, &conversations).await {
        Ok(outcome) => {
            lease.commit().await.map_err(failure::of_write)?;
            Ok(outcome)
        }
        Err(error) => {
            lease.rollback().await;
            Err(error)
        }
    }
}

/// A batch that means nothing to any conversation.
async fn flush_runs(lease: &mut Lease<'_>, batch: &Batch) -> Result<BatchOutcome> {
    let creates: Vec<&NewRun> = batch.creates.iter().collect();
    let statements = Statements::of(batch, &creates)?;
    let behind = Behind::of(batch)?;
    let done = if statements.is_one() && behind.is_nothing() {
        statements.run(lease).await.map_err(failure::of_write)?
    } else {
        lease.begin().await.map_err(failure::of_read)?;
        match in_turn(lease, statements, behind).await {
            Ok(done) => {
                lease.commit().await.map_err(failure::of_write)?;
                done
            }
            Err(error) => {
                lease.rollback().await;
                return Err(failure::of_part(error));
            }
        }
    };
    outcome(lease, batch, &done, |_| CreateOutcome::Created).await.map_err(|error| match error {
        // It is committed; only what became of its keys is not known yet.
        StoreError::Unavailable(source) => StoreError::InDoubt(source),
        other => other,
    })
}

/// The same in the open transaction, for a batch that begins or ends turns: conversations are locked,
/// turns admitted, runs written, and then what came of it.
async fn flush_turns(
    lease: &mut Lease<'_>,
    batch: &Batch,
    conversations: &[ConversationId],
) -> Result<BatchOutcome> {
    let mut turns = super::turns::lock(lease, conversations).await?;
    let (mut admitted, mut refused) = (HashMap::new(), HashMap::new());
    let mut creates = Vec::new();
    for new in &batch.creates {
        match turns.admit(new, batch.at) {
            Ok(admission) => {
                creates.push(admission.row(new));
                admitted.insert(new.row.run_id, admission);
            }
            Err(why) => {
                refused.insert(new.row.run_id, why);
            }
        }
    }
    let creates: Vec<&NewRun> = creates.iter().map(AsRef::as_ref).collect();
    let statements = Statements::of(batch, &creates)?;
    let done = in_turn(lease, statements, Behind::of(batch)?).await.map_err(failure::of_part)?;

    let mut outcomes = HashMap::new();
    let mut changes = Changes::default();
    for (run_id, admission) in admitted {
        if done.created.contains(&run_id.uuid()) {
            outcomes.insert(run_id, admission.outcome());
            turns.entered(admission, &mut changes);
        }
    }
    let written = batch.appends.iter().filter(|a| done.appended.contains(&a.run_id.uuid()));
    for append in written {
        if let Some(spoken) = append.update.as_ref().and_then(|update| update.spoken.as_ref()) {
            turns.heard(append.run_id, spoken, &mut changes);
        }
    }
    let promoted = super::turns::write(lease, turns, changes, batch.at).await?;
    let told = |new: &NewRun| outcomes.get(&new.row.run_id).cloned();
    let mut outcome =
        outcome(lease, batch, &done, |new| told(new).unwrap_or(CreateOutcome::Created)).await?;
    for (new, outcome) in batch.creates.iter().zip(&mut outcome.creates) {
        // A key that is taken says more than why there is no second turn.
        if let (CreateOutcome::AgentMoved, Some(why)) = (&*outcome, refused.remove(&new.row.run_id))
        {
            *outcome = why;
        }
    }
    Ok(BatchOutcome { promoted, ..outcome })
}

/// The runs for which something was written.
struct Done {
    created: HashSet<Uuid>,
    appended: HashSet<Uuid>,
}

fn is_for_the_eye(append: &Append) -> bool {
    append.update.is_none() && append.entries.iter().all(|entry| entry.event_type.is_delta())
}

/// Whether creations and appends can share a statement: no key is to be locked before the runs, and
/// no append is to a run that the statement itself makes and therefore cannot see.
fn is_one_statement(creates: &[&NewRun], appends: &[&Append]) -> bool {
    let new: HashSet<_> = creates.iter().map(|create| create.row.run_id).collect();
    creates.iter().all(|create| create.key.is_none())
        && !appends.iter().any(|append| new.contains(&append.run_id))
}

fn create(batch: &Batch, creates: &[&NewRun], appends: &[&Append]) -> Result<Statement<'static>> {
    let keyed = creates.iter().any(|create| create.key.is_some());
    let sql = if keyed { statements::KEYED_CREATES } else { statements::CREATES_AND_APPENDS };
    let statement = binding::appends(binding::flush(sqlx::query(sql), batch), appends);
    let statement = binding::creates(statement, creates)?;
    let statement = if keyed { binding::keys(statement, creates) } else { statement };
    Ok(binding::families(statement, creates))
}

/// What writes a batch: one statement, or two where creations and appends cannot share one.
enum Statements {
    Appends(Statement<'static>),
    Both(Statement<'static>),
    InTurn(Statement<'static>, Statement<'static>),
}

impl Statements {
    fn of(batch: &Batch, creates: &[&NewRun]) -> Result<Self> {
        let appends: Vec<&Append> = batch.appends.iter().collect();
        let number = |sql| binding::flush(sqlx::query(sql), batch);
        Ok(if creates.is_empty() {
            Self::Appends(if appends.iter().all(|append| is_for_the_eye(append)) {
                binding::deltas(number(statements::DELTAS), &appends)
            } else {
                binding::appends(number(statements::APPENDS), &appends)
            })
        } else if appends.is_empty() || is_one_statement(creates, &appends) {
            Self::Both(create(batch, creates, &appends)?)
        } else {
            let then = binding::appends(number(statements::APPENDS_UNNUMBERED), &appends);
            Self::InTurn(create(batch, creates, &[])?, then)
        })
    }

    const fn is_one(&self) -> bool {
        matches!(self, Self::Appends(_) | Self::Both(_))
    }

    async fn run(self, lease: &mut Lease<'_>) -> std::result::Result<Done, sqlx::Error> {
        Ok(match self {
            Self::Appends(statement) => {
                Done { created: HashSet::new(), appended: ids(lease, statement).await? }
            }
            // No run is in both.
            Self::Both(statement) => {
                let all = ids(lease, statement).await?;
                Done { created: all.clone(), appended: all }
            }
            Self::InTurn(first, then) => {
                let created = ids(lease, first).await?;
                Done { created, appended: ids(lease, then).await? }
            }
        })
    }
}

/// What few batches have, and what is written behind the rest of them, in the same transaction.
struct Behind<'a> {
    /// Facts that new runs begin with.
    copied: Vec<(Uuid, &'a Entry)>,
    /// What the models of forks read first: their own conversation is none.
    pasts: Vec<Placed>,
    actions: actions::Changes,
}

impl<'a> Behind<'a> {
    fn of(batch: &'a Batch) -> Result<Self> {
        let copied = batch
            .creates
            .iter()
            .flat_map(|new| new.copied.iter().map(|entry| (new.row.run_id.uuid(), entry)))
            .collect();
        let forks = batch.creates.iter().filter(|new| new.turn.is_none());
        let pasts = forks.filter_map(Placed::of_fork).collect();
        let mut actions = actions::Changes::default();
        for append in &batch.appends {
            if let Some(open) = append.update.as_ref().and_then(|update| update.actions.as_ref()) {
                actions.add(append.run_id.uuid(), open)?;
            }
        }
        Ok(Self { copied, pasts, actions })
    }

    const fn is_nothing(&self) -> bool {
        self.copied.is_empty() && self.pasts.is_empty() && self.actions.is_empty()
    }
}

async fn in_turn(
    lease: &mut Lease<'_>,
    statements: Statements,
    behind: Behind<'_>,
) -> std::result::Result<Done, sqlx::Error> {
    let done = statements.run(lease).await?;
    let of_new = |(run_id, _): &&(Uuid, &Entry)| done.created.contains(run_id);
    let copied: Vec<_> = behind.copied.iter().filter(of_new).copied().collect();
    if !copied.is_empty() {
        lease.change(binding::facts(sqlx::query(COPY), &copied)).await?;
    }
    let is_new = |placed: &&Placed| done.created.contains(&placed.run_id.uuid());
    let pasts: Vec<Placed> = behind.pasts.iter().filter(is_new).copied().collect();
    super::turns::place(lease, &pasts).await?;
    behind.actions.write(lease, |run_id| done.appended.contains(run_id)).await?;
    Ok(done)
}

async fn ids(
    lease: &mut Lease<'_>,
    statement: Statement<'_>,
) -> std::result::Result<HashSet<Uuid>, sqlx::Error> {
    lease.rows(statement).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Puts what was written into the batch's order, and looks up who had the keys of what was not.
async fn outcome(
    lease: &mut Lease<'_>,
    batch: &Batch,
    done: &Done,
    created: impl Fn(&NewRun) -> CreateOutcome,
) -> Result<BatchOutcome> {
    let appends = batch
        .appends
        .iter()
        .map(|append| {
            if done.appended.contains(&append.run_id.uuid()) {
                AppendOutcome::Written
            } else {
                AppendOutcome::Missed
            }
        })
        .collect();
    let is_created = |create: &NewRun| done.created.contains(&create.row.run_id.uuid());
    let mut taken = HashMap::new();
    if batch.creates.iter().any(|create| create.key.is_some() && !is_created(create)) {
        taken = bound_keys(lease, batch).await?;
    }
    let full = full_families(lease, batch, is_created).await?;
    let creates = (0_i32..)
        .zip(&batch.creates)
        .map(|(ord, create)| {
            if is_created(create) {
                return created(create);
            }
            if create.row.root_run_id.is_some_and(|root| full.contains(&root.uuid())) {
                return CreateOutcome::FamilyFull;
            }
            taken.remove(&ord).map_or(CreateOutcome::AgentMoved, CreateOutcome::KeyTaken)
        })
        .collect();
    Ok(BatchOutcome { creates, appends, promoted: false })
}

/// The families that have no room, among those of runs that were not created.
async fn full_families(
    lease: &mut Lease<'_>,
    batch: &Batch,
    is_created: impl Fn(&NewRun) -> bool,
) -> Result<HashSet<Uuid>> {
    let missing = batch.creates.iter().filter(|create| !is_created(create));
    let roots: HashSet<Uuid> =
        missing.filter_map(|create| Some(create.row.root_run_id?.uuid())).collect();
    if roots.is_empty() {
        return Ok(HashSet::new());
    }
    // The one at the top is not counted.
    let full = i64::try_from(limits::MAX_FAMILY.saturating_sub(1)).unwrap_or(i64::MAX);
    let query = sqlx::query(FULL).bind(roots.into_iter().collect::<Vec<_>>()).bind(full);
    ids(lease, query).await.map_err(failure::of_read)
}

/// The rows of the batch's keys that are bound, by the creation's place in the batch.
async fn bound_keys(lease: &mut Lease<'_>, batch: &Batch) -> Result<HashMap<i32, KeyRow>> {
    let keyed = || {
        (0_i32..)
            .zip(&batch.creates)
            .filter_map(|(ord, c)| c.key.as_ref().map(|new| (ord, &new.key)))
    };
    let query = sqlx::query(KEYS)
        .bind(keyed().map(|(ord, _)| ord).collect::<Vec<_>>())
        .bind(keyed().map(|(_, key)| key.workspace_id.0).collect::<Vec<_>>())
        .bind(keyed().map(|(_, key)| key.scope).collect::<Vec<_>>())
        .bind(keyed().map(|(_, key)| key.key.as_str()).collect::<Vec<_>>());
    let rows = lease.rows(query).await.map_err(failure::of_read)?;
    let read =
        |row| Ok((sqlx::Row::try_get(row, "ord").map_err(failure::of_value)?, keys::read(row)?));
    rows.iter().map(read).collect()
}

/// Deletes old numbers of the lane, a few at a time. Best effort: what is left goes next time.
async fn trim(lease: &mut Lease<'_>, batch: &Batch) {
    let query = sqlx::query(TRIM)
        .bind(batch.node_id.uuid())
        .bind(batch.lane)
        .bind(batch.number.saturating_sub(KEPT_NUMBERS))
        .bind(batch.at.millis().saturating_sub(KEPT_MILLIS));
    let _ = lease.change(query).await;
}
