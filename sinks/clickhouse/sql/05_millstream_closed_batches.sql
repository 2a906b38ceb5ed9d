CREATE TABLE IF NOT EXISTS {{database}}.millstream_closed_batches
(
    cluster String,
    batch DateTime64(9, 'UTC'),
    runs String COMMENT 'digest of the runs that the batch is published with'
)
ENGINE = ReplacingMergeTree
ORDER BY (cluster, batch, runs)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
