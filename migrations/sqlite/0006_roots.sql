-- How large a family of runs may become: runs that agents called know the run at the top, so that they can
-- be counted when one more is made. The Postgres migration of the same number makes the same column and
-- index. Runs that are there already are not counted.

alter table runs add column root_run_id blob;

-- The runs below a run, however deep. Runs that nobody called are not in it.
create index runs_by_root on runs (root_run_id) where root_run_id is not null;

-- A server of the last version works on: it counts nothing, and what it makes is not counted.
update meta set schema_version = 6;
