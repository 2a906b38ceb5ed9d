-- name: lock
SELECT pg_advisory_xact_lock(hashtextextended($1, 7770))

-- name: get
SELECT topic_id, epoch, first, last, crc, rows, details
  FROM millstream.positions
 WHERE sink = $1 AND topic = $2 AND partition = $3

-- name: advance
INSERT INTO millstream.positions (sink, topic, partition, topic_id, epoch, first, last, crc, rows, details)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb)
ON CONFLICT (sink, topic, partition) DO UPDATE
   SET topic_id = EXCLUDED.topic_id, epoch = EXCLUDED.epoch, first = EXCLUDED.first, last = EXCLUDED.last,
       crc = EXCLUDED.crc, rows = EXCLUDED.rows, details = EXCLUDED.details, written_at = now()
