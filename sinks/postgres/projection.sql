-- name: inbox
INSERT INTO {schema}.inbox_events (event_id, event_type, aggregate_id, version, digest, "offset", topic, partition)
SELECT e.*, $7, $8
  FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::bytea[], $6::bigint[])
       AS e (event_id, event_type, aggregate_id, version, digest, at)
 ORDER BY e.event_id, e.at
    ON CONFLICT (event_id) DO NOTHING
RETURNING event_id, digest

-- name: held
SELECT event_id, digest FROM {schema}.inbox_events WHERE event_id = ANY($1::uuid[])

-- name: collisions
SELECT DISTINCT ON (n.event_id) n.event_id, i.event_id AS other
  FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bytea[]) AS n (event_id, aggregate_id, version, digest)
  JOIN {schema}.inbox_events i USING (aggregate_id, version)
 WHERE i.event_id <> n.event_id AND i.digest <> n.digest
 ORDER BY n.event_id, i.event_id

-- name: errors
INSERT INTO {schema}.projection_errors AS known
       (digest, kind, error, event_id, event_type, aggregate_id, version, "offset", key, value, headers, seen,
        topic, partition)
SELECT e.digest, e.kind, e.error, e.event_id, e.event_type, e.aggregate_id, e.version, e.at, e.key, e.value,
       e.headers::jsonb, e.seen, $13, $14
  FROM unnest($1::bytea[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::uuid[], $7::bigint[], $8::bigint[],
              $9::bytea[], $10::bytea[], $11::text[], $12::bigint[])
       AS e (digest, kind, error, event_id, event_type, aggregate_id, version, at, key, value, headers, seen)
 ORDER BY e.digest
    ON CONFLICT (digest) DO UPDATE SET seen = known.seen + EXCLUDED.seen, last_seen_at = now()
RETURNING digest, xmax = 0 AS is_new

-- name: merge
WITH event AS MATERIALIZED (
    SELECT *
      FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::jsonb[])
           AS e (event_id, event_type, video_id, version, changes)
), video AS (
    SELECT video_id, count(*) AS events, max(version) AS version,
           coalesce(max(version) FILTER (WHERE event_type = 'video.created'), 0) AS created_version,
           coalesce(max(version) FILTER (WHERE event_type = 'video.deleted'), 0) AS deleted_version
      FROM event
     GROUP BY video_id
), winner AS (
    SELECT DISTINCT ON (e.video_id, f.key)
           e.video_id, f.key, e.version, jsonb_build_array(e.version, e.event_id, f.value) AS entry
      FROM event e CROSS JOIN jsonb_each(e.changes) f
     ORDER BY e.video_id, f.key, e.version DESC, e.event_id DESC, (f.value #>> '{}') COLLATE "C" DESC
), fields AS (
    SELECT video_id, jsonb_object_agg(w.key, w.entry) AS fields
      FROM winner w JOIN video v USING (video_id)
     WHERE w.key = 'occurred_at' OR w.version > v.deleted_version
     GROUP BY video_id
)
INSERT INTO {schema}.video_projection AS p
       (video_id, version, created_version, deleted_version, events_applied, field_versions)
SELECT video_id, version, created_version, deleted_version, events, fields
  FROM video JOIN fields USING (video_id)
 ORDER BY video_id
    ON CONFLICT (video_id) DO UPDATE
   SET version = greatest(p.version, EXCLUDED.version),
       created_version = greatest(p.created_version, EXCLUDED.created_version),
       deleted_version = greatest(p.deleted_version, EXCLUDED.deleted_version),
       events_applied = p.events_applied + EXCLUDED.events_applied,
       field_versions = catalog.merge_fields(p.field_versions, EXCLUDED.field_versions,
                                             greatest(p.deleted_version, EXCLUDED.deleted_version))

-- name: prune
-- A batch of old events, oldest first. $1 seconds, $2 rows. The floor goes up with them, so that they are no gap.
WITH old AS MATERIALIZED (
    DELETE FROM {schema}.inbox_events
     WHERE event_id IN (SELECT event_id FROM {schema}.inbox_events
                         WHERE received_at < now() - $1::float8 * interval '1 second'
                         ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING aggregate_id, version
), floor AS (
    INSERT INTO {schema}.inbox_floors AS f (aggregate_id, version)
    SELECT aggregate_id, max(version) FROM old GROUP BY aggregate_id ORDER BY aggregate_id
        ON CONFLICT (aggregate_id) DO UPDATE SET version = greatest(f.version, EXCLUDED.version)
)
SELECT count(*) FROM old

-- name: alone
SELECT pg_try_advisory_lock(hashtext('millstream.inbox'))

-- name: states
-- A number for what a row holds: tells whether it was changed. Nobody else changes it until we are done.
SELECT video_id, events_applied, hashtextextended(p::text, 0) AS state
  FROM {schema}.video_projection p
 WHERE video_id = ANY($1::uuid[])
 ORDER BY video_id
   FOR UPDATE

-- name: recount
-- `events_applied` after events were merged that had been merged before: what is on record of the videos ($1). Where the
-- inbox was pruned: what the row said before ($2), and those that are new for certain ($3, $4).
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS g (video_id, before)
), fresh AS (
    SELECT e.video_id, count(*) AS events
      FROM unnest($3::uuid[], $4::bigint[]) AS e (video_id, version)
      JOIN {schema}.inbox_floors f ON f.aggregate_id = e.video_id
     WHERE e.version > f.version
     GROUP BY e.video_id
), known AS (
    SELECT aggregate_id AS video_id FROM {schema}.inbox_events WHERE aggregate_id = ANY($1::uuid[])
    UNION ALL
    SELECT aggregate_id FROM {schema}.projection_errors WHERE aggregate_id = ANY($1::uuid[]) AND kind = 'event_id'
), counted AS (
    SELECT g.video_id,
           CASE WHEN f.aggregate_id IS NULL THEN k.events
                ELSE greatest(k.events, g.before + coalesce(n.events, 0)) END AS events
      FROM given g
      JOIN (SELECT video_id, count(*) AS events FROM known GROUP BY video_id) AS k USING (video_id)
      LEFT JOIN {schema}.inbox_floors f ON f.aggregate_id = g.video_id
      LEFT JOIN fresh n USING (video_id)
)
UPDATE {schema}.video_projection p SET events_applied = c.events
  FROM counted c
 WHERE p.video_id = c.video_id AND p.events_applied <> c.events
