CREATE TABLE IF NOT EXISTS {{database}}.video_events
(
    event_id     String,
    event_type   LowCardinality(String),
    aggregate_id String,
    version      Int64,
    changes      String,
    digest       String,
    _topic       LowCardinality(String),
    _partition   Int32,
    _offset      Int64
)
ENGINE = MergeTree
ORDER BY (aggregate_id, version, _topic, _partition, _offset)
SETTINGS non_replicated_deduplication_window = 10000
