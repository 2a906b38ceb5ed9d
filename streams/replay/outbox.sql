-- name: count
SELECT count(*) FROM catalog.outbox_events
 WHERE aggregate_type = $1 AND ($2::timestamptz IS NULL OR occurred_at >= $2) AND ($3::uuid IS NULL OR event_id > $3)

-- name: page
-- By id, which the primary key serves: the projection does not mind the order.
SELECT event_id, aggregate_type, aggregate_id::text AS key, event_type, version, payload, headers::text AS headers,
       occurred_at
  FROM catalog.outbox_events
 WHERE aggregate_type = $1 AND ($2::timestamptz IS NULL OR occurred_at >= $2) AND ($3::uuid IS NULL OR event_id > $3)
 ORDER BY event_id
 LIMIT $4

-- name: unread
-- Events that the projection holds, the shadow does not, and the outbox has.
SELECT o.event_id, o.aggregate_type, o.aggregate_id::text AS key, o.event_type, o.version, o.payload,
       o.headers::text AS headers, o.occurred_at
  FROM catalog.inbox_events i JOIN catalog.outbox_events o USING (event_id)
 WHERE o.aggregate_type = $1 AND ($2::timestamptz IS NULL OR o.occurred_at >= $2)
   AND ($3::uuid IS NULL OR o.event_id > $3)
   AND NOT EXISTS (SELECT FROM catalog_rebuild.inbox_events j WHERE j.event_id = i.event_id)
 ORDER BY o.event_id
 LIMIT $4
