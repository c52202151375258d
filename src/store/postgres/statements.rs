//! The statements of a flush, put together from parts that are the same in all of them.
//!
//! A flush is one statement that commits by itself: one round trip, one transaction. Its parts are
//! data-modifying CTEs; they all see the snapshot from before the statement, so each takes what it
//! needs from the arrays that were bound, never from a table that another part writes.
//!
//! - `numbered` takes the flush's number, which is what makes a lost answer decidable. The others look
//!   at it first, so that a number that is taken is what a second try fails with.
//! - `held` locks the appended runs whose fence holds, in ascending order. Whatever else is bound for
//!   a run counts only if the run is in it.
//! - `(… in (select …)) is true` is a hashed look-up. A bare `in` would become a join, and with hash
//!   and merge joins off (see `settings.rs`) that is quadratic.
//!
//! Parameters: $1–$4 the flush, $5–$28 appends, from $29 on creations (the last two are of
//! families, and keys come before them).

macro_rules! numbered {
    () => {
        "\
with numbered as (
    insert into flushes (node_id, lane, n, at)
    values ($1, $2, $3, $4)
    returning n
), "
    };
}

/// By the primary key of `runs`: a look-up a fence, in ascending order, each locked as it is found. The
/// limit keeps the join from being turned round, and `is not distinct from` keeps `runs_owned` out of it,
/// through which each fence would be looked for among all runs of the node.
macro_rules! held {
    ($lock:literal) => {
        concat!(
            "\
held as materialized (
    select r.run_id, r.status
    from (
        select v.run_id, v.rev
        from unnest($5::uuid[], $6::int[]) v (run_id, rev)
        where exists (select 1 from numbered)
        order by v.run_id
    ) v
    cross join lateral (
        select r.run_id, r.status
        from runs r
        where r.run_id = v.run_id
        and r.rev = v.rev
        and r.node_id is not distinct from $1
        limit 1
        for ",
            $lock,
            "
    ) r
), "
        )
    };
}

/// By the primary key of `runs`. `crashes` counts drivers lost since the last step that was committed.
/// `>=` and `<=` stand for `=` because it could also be answered by a walk through the whole index, and
/// a plan from when that was short would go on doing so; of this pair only look-ups can be made.
///
/// A run that comes to rest (3 and from 10 on) or goes on leaves a signal for its parent.
macro_rules! appended {
    () => {
        "\
facts as (
    insert into run_facts (run_id, seq, kind, data)
    select v.run_id, v.seq, v.kind, v.data
    from unnest($7::uuid[], $8::int[], $9::smallint[], $10::text[]) v (run_id, seq, kind, data)
    where (v.run_id in (select held.run_id from held)) is true
), deltas as (
    insert into run_deltas (run_id, seq, data)
    select v.run_id, v.seq, v.data
    from unnest($11::uuid[], $12::int[], $13::text[]) v (run_id, seq, data)
    where (v.run_id in (select held.run_id from held)) is true
), updated as (
    update runs r
    set status = v.status,
        fact_seq = v.fact_seq,
        crashes = case when v.steps_completed > r.steps_completed then 0 else r.crashes end,
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
        node_id = case v.owner when 1 then null else r.node_id end,
        due_at = case
            when v.owner = 1 or (v.owner = 2 and r.node_id is null) then v.due_at
            else r.due_at
        end
    from unnest($14::uuid[], $15::smallint[], $16::int[], $17::int[], $18::bigint[], $19::bigint[],
        $20::bigint[], $21::bigint[], $22::bigint[], $23::text[], $24::bigint[], $25::bigint[],
        $26::smallint[], $27::bigint[], $28::bigint[])
        v (run_id, status, fact_seq, steps_completed, input_tokens, cached_input_tokens,
        output_tokens, reasoning_tokens, cost_micros, status_message, started_at, completed_at,
        owner, due_at, children_cost_micros)
    where r.run_id >= v.run_id
    and r.run_id <= v.run_id
    and (v.run_id in (select held.run_id from held)) is true
    returning r.run_id, r.parent_run_id, r.status
), signalled as (
    insert into child_signals (parent_run_id)
    select u.parent_run_id
    from updated u
    join held h
    on h.run_id = u.run_id
    where u.parent_run_id is not null
    and (h.status = 3 or u.status = 3 or u.status >= 10)
) "
    };
}

/// What was asked for, as far as the agent (by its primary key) still is as the caller saw it. A fork is
/// of the version of what it was forked from, which need not be the current one. A run that another one
/// called finds room in its family, which is counted by `runs_by_root`.
macro_rules! passing {
    ($more:literal, $columns:literal) => {
        concat!(
            "\
, passing as materialized (
    select v.*
    from unnest($29::int[], $30::uuid[], $31::text[], $32::int[], $33::smallint[], $34::uuid[],
        $35::int[], $36::int[], $37::bigint[], $38::int[], $39::int[], $40::int[], $41::bigint[],
        $42::bigint[], $43::bigint[], $44::bigint[], $45::bigint[], $46::text[], $47::uuid[],
        $48::uuid[], $49::uuid[], $50::text[], $51::bigint[], $52::bigint[], $53::bigint[],
        $54::text[], $55::text[], $56::int[], $57::bigint[], $58::text[], $59::int[],
        $60::smallint[], $61::text[]",
            $more,
            ")
        v (workspace_id, run_id, agent_id, agent_version, status, node_id, rev, epoch, due_at,
        crashes, fact_seq, steps_completed, input_tokens, cached_input_tokens, output_tokens,
        reasoning_tokens, cost_micros, status_message, conversation_id, parent_run_id,
        forked_from_run_id, end_user_id, created_at, started_at, completed_at, model, config,
        max_steps, estimated_cost_micros, metadata, first_seq, first_kind, first_data",
            $columns,
            ")
    cross join lateral (
        select a.current_version
        from agents a
        where a.workspace_id = v.workspace_id
        and a.agent_id = v.agent_id
        and (a.current_version = v.agent_version or v.forked_from_run_id is not null)
        and a.archived_at is null
        limit 1
    ) a
    where exists (select 1 from numbered)
    and (v.root_run_id is null or v.room >= (
        select count(*)
        from runs r
        where r.root_run_id = v.root_run_id
    ))
), "
        )
    };
}

/// Keys are bound in ascending order, each for the first creation that names it. A neighbour's open
/// key is waited for; what it then turns out to have bound is not in `bound`.
macro_rules! bound {
    () => {
        "\
named as materialized (
    select distinct on (p.workspace_id, p.scope, p.key) p.*
    from passing p
    where p.scope is not null
    order by p.workspace_id, p.scope, p.key, p.ord
), bound as materialized (
    insert into idempotency (workspace_id, scope, key, fingerprint, resource, created_at)
    select n.workspace_id, n.scope, n.key, n.fingerprint, n.resource, n.key_created_at
    from named n
    order by n.workspace_id, n.scope, n.key
    on conflict do nothing
    returning workspace_id, scope, key
), new as materialized (
    select p.*
    from passing p
    where p.scope is null
    or p.run_id in (
        select n.run_id
        from named n
        join bound b
        on b.workspace_id = n.workspace_id
        and b.scope = n.scope
        and b.key = n.key
    )
), "
    };
}

macro_rules! created {
    ($new:literal) => {
        concat!(
            "\
new_runs as (
    insert into runs (run_id, workspace_id, agent_id, agent_version, status, node_id, rev, epoch,
        due_at, crashes, fact_seq, steps_completed, input_tokens, cached_input_tokens,
        output_tokens, reasoning_tokens, cost_micros, status_message, conversation_id,
        parent_run_id, forked_from_run_id, end_user_id, created_at, started_at, completed_at,
        root_run_id)
    select v.run_id, v.workspace_id, v.agent_id, v.agent_version, v.status, v.node_id, v.rev,
        v.epoch, v.due_at, v.crashes, v.fact_seq, v.steps_completed, v.input_tokens,
        v.cached_input_tokens, v.output_tokens, v.reasoning_tokens, v.cost_micros,
        v.status_message, v.conversation_id, v.parent_run_id, v.forked_from_run_id, v.end_user_id,
        v.created_at, v.started_at, v.completed_at, v.root_run_id
    from ",
            $new,
            " v
), new_bodies as (
    insert into run_bodies (run_id, model, config, max_steps, estimated_cost_micros, metadata)
    select v.run_id, v.model, v.config, v.max_steps, v.estimated_cost_micros, v.metadata
    from ",
            $new,
            " v
), new_facts as (
    insert into run_facts (run_id, seq, kind, data)
    select v.run_id, v.first_seq, v.first_kind, v.first_data
    from ",
            $new,
            " v
), new_labels as (
    insert into run_labels (workspace_id, key, value, run_id)
    select v.workspace_id, v.key, v.value, v.run_id
    from unnest($62::int[], $63::text[], $64::text[], $65::uuid[]) v (workspace_id, key, value, run_id)
    where (v.run_id in (select n.run_id from ",
            $new,
            " n)) is true
) "
        )
    };
}

/// Only deltas: nothing in `runs` changes, and a share lock keeps everybody else from changing it.
pub(super) const DELTAS: &str = concat!(
    numbered!(),
    held!("share"),
    "\
deltas as (
    insert into run_deltas (run_id, seq, data)
    select v.run_id, v.seq, v.data
    from unnest($7::uuid[], $8::int[], $9::text[]) v (run_id, seq, data)
    where (v.run_id in (select held.run_id from held)) is true
)
select held.run_id
from held"
);

/// Facts, and the deltas that were waiting with them.
pub(super) const APPENDS: &str =
    concat!(numbered!(), held!("no key update"), appended!(), "select held.run_id from held");

/// Creations without keys, and appends.
pub(super) const CREATES_AND_APPENDS: &str = concat!(
    numbered!(),
    held!("no key update"),
    appended!(),
    passing!(", $66::uuid[], $67::bigint[]", ", root_run_id, room"),
    created!("passing"),
    "\
select held.run_id from held
union all
select passing.run_id from passing"
);

/// Creations with keys. Bound with no appends: keys are locked before runs, and within one statement
/// nothing says in which order its parts lock.
pub(super) const KEYED_CREATES: &str = concat!(
    numbered!(),
    held!("no key update"),
    appended!(),
    passing!(
        ", $66::text[], $67::text[], $68::bytea[], $69::text[], $70::bigint[], $71::int[], $72::uuid[], \
         $73::bigint[]",
        ", scope, key, fingerprint, resource, key_created_at, ord, root_run_id, room"
    ),
    bound!(),
    created!("new"),
    "select new.run_id from new"
);

/// The second statement of a transaction whose first one took the number.
pub(super) const APPENDS_UNNUMBERED: &str = concat!(
    "with numbered as (select $2::smallint, $3::bigint, $4::bigint), ",
    held!("no key update"),
    appended!(),
    "select held.run_id from held"
);
