-- name: look
SELECT current_setting('wal_level') AS wal_level,
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user) AS may_replicate,
       (SELECT plugin FROM pg_replication_slots WHERE slot_name = $1) AS plugin,
       (SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1) AS wal_status,
       (SELECT database FROM pg_replication_slots WHERE slot_name = $1) AS slot_database,
       current_database() AS database,
       EXISTS (SELECT FROM pg_publication WHERE pubname = $2 AND pubinsert) AS publishes,
       EXISTS (SELECT FROM pg_publication_tables
                WHERE pubname = $2 AND schemaname = 'catalog' AND tablename = 'outbox_events') AS has_table,
       current_setting('max_slot_wal_keep_size') AS wal_keep

-- name: create_slot
SELECT pg_create_logical_replication_slot($1, 'pgoutput')

-- name: stats
-- What the server keeps for the slot. safe_wal_size: bytes until max_slot_wal_keep_size invalidates it (NULL: no bound).
SELECT slot_name::text AS slot_name, active, wal_status, safe_wal_size,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS kept_bytes,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS lag_bytes
  FROM pg_replication_slots
 WHERE slot_name = $1

-- name: horizon
-- Taken before the stream is read: these events are visible now, so they were committed before this LSN. By their seqs:
-- a transaction that is open now may hold a lower one, and is in the stream when it commits.
SELECT (SELECT coalesce(array_agg(seq), '{}') FROM catalog.outbox_events
         WHERE published_at IS NULL AND parked_at IS NULL AND last_error IS NULL
           AND aggregate_type = ANY ($1::text[])) AS seqs,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint AS lsn

-- name: orphans
-- The stream has passed the horizon: what is still untouched of it was written before the slot was made, or was lost.
UPDATE catalog.outbox_events
   SET last_error = 'not in the stream: written before the slot, or while there was none'
 WHERE seq = ANY ($1::bigint[]) AND published_at IS NULL AND parked_at IS NULL AND last_error IS NULL

-- name: held
-- Of the batch $1..$4, what has an earlier unpublished event outside of it: that one failed, or waits itself (T50).
SELECT e.seq
  FROM unnest($1::bigint[], $2::uuid[], $3::bigint[], $4::text[]) AS e (seq, aggregate_id, version, aggregate_type)
 WHERE EXISTS (
       SELECT FROM catalog.outbox_events b
        WHERE b.aggregate_id = e.aggregate_id AND b.aggregate_type = e.aggregate_type AND b.version < e.version
          AND b.published_at IS NULL AND b.seq <> ALL ($5::bigint[])
       OFFSET 0)

-- name: leave
-- To the polling relay of what is left: parked, or held back. Written before the batch is published, so that a
-- successor can tell them from what was.
UPDATE catalog.outbox_events e
   SET last_error = f.error,
       parked_at = CASE WHEN f.parked THEN now() ELSE e.parked_at END,
       delivery_attempts = e.delivery_attempts + f.parked::integer
  FROM unnest($1::bigint[], $2::text[], $3::boolean[]) AS f (seq, error, parked)
 WHERE e.seq = f.seq AND e.published_at IS NULL

-- name: mark
UPDATE catalog.outbox_events
   SET published_at = now(), lock_token = NULL, locked_at = NULL
 WHERE seq = ANY ($1::bigint[]) AND published_at IS NULL AND (last_error IS NULL OR NOT $2::boolean)
