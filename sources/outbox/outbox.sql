-- name: claim
-- A relay's batch, under a lease. $1 token, $2 seconds of the lease, $3 rows, $4 aggregate types, $5 bytes of payload,
-- $6 only rows that failed or were requeued.
-- Order (T50): a row is claimed only if no earlier unpublished row of its aggregate stays outside of the claim. OFFSET 0
-- keeps the first look a probe of the index per row; as a join it would read all that is pending.
WITH candidates AS MATERIALIZED (
    SELECT e.seq, e.aggregate_type, e.aggregate_id, e.version, octet_length(e.payload) AS bytes
      FROM catalog.outbox_events e
     WHERE e.published_at IS NULL
       AND e.parked_at IS NULL
       AND e.available_at <= now()
       AND (e.lock_token IS NULL OR e.locked_at <= now() - $2::float8 * interval '1 second')
       AND e.aggregate_type = ANY ($4::text[])
       AND (NOT $6::boolean OR e.last_error IS NOT NULL)
       AND NOT EXISTS (
           SELECT FROM catalog.outbox_events b
            WHERE b.aggregate_id = e.aggregate_id AND b.aggregate_type = e.aggregate_type AND b.version < e.version
              AND b.published_at IS NULL
              AND (b.parked_at IS NOT NULL
                   OR b.available_at > now()
                   OR b.locked_at > now() - $2::float8 * interval '1 second')
           OFFSET 0)
     ORDER BY e.seq
     LIMIT $3
       FOR UPDATE OF e SKIP LOCKED
), fitting AS (
    SELECT c.*
      FROM (SELECT candidates.*, sum(bytes) OVER (ORDER BY seq) - bytes AS before FROM candidates) c
     WHERE c.before <= $5::bigint
), claimed AS (
    -- What another relay is claiming at this moment was skipped above: its later versions must wait as well.
    SELECT f.seq
      FROM fitting f
     WHERE NOT EXISTS (
           SELECT FROM catalog.outbox_events b
            WHERE b.aggregate_id = f.aggregate_id AND b.aggregate_type = f.aggregate_type AND b.version < f.version
              AND b.published_at IS NULL
              AND NOT EXISTS (SELECT FROM fitting o WHERE o.seq = b.seq))
)
UPDATE catalog.outbox_events e
   SET lock_token = $1, locked_at = now()
  FROM claimed
 WHERE e.seq = claimed.seq AND e.published_at IS NULL
RETURNING e.seq, e.event_id, e.aggregate_type, e.aggregate_id::text AS key, e.event_type, e.version, e.payload,
          e.headers::text AS headers, e.occurred_at, e.delivery_attempts

-- name: mark
-- Published: once, and only under the lease that they were claimed with (T52).
UPDATE catalog.outbox_events
   SET published_at = now(), lock_token = NULL, locked_at = NULL
 WHERE seq = ANY ($2::bigint[]) AND lock_token = $1 AND published_at IS NULL

-- name: release
-- Given back untried: an earlier event of the aggregate failed, or the relay stops.
UPDATE catalog.outbox_events
   SET lock_token = NULL, locked_at = NULL
 WHERE seq = ANY ($2::bigint[]) AND lock_token = $1 AND published_at IS NULL

-- name: fail
-- $2.. rows: seq, error, whether it counts towards parking, whether it is final. $6 first backoff, $7 largest, $8 attempts.
-- The exponent is clamped: 2 ^ 33 seconds must not overflow into a short wait (T54).
UPDATE catalog.outbox_events e
   SET delivery_attempts = e.delivery_attempts + 1,
       last_error = f.error,
       lock_token = NULL,
       locked_at = NULL,
       available_at = now() + LEAST($7::float8, $6::float8 * 2 ^ LEAST(e.delivery_attempts, 30)) * interval '1 second',
       parked_at = CASE WHEN f.final OR (f.counts AND e.delivery_attempts + 1 >= $8::integer) THEN now() END
  FROM unnest($2::bigint[], $3::text[], $4::boolean[], $5::boolean[]) AS f (seq, error, counts, final)
 WHERE e.seq = f.seq AND e.lock_token = $1 AND e.published_at IS NULL
RETURNING e.seq, e.event_id::text AS event_id, e.aggregate_type, e.aggregate_id::text AS aggregate_id, e.version,
          e.delivery_attempts, e.last_error, e.available_at, e.parked_at,
          (SELECT count(*) FROM catalog.outbox_events b
            WHERE e.parked_at IS NOT NULL AND b.aggregate_id = e.aggregate_id AND b.aggregate_type = e.aggregate_type
              AND b.version > e.version AND b.published_at IS NULL) AS held

-- name: next_due
-- Seconds until a row becomes free that is not now: after a failure, a delay, or a lease that ends. NULL: none.
SELECT extract(epoch FROM min(greatest(available_at, locked_at + $1::float8 * interval '1 second')) - now())::float8
  FROM (SELECT available_at, locked_at FROM catalog.outbox_events
         WHERE published_at IS NULL AND parked_at IS NULL ORDER BY seq LIMIT 10000) AS pending
 WHERE greatest(available_at, locked_at + $1::float8 * interval '1 second') > now()

-- name: stats
SELECT count(*) AS pending,
       count(*) FILTER (WHERE parked_at IS NOT NULL) AS parked,
       count(*) FILTER (WHERE locked_at > now() - $1::float8 * interval '1 second') AS leased,
       count(*) FILTER (WHERE delivery_attempts > 0 AND parked_at IS NULL) AS retrying,
       count(*) FILTER (WHERE NOT aggregate_type = ANY ($2::text[])) AS unrouted,
       coalesce(max(delivery_attempts), 0) AS max_attempts,
       coalesce(extract(epoch FROM now() - min(occurred_at)), 0)::float8 AS oldest_seconds,
       (SELECT count(*) FROM catalog.outbox_events h
         WHERE h.published_at IS NULL AND h.parked_at IS NULL
           AND EXISTS (SELECT FROM catalog.outbox_events p
                        WHERE p.published_at IS NULL AND p.parked_at IS NOT NULL AND p.aggregate_id = h.aggregate_id
                          AND p.aggregate_type = h.aggregate_type AND p.version < h.version)) AS held,
       (SELECT count(*) FROM catalog.outbox_events
         WHERE published_at > now() - interval '1 minute')::float8 / 60 AS published_per_second,
       (SELECT max(published_at) FROM catalog.outbox_events WHERE published_at IS NOT NULL) AS last_published_at
  FROM catalog.outbox_events
 WHERE published_at IS NULL

-- name: parked
SELECT event_id::text AS event_id, aggregate_type, aggregate_id::text AS aggregate_id, version, delivery_attempts,
       last_error, parked_at
  FROM catalog.outbox_events
 WHERE published_at IS NULL AND parked_at IS NOT NULL
 ORDER BY parked_at, seq
 LIMIT $1

-- name: requeue
-- $1 events, $2 parked ones, $3 all since then. A lease that runs is left to its relay.
UPDATE catalog.outbox_events
   SET published_at = NULL, parked_at = NULL, delivery_attempts = 0, available_at = now(),
       last_error = 'requeued at ' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
 WHERE (event_id = ANY ($1::uuid[]) OR ($2::boolean AND published_at IS NULL AND parked_at IS NOT NULL)
        OR occurred_at >= $3::timestamptz)
   AND (published_at IS NOT NULL OR parked_at IS NOT NULL OR lock_token IS NULL)

-- name: missing
SELECT given::text FROM unnest($1::uuid[]) AS given
 WHERE NOT EXISTS (SELECT FROM catalog.outbox_events WHERE event_id = given)

-- name: prune
DELETE FROM catalog.outbox_events
 WHERE seq IN (SELECT seq FROM catalog.outbox_events
                WHERE published_at < now() - $1::float8 * interval '1 second'
                ORDER BY published_at LIMIT $2 FOR UPDATE SKIP LOCKED)

-- name: prunable
SELECT count(*) FROM catalog.outbox_events WHERE published_at < now() - $1::float8 * interval '1 second'

-- name: export
SELECT event_id::text AS event_id, aggregate_type, aggregate_id::text AS aggregate_id, event_type, version, occurred_at,
       headers::text AS headers, payload, source_event_id::text AS source_event_id, published_at, parked_at,
       delivery_attempts, last_error
  FROM catalog.outbox_events
 WHERE published_at IS NULL OR occurred_at >= $1::timestamptz
 ORDER BY seq

-- name: insert
INSERT INTO catalog.outbox_events
       (event_id, aggregate_type, aggregate_id, event_type, version, payload, headers, occurred_at, available_at,
        source_event_id)
VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, coalesce($9, now()), $10)

-- name: done
-- What a command with this id did earlier.
SELECT event_type, aggregate_type, aggregate_id, version, occurred_at FROM catalog.outbox_events WHERE event_id = $1
