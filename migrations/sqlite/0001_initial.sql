-- The whole schema of the first version. The Postgres migration of the same number makes the same
-- tables with the same columns; what only one of them has, says why.
--
-- Habits: times are milliseconds since 1970, money is micro-dollars, statuses and kinds are small
-- numbers, ids are UUIDs in 16 bytes, JSON is text (it is sent as it was written, never queried).
-- Tables are strict: a value of the wrong type is refused, as on Postgres. There are no foreign keys:
-- on the event tables they cost half of a flush, and every write here knows both sides.

-- Exactly one row. `min_reader_version`: the oldest server that may open this database.
-- `log_generation` rises when a log may have lost its end (a restore from a backup).
create table meta (
    schema_version integer not null,
    min_reader_version integer not null,
    log_generation integer not null
) strict;
insert into meta (schema_version, min_reader_version, log_generation) values (1, 1, 1);

create table workspaces (
    workspace_id integer not null primary key,
    name text not null,
    created_at integer not null
) strict;
insert into workspaces (workspace_id, name, created_at) values (1, 'default', 0);

create table agents (
    workspace_id integer not null,
    agent_id text not null,
    current_version integer not null,
    managed_by integer not null,
    archived_at integer,
    created_at integer not null,
    primary key (workspace_id, agent_id)
) strict, without rowid;

-- With a rowid: settings may have many kilobytes, which a tree of keys carries badly.
create table agent_versions (
    workspace_id integer not null,
    agent_id text not null,
    version integer not null,
    settings text not null,
    created_at integer not null,
    primary key (workspace_id, agent_id, version)
) strict;

-- Narrow, because it is updated about six times a run. `run_no` (only here) is what the events are
-- kept under: it grows by one, so that the events of runs which live at the same time share pages.
create table runs (
    run_no integer not null primary key,
    run_id blob not null unique,
    workspace_id integer not null,
    agent_id text not null,
    agent_version integer not null,
    status integer not null,
    node_id blob,
    rev integer not null,
    epoch integer not null,
    due_at integer,
    crashes integer not null,
    log_format integer not null default 1,
    fact_seq integer not null,
    steps_completed integer not null,
    input_tokens integer not null,
    cached_input_tokens integer not null,
    output_tokens integer not null,
    reasoning_tokens integer not null,
    cost_micros integer,
    status_message text,
    conversation_id blob,
    parent_run_id blob,
    forked_from_run_id blob,
    end_user_id text,
    created_at integer not null,
    started_at integer,
    completed_at integer,
    deleted_at integer
) strict;
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
    run_id blob not null primary key,
    model text not null,
    config text not null,
    max_steps integer not null,
    estimated_cost_micros integer,
    metadata text not null
) strict;

create table run_labels (
    workspace_id integer not null,
    key text not null,
    value text not null,
    run_id blob not null,
    primary key (workspace_id, key, value, run_id)
) strict, without rowid;

-- Events lie in the order in which they were written, beside a narrow index. Under random keys the
-- same events wrote several times as many pages.
create table run_facts (
    run_no integer not null,
    seq integer not null,
    kind integer not null,
    data text not null,
    unique (run_no, seq)
) strict;

-- `written_at` (here in place of Postgres' daily partitions) is what retention goes by.
create table run_deltas (
    run_no integer not null,
    seq integer not null,
    data text not null,
    written_at integer not null,
    unique (run_no, seq)
) strict;

-- Postgres also has `flushes`, with which it settles a commit whose answer was lost. Here the database
-- is in our own process: an answer is not lost, and what was written can be read.

create table idempotency (
    workspace_id integer not null,
    scope text not null,
    key text not null,
    fingerprint blob not null,
    resource text not null,
    created_at integer not null,
    primary key (workspace_id, scope, key)
) strict, without rowid;

create table nodes (
    node_id blob not null primary key,
    beat integer not null,
    dead integer not null,
    started_at integer not null
) strict, without rowid;
