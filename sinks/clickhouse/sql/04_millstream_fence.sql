CREATE TABLE IF NOT EXISTS {{database}}.millstream_fence
(
    topic String,
    partition Int32,
    topic_id String,
    epoch UInt32,
    label String COMMENT 'what _topic holds in rows of this log',
    generation SimpleAggregateFunction(max, Int64)
)
ENGINE = AggregatingMergeTree
ORDER BY (topic, partition, topic_id, epoch, label)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
