CREATE VIEW IF NOT EXISTS {{database}}.video_projection AS
WITH register AS
(
    SELECT
        aggregate_id, event_type, version, event_id, digest, changes, field,
        JSONExtractRaw(changes, field) AS raw,
        max(if(event_type = 'video.deleted', version, 0)) OVER (PARTITION BY aggregate_id) AS gone,
        if(startsWith(raw, '"'), JSONExtractString(changes, field), raw) AS value,
        (version, event_id, raw = 'null', value) AS place
    FROM {{database}}.video_events
    ARRAY JOIN JSONExtractKeys(changes) AS field
)
SELECT
    aggregate_id AS video_id,
    max(version) AS version,
    maxIf(register.version, event_type = 'video.created') AS created_version,
    any(gone) AS deleted_version,
    uniqExact(event_id, digest) AS events_applied,
    created_version > deleted_version AS visible,
    toInt64(argMaxIf(value, place, field = 'occurred_at')) AS occurred_at_micros,
{{fields}}
FROM register
GROUP BY aggregate_id
