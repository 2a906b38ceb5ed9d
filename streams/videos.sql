-- name: video
SELECT version, created_version, deleted_version, visible,
       to_jsonb(p) - '{field_versions,visible,created_version,deleted_version,events_applied,version}'::text[] AS video
  FROM catalog.video_projection p
 WHERE video_id = $1
