-- Families of runs: a run that another one called as a tool. The Postgres migration of the same number
-- makes the same column, table and index.

-- What the children of a run cost that have answered; null when that is not known of one. It is part of
-- what facts change in a row, like the run's own cost.
alter table runs add column children_cost_micros integer default 0;

-- A child came to rest or went on, and its parent must look: written with the child's own row, taken
-- soon after. It carries nothing, for what woke a run is never data. Normally empty.
create table child_signals (
    signal_id integer not null primary key,
    parent_run_id blob not null
) strict;

-- The children of a run, by which lists filter. Runs without a parent are not in it.
create index runs_by_parent on runs (workspace_id, parent_run_id, run_id) where parent_run_id is not null;

-- A server of the last version would end children and leave no signal, so it may not write here.
update meta set schema_version = 4, min_reader_version = 4;
