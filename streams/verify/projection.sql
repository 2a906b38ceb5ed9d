-- name: source
SELECT video_id::text AS key,
       jsonb_build_array(version, uploader_id, title, description, duration_micros, status, media_status,
                         analysis_status, thumbnail_url, hls_master_playlist, difficulty, summary, tags,
                         raw_subtitle_url, published_at)::text AS content
  FROM catalog.videos

-- name: shown
-- What readers of the projection see, in the same form. Tags that no event told of are none.
SELECT video_id::text AS key,
       jsonb_build_array(version, uploader_id, title, description, duration_micros, status, media_status,
                         analysis_status, thumbnail_url, hls_master_playlist, difficulty, summary,
                         coalesce(tags, '{}'), raw_subtitle_url, published_at)::text AS content
  FROM catalog.video_projection
 WHERE visible

-- name: events
-- {schema}: catalog, or that of the session's tables, where the events of the topic are.
SELECT video_id::text AS key,
       jsonb_build_array(version, created_version, deleted_version, events_applied, field_versions)::text AS content
  FROM {schema}.video_projection

-- name: untaken
-- Of videos that differ from the business table: events of the outbox that the inbox has not. $2: seconds that an event
-- may take from being published to being applied.
SELECT o.aggregate_id::text AS key,
       bool_or(o.published_at IS NULL OR o.published_at > now() - $2::float8 * interval '1 second') AS waiting,
       bool_or(o.published_at <= now() - $2::float8 * interval '1 second') AS lost
  FROM catalog.outbox_events o
 WHERE o.aggregate_id = ANY ($1::uuid[]) AND o.aggregate_type = $3
   AND NOT EXISTS (SELECT FROM catalog.inbox_events i WHERE i.event_id = o.event_id)
   AND NOT EXISTS (SELECT FROM catalog.inbox_floors f WHERE f.aggregate_id = o.aggregate_id AND f.version >= o.version)
 GROUP BY o.aggregate_id

-- name: placed
-- Of videos that differ from the topic: which events only one of the two has. $2 topic, $3 and $4 partitions and the
-- offsets that were read up to. What lies behind the positions of the workers has still to come. Of events that were
-- pruned from the inbox there is only their number.
WITH taken AS (
    SELECT partition, max(last) AS last FROM millstream.positions
     WHERE topic = $2 AND sink LIKE '%/projection' AND NOT starts_with(sink, 'replay ')
     GROUP BY partition
), ends AS (
    SELECT * FROM unnest($3::integer[], $4::bigint[]) AS e (partition, "end")
)
SELECT k.key::text AS key,
       EXISTS (SELECT FROM pg_temp.inbox_events t LEFT JOIN taken USING (partition)
                WHERE t.aggregate_id = k.key AND t."offset" <= taken.last
                  AND t.version > coalesce(f.version, 0)
                  AND NOT EXISTS (SELECT FROM catalog.inbox_events i WHERE i.event_id = t.event_id)) AS lost,
       EXISTS (SELECT FROM pg_temp.inbox_events t LEFT JOIN taken USING (partition)
                WHERE t.aggregate_id = k.key AND (taken.last IS NULL OR t."offset" > taken.last)
                  AND NOT EXISTS (SELECT FROM catalog.inbox_events i WHERE i.event_id = t.event_id)) AS waiting,
       EXISTS (SELECT FROM catalog.inbox_events i LEFT JOIN ends USING (partition)
                WHERE i.aggregate_id = k.key AND i.topic = $2 AND i."offset" >= ends."end"
                  AND NOT EXISTS (SELECT FROM pg_temp.inbox_events t WHERE t.event_id = i.event_id)) AS newer,
       EXISTS (SELECT FROM catalog.inbox_events i LEFT JOIN ends USING (partition)
                WHERE i.aggregate_id = k.key AND (i.topic <> $2 OR i."offset" < ends."end" OR ends."end" IS NULL)
                  AND NOT EXISTS (SELECT FROM pg_temp.inbox_events t WHERE t.event_id = i.event_id))
       OR (f.version IS NOT NULL AND p.events_applied > coalesce(n.events_applied, 0)) AS unread
  FROM unnest($1::uuid[]) AS k (key)
  LEFT JOIN catalog.inbox_floors f ON f.aggregate_id = k.key
  LEFT JOIN catalog.video_projection p ON p.video_id = k.key
  LEFT JOIN pg_temp.video_projection n ON n.video_id = k.key

-- name: outbox
SELECT event_id, aggregate_type, aggregate_id::text AS key, event_type, version, payload, headers::text AS headers,
       occurred_at
  FROM catalog.outbox_events
 WHERE aggregate_id = ANY ($1::uuid[]) AND aggregate_type = $2
 ORDER BY event_id

-- name: take_away
-- Rows that their events will make again at once. Not those with events on record, or forgotten, that were not found
-- again. $2, $3: the events that were found, and their videos.
WITH found AS (
    SELECT video_id, count(DISTINCT event_id) AS events
      FROM unnest($2::uuid[], $3::uuid[]) AS e (event_id, video_id)
     GROUP BY video_id
)
DELETE FROM catalog.video_projection p
 WHERE p.video_id = ANY ($1::uuid[])
   AND NOT EXISTS (SELECT FROM catalog.inbox_events i
                    WHERE i.aggregate_id = p.video_id AND NOT i.event_id = ANY ($2::uuid[]))
   AND NOT EXISTS (SELECT FROM catalog.inbox_floors f LEFT JOIN found ON found.video_id = f.aggregate_id
                    WHERE f.aggregate_id = p.video_id AND coalesce(found.events, 0) < p.events_applied)

-- name: lock_rows
SELECT video_id FROM catalog.video_projection WHERE video_id = ANY ($1::uuid[]) ORDER BY video_id FOR UPDATE

-- name: video
SELECT * FROM catalog.videos WHERE video_id = $1 FOR UPDATE

-- name: held
SELECT version, visible, uploader_id FROM catalog.video_projection WHERE video_id = $1

-- name: highest
SELECT max(version) FROM catalog.outbox_events WHERE aggregate_id = $1 AND aggregate_type = $2

-- name: raise
UPDATE catalog.videos SET version = $2, updated_at = clock_timestamp() WHERE video_id = $1 RETURNING updated_at
