-- The whole schema of the first version. The SQLite migration of the same number makes the same
-- tables with the same columns.
--
-- Habits: times are milliseconds since 1970 as bigint, money is micro-dollars as bigint, statuses and
-- kinds are smallint, JSON is text (it is sent as it was written, never queried). Keys that are text
-- are collate "C": one order everywhere, and cheap. There are no foreign keys: on the event tables
-- they cost half of a flush, and every write here is one statement or transaction that knows both sides.

-- Exactly one row. `min_reader_version`: the oldest server that may open this database.
-- `log_generation` rises when a log may have lost its end (a restore from a backup).
create table meta (
    schema_version int not null,
    min_reader_version int not null,
    log_generation int not null
);
insert into meta (schema_version, min_reader_version, log_generation) values (1, 1, 1);

create table workspaces (
    workspace_id int not null primary key,
    name text not null,
    created_at bigint not null
);
insert into workspaces (workspace_id, name, created_at) values (1, 'default', 0);

create table agents (
    workspace_id int not null,
    agent_id text collate "C" not null,
    current_version int not null,
    managed_by smallint not null,
    archived_at bigint,
    created_at bigint not null,
    primary key (workspace_id, agent_id)
);

create table agent_versions (
    workspace_id int not null,
    agent_id text collate "C" not null,
    version int not null,
    settings text not null,
    created_at bigint not null,
    primary key (workspace_id, agent_id, version)
);

-- Narrow, because it is updated about six times a run; the free space keeps those updates on their
-- page (HOT). An ordinary step changes no indexed column: status, node_id and due_at change about
-- three times a run.
create table runs (
    run_id uuid not null primary key,
    workspace_id int not null,
    agent_id text collate "C" not null,
    agent_version int not null,
    status smallint not null,
    node_id uuid,
    rev int not null,
    epoch int not null,
    due_at bigint,
    crashes int not null,
    log_format smallint not null default 1,
    fact_seq int not null,
    steps_completed int not null,
    input_tokens bigint not null,
    cached_input_tokens bigint not null,
    output_tokens bigint not null,
    reasoning_tokens bigint not null,
    cost_micros bigint,
    status_message text,
    conversation_id uuid,
    parent_run_id uuid,
    forked_from_run_id uuid,
    end_user_id text,
    created_at bigint not null,
    started_at bigint,
    completed_at bigint,
    deleted_at bigint
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0
);
-- Lists page by run_id, which is a time.
create index runs_by_workspace on runs (workspace_id, run_id);
create index runs_by_status on runs (workspace_id, status, run_id);
create index runs_by_agent on runs (workspace_id, agent_id, run_id);
-- What an engine must look at.
create index runs_due on runs (due_at, run_id) where node_id is null and due_at is not null;
-- What each node owns.
create index runs_owned on runs (node_id, run_id) where node_id is not null;

-- Written once. The input is in the run's first event, the result in its last.
create table run_bodies (
    run_id uuid not null primary key,
    model text not null,
    config text not null,
    max_steps int not null,
    estimated_cost_micros bigint,
    metadata text not null
);

create table run_labels (
    workspace_id int not null,
    key text collate "C" not null,
    value text collate "C" not null,
    run_id uuid not null,
    primary key (workspace_id, key, value, run_id)
);

-- Insert-only, so the default of a fifth of a growing table between two vacuums would be ever rarer.
create table run_facts (
    run_id uuid not null,
    seq int not null,
    kind smallint not null,
    data text not null,
    primary key (run_id, seq)
) with (
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 200000
);

-- Partitioned by the database's date of writing, so that old deltas go by dropping a table. What has
-- no partition of its own goes to run_deltas_rest: a missing partition never fails a write.
create table run_deltas (
    run_id uuid not null,
    seq int not null,
    data text not null,
    written_on date not null default current_date,
    primary key (run_id, seq, written_on)
) partition by range (written_on);
create table run_deltas_rest partition of run_deltas default;

-- Makes the partitions of `days` days from `first` on, and answers how many were new.
--
-- A partition is made on its own and then attached: that lets writers of the parent go on, where
-- `create table … partition of` would wait for them and hold them up. A day of which rows already lie
-- in run_deltas_rest is left there.
create function make_delta_partitions(first date, days int) returns int
language plpgsql as $$
declare
    day date;
    partition text;
    made int := 0;
begin
    -- Two nodes that start together take turns.
    perform pg_advisory_xact_lock(7230413);
    for i in 0 .. days - 1 loop
        day := first + i;
        partition := 'run_deltas_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass(partition) is not null;
        continue when exists (select 1 from run_deltas_rest where written_on = day);
        execute format(
            'create table %I (like run_deltas including defaults including constraints including indexes) '
            'with (autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000, '
            'autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000)',
            partition);
        execute format(
            'alter table run_deltas attach partition %I for values from (%L) to (%L)',
            partition, day, day + 1);
        made := made + 1;
    end loop;
    return made;
end
$$;

-- One row a flush: its number is taken exactly once. `at` is negative where a resolver took the
-- number so that a batch in doubt can never come in any more.
create table flushes (
    node_id uuid not null,
    lane smallint not null,
    n bigint not null,
    at bigint not null,
    primary key (node_id, lane, n)
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);

create table idempotency (
    workspace_id int not null,
    scope text collate "C" not null,
    key text collate "C" not null,
    fingerprint bytea not null,
    resource text not null,
    created_at bigint not null,
    primary key (workspace_id, scope, key)
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 50000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 50000,
    autovacuum_vacuum_cost_delay = 0
);

-- Updated every second by every node, so it is kept small on its one page.
create table nodes (
    node_id uuid not null primary key,
    beat bigint not null,
    dead boolean not null,
    started_at bigint not null
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0
);
