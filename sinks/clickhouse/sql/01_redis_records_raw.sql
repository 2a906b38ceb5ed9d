CREATE TABLE IF NOT EXISTS {{database}}.redis_records_raw
(
    cluster String,
    batch DateTime64(9, 'UTC'),
    instance String,
    db UInt64,
    key String,
    type LowCardinality(String),
    member_count UInt64,
    rdb_size UInt64,
    encoding LowCardinality(String),
    expire_at Nullable(DateTime64(3, 'UTC')),
    idle_seconds Nullable(UInt64),
    freq Nullable(UInt8),
    codis_slot Nullable(UInt16),
    redis_slot Nullable(UInt16),
    _topic LowCardinality(String),
    _partition Int32,
    _offset Int64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMMDD(batch)
ORDER BY (cluster, batch, instance, db, key)
TTL toDateTime(batch) + INTERVAL {{ttl_days}} DAY
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1
