CREATE TABLE IF NOT EXISTS {{database}}.import_batches_completed
(
    cluster String,
    batch DateTime64(9, 'UTC')
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(batch)
ORDER BY (cluster, batch)
TTL toDateTime(batch) + INTERVAL {{ttl_days}} DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
