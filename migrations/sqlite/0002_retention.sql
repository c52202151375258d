-- What retention needs to be quick and to be honest. The Postgres migration of the same number makes
-- the same column and index, and what belongs to its partitions.

-- A log may miss deltas that were written before this (milliseconds since 1970), and no others: raised
-- in the transaction that deletes them. It is kept here and not computed from the settings, because
-- those can be changed, and what was deleted under the old ones stays away.
alter table meta add column deltas_gone_before integer not null default 0;

-- Keys are deleted oldest first. They are only ever inserted, so this grows at its right end.
create index idempotency_by_age on idempotency (created_at);

update meta set schema_version = 2;
