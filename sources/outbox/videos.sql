-- name: create
INSERT INTO catalog.videos (video_id, uploader_id, title, description, duration_micros, status, media_status,
                            analysis_status, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp(), clock_timestamp())
ON CONFLICT (video_id) DO NOTHING
RETURNING version, updated_at

-- name: lock
SELECT * FROM catalog.videos WHERE video_id = $1 FOR UPDATE

-- name: update
-- fields: names out of a fixed list. The time is taken once the row is ours, not at the start of the transaction.
UPDATE catalog.videos SET version = version + 1, updated_at = clock_timestamp(){fields}
 WHERE video_id = $1
RETURNING version, updated_at

-- name: delete
DELETE FROM catalog.videos WHERE video_id = $1 RETURNING version + 1 AS version, clock_timestamp() AS updated_at
