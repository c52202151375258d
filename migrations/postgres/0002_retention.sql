-- What retention needs to be quick and to be honest. The SQLite migration of the same number makes the
-- same column and index.

-- A log may miss deltas that were written before this (milliseconds since 1970), and no others: raised
-- in the transaction that deletes them. It is kept here and not computed from the settings, because
-- those can be changed, and what was deleted under the old ones stays away.
alter table meta add column deltas_gone_before bigint not null default 0;

-- Keys are deleted oldest first. They are only ever inserted, so this grows at its right end.
create index idempotency_by_age on idempotency (created_at);

-- Normally empty; what does go there must be found again without a walk.
create index run_deltas_rest_by_day on run_deltas_rest (written_on);

-- Drops the oldest partition of run_deltas if it is of a day before `before`, and answers its day;
-- null when there is nothing to drop (yet).
--
-- Dropping needs the parent for itself, and whoever comes later queues up behind the wait for it: so
-- the wait is short, and the next pass tries again. (To detach it concurrently is impossible beside a
-- default partition.)
--
-- A run that has not ended goes on behind its newest event. If that is a delta, the number of the
-- next event is known by it alone: such a day is kept until the run has gone on. (3 is a run that
-- waits for somebody: its newest event is a fact.)
create function drop_delta_partition(before date) returns date
language plpgsql
set lock_timeout = '100ms'
as $$
declare
    partition text;
    day date;
    born_before uuid;
begin
    select c.relname
    into partition
    from pg_inherits i
    join pg_class c
    on c.oid = i.inhrelid
    where i.inhparent = 'run_deltas'::regclass
    and c.relname ~ '^run_deltas_[0-9]{8}$'
    order by c.relname
    limit 1;
    day := to_date(right(partition, 8), 'YYYYMMDD');
    if day is null or day >= before then
        return null;
    end if;
    -- Run ids begin with their time. A day more, since clocks differ.
    born_before := rpad(
        lpad(to_hex((extract(epoch from day + 2) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
    if exists (
        select 1
        from workspaces w
        cross join unnest(array[1, 2, 4]::smallint[]) s (status)
        cross join lateral (
            select r.run_id, r.fact_seq
            from runs r
            where (r.workspace_id, r.status, r.run_id)
                > (w.workspace_id, s.status, '00000000-0000-0000-0000-000000000000'::uuid)
            and (r.workspace_id, r.status, r.run_id) < (w.workspace_id, s.status, born_before)
            order by r.workspace_id, r.status, r.run_id
        ) r
        cross join lateral (
            select d.seq
            from run_deltas d
            where d.run_id = r.run_id
            and d.seq > r.fact_seq
            and d.written_on = day
            limit 1
        ) d
    ) then
        return null;
    end if;
    update meta
    set deltas_gone_before =
        greatest(deltas_gone_before, (extract(epoch from day + 1) * 1000)::bigint);
    -- Another node may have been quicker.
    execute format('drop table if exists %I', partition);
    return day;
end
$$;

update meta set schema_version = 2;
