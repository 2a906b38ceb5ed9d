CREATE VIEW IF NOT EXISTS {{database}}.redis_records_view AS
SELECT
    cluster, batch, instance, db, key, type, member_count, rdb_size, encoding,
    expire_at, idle_seconds, freq, codis_slot, redis_slot
FROM {{database}}.redis_records_raw
WHERE (cluster, batch) IN
(
    SELECT cluster, max(batch) FROM {{database}}.import_batches_completed GROUP BY cluster
)
