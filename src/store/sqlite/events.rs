//! Writing events and what they change in a run's row; shared by the journal and by guests.

use sqlx::SqliteConnection;

use crate::domain::event::Entry;
use crate::domain::money::Usd;
use crate::domain::time::Timestamp;
use crate::store::{Owner, Result, RunUpdate, rows};

use super::actions::Changes;
use super::failure;
use super::table::Table;

/// `?1`: rows of run_no, seq, kind, and where in `?2` the text lies.
const INSERT_FACTS: &str = "\
insert into run_facts (run_no, seq, kind, data)
select value ->> 0, value ->> 1, value ->> 2, cast(substr(?2, value ->> 3, value ->> 4) as text)
from jsonb_each(?1)";

/// As above without a kind; `?3`: when.
const INSERT_DELTAS: &str = "\
insert into run_deltas (run_no, seq, data, written_at)
select value ->> 0, value ->> 1, cast(substr(?2, value ->> 2, value ->> 3) as text), ?3
from jsonb_each(?1)";

/// By the primary key of `runs`. Owners: 0 stays, 1 goes, 2 stays and without one the run is due.
/// `crashes` counts drivers lost since the last step that was committed.
const UPDATE_RUNS: &str = "\
update runs
set rev = runs.rev + v.guest,
    status = v.status,
    fact_seq = v.fact_seq,
    crashes = iif(v.steps_completed > runs.steps_completed, 0, runs.crashes),
    steps_completed = v.steps_completed,
    input_tokens = v.input_tokens,
    cached_input_tokens = v.cached_input_tokens,
    output_tokens = v.output_tokens,
    reasoning_tokens = v.reasoning_tokens,
    cost_micros = v.cost_micros,
    children_cost_micros = v.children_cost_micros,
    status_message = v.status_message,
    started_at = v.started_at,
    completed_at = v.completed_at,
    node_id = iif(v.owner = 1, null, runs.node_id),
    due_at = iif(v.owner = 1 or (v.owner = 2 and runs.node_id is null), v.due_at, runs.due_at)
from (
    select value ->> 0 as run_no, value ->> 1 as guest, value ->> 2 as status,
        value ->> 3 as fact_seq, value ->> 4 as steps_completed, value ->> 5 as input_tokens,
        value ->> 6 as cached_input_tokens, value ->> 7 as output_tokens,
        value ->> 8 as reasoning_tokens, value ->> 9 as cost_micros,
        value ->> 10 as status_message, value ->> 11 as started_at, value ->> 12 as completed_at,
        value ->> 13 as owner, value ->> 14 as due_at, value ->> 15 as children_cost_micros
    from jsonb_each(?1)
) v
where runs.run_no = v.run_no";

/// What parents must look at: a child comes to rest (3 and from 10 on), or goes on. Before
/// [`UPDATE_RUNS`], which forgets how it was. By the primary key of `runs`.
const SIGNAL: &str = "\
insert into child_signals (parent_run_id)
select r.parent_run_id
from jsonb_each(?1) v
cross join runs r
on r.run_no = v.value ->> 0
where r.parent_run_id is not null
and (r.status = 3 or v.value ->> 2 = 3 or v.value ->> 2 >= 10)";

/// Events and updates of many runs that go in together.
#[derive(Debug)]
pub(super) struct Events {
    facts: Table,
    fact_texts: Vec<u8>,
    deltas: Table,
    delta_texts: Vec<u8>,
    updates: Table,
    /// Whether one of the updates is of a run that has a parent.
    has_child: bool,
    actions: Changes,
}

/// Who changes a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// Its driver, under its claim.
    Driver,
    /// Somebody else: raises `rev`, so that the driver notices.
    Guest,
}

impl Events {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self {
            facts: Table::new(),
            fact_texts: Vec::new(),
            deltas: Table::new(),
            delta_texts: Vec::new(),
            updates: Table::new(),
            has_child: false,
            actions: Changes::new(),
        }
    }

    /// An event of the run of this number.
    pub(super) fn entry(&mut self, run_no: i64, entry: &Entry) {
        let delta = entry.event_type.is_delta();
        let (table, texts) = if delta {
            (&mut self.deltas, &mut self.delta_texts)
        } else {
            (&mut self.facts, &mut self.fact_texts)
        };
        // SQL counts from 1.
        let from = texts.len() + 1;
        texts.extend_from_slice(&entry.data);
        table.row().int(run_no).int(entry.seq);
        if !delta {
            table.int(entry.event_type.code());
        }
        table.int(offset(from)).int(offset(entry.data.len()));
    }

    /// A change of the row of the run of this number, and of its open actions.
    ///
    /// # Errors
    /// As [`Changes::add`].
    pub(super) fn update(&mut self, run_no: i64, update: &RunUpdate, writes: Writes) -> Result<()> {
        if let Some(open) = &update.actions {
            self.actions.add(run_no, open)?;
        }
        let (owner, due_at) = match update.owner {
            Owner::Keep => (0, None),
            Owner::Nobody { due_at } => (1, due_at),
            Owner::DueIfUnowned(at) => (2, Some(at)),
        };
        self.updates
            .row()
            .int(run_no)
            .int(writes == Writes::Guest)
            .int(update.status.code())
            .int(update.fact_seq)
            .int(update.steps_completed)
            .int(rows::stored_count(update.usage.input_tokens))
            .int(rows::stored_count(update.usage.cached_input_tokens))
            .int(rows::stored_count(update.usage.output_tokens))
            .int(rows::stored_count(update.usage.reasoning_tokens))
            .maybe_int(update.cost.map(Usd::micros))
            .maybe_text(update.status_message.as_deref())
            .maybe_int(update.started_at.map(Timestamp::millis))
            .maybe_int(update.completed_at.map(Timestamp::millis))
            .int(owner)
            .maybe_int(due_at.map(Timestamp::millis))
            .maybe_int(update.children_cost.map(Usd::micros));
        self.has_child |= update.parent_run_id.is_some();
        Ok(())
    }

    /// Writes everything, inside the transaction that is open.
    pub(super) async fn write(
        self,
        connection: &mut SqliteConnection,
        written_at: Timestamp,
    ) -> Result<()> {
        if !self.facts.is_empty() {
            let query = sqlx::query(INSERT_FACTS).bind(self.facts.json()).bind(self.fact_texts);
            query.execute(&mut *connection).await.map_err(failure::of)?;
        }
        if !self.deltas.is_empty() {
            let query = sqlx::query(INSERT_DELTAS)
                .bind(self.deltas.json())
                .bind(self.delta_texts)
                .bind(written_at.millis());
            query.execute(&mut *connection).await.map_err(failure::of)?;
        }
        if !self.updates.is_empty() {
            let updates = self.updates.json();
            if self.has_child {
                let query = sqlx::query(SIGNAL).bind(updates.clone());
                query.execute(&mut *connection).await.map_err(failure::of)?;
            }
            let query = sqlx::query(UPDATE_RUNS).bind(updates);
            query.execute(&mut *connection).await.map_err(failure::of)?;
        }
        self.actions.write(connection).await
    }
}

fn offset(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// For `plans.rs`.
#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[UPDATE_RUNS, SIGNAL];
