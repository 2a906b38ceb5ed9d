-- What reports ask. Keys are bytes: they travel as hex in both directions. {{rows}} is `rows` or `two` below.

-- name: report_published
SELECT cluster, toUnixTimestamp64Nano(batch) FROM {{database}}.import_batches_completed
GROUP BY cluster, batch ORDER BY batch DESC, cluster DESC

-- name: report_rows
-- The raw table, as the view shows the latest batch only (facts 2.1, defect 2).
{{database}}.redis_records_raw
WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')

-- name: report_cells
SELECT instance, db, type, encoding, count(), sum(rdb_size), sum(member_count), max(rdb_size)
FROM {{rows}}
GROUP BY instance, db, type, encoding

-- name: report_expiry
SELECT
    if(isNull(expire_at), {{never}}, arrayCount(b -> b <= toUnixTimestamp64Milli(assumeNotNull(expire_at)), {{bounds}}))
        AS step,
    count(), sum(rdb_size)
FROM {{rows}}
GROUP BY step

-- name: report_top
SELECT hex(substring(key, 1, {{shown}})), length(key), rdb_size, member_count, type, encoding, instance, db,
    toUnixTimestamp64Milli(expire_at)
FROM {{rows}}
ORDER BY rdb_size DESC, key, instance, db
LIMIT {{count}}

-- name: report_big
SELECT hex(substring(key, 1, {{shown}})), length(key), rdb_size, member_count, type, encoding, instance, db,
    toUnixTimestamp64Milli(expire_at)
FROM {{rows}} AND rdb_size > if(type = 'string', {{string}}, {{other}})
ORDER BY rdb_size DESC, key, instance, db
LIMIT 1 BY type

-- name: report_over
SELECT type, count(), sum(rdb_size)
FROM {{rows}} AND rdb_size > if(type = 'string', {{string}}, {{other}})
GROUP BY type ORDER BY type

-- name: report_slots_recorded
SELECT countIf(isNotNull(codis_slot)), countIf(isNotNull(redis_slot)) FROM {{rows}}

-- name: report_slots
SELECT {{slot}} AS slot, count(), sum(rdb_size), uniqExact(instance)
FROM {{rows}} AND isNotNull(slot)
GROUP BY slot

-- name: report_prefixes
-- One level of the tree of prefixes: of each of these prefixes, what its keys go on with, by the next byte.
SELECT hex(substring(min(k), 1, {{bytes}})), hex(substring(max(k), 1, {{bytes}})), count(), sum(rdb_size), any(n)
FROM
(
    SELECT substring(key, 1, {{bytes}}) AS k, rdb_size, arrayJoin({{lengths}}) AS n
    FROM {{rows}}
)
WHERE length(k) > n AND substring(k, 1, n) IN ({{prefixes}})
GROUP BY substring(k, 1, n + 1)
HAVING sum(rdb_size) >= {{weight}}

-- name: report_changes
-- Each key once; what names a change is said in schemas/survey.py.
SELECT db, key,
    countIf(batch = {{newer}}) AS there,
    countIf(batch = {{older}}) AS was,
    sumIf(rdb_size, batch = {{older}}) AS size_before,
    sumIf(rdb_size, batch = {{newer}}) AS size_after,
    if(there > 0, minIf(type, batch = {{newer}}), minIf(type, batch = {{older}})) AS of_type,
    if(there > 0, minIf(instance, batch = {{newer}}), minIf(instance, batch = {{older}})) AS on_instance,
    toUnixTimestamp64Milli(if(there > 0, minIf(expire_at, batch = {{newer}}), minIf(expire_at, batch = {{older}}))) AS ends,
    multiIf(was = 0, 'new', there = 0, 'gone', size_after > size_before, 'grown', size_after < size_before, 'shrunk', 'same')
        AS main,
    arrayJoin(arrayFilter(c -> c != '', [
        main,
        if(there = 0 AND ifNull(ends <= {{newer_ms}}, 0), 'expired', ''),
        if(there > 0 AND ifNull(ends > {{newer_ms}} AND ends <= {{until_ms}}, 0), 'expiring', '')
    ])) AS change
FROM {{database}}.redis_records_raw
WHERE cluster = {cluster:String} AND batch IN ({{older}}, {{newer}})
GROUP BY db, key

-- name: report_changed
SELECT change, of_type, on_instance, count(), sum(size_before), sum(size_after)
FROM ({{changes}})
GROUP BY change, of_type, on_instance
SETTINGS max_bytes_before_external_group_by = {{memory}}

-- name: report_changed_prefixes
SELECT hex(substring(key, 1, n)) AS prefix, change, count(), sum(size_before), sum(size_after)
FROM (SELECT *, arrayJoin({{lengths}}) AS n FROM ({{changes}}))
WHERE length(key) >= n AND substring(key, 1, n) IN ({{prefixes}})
GROUP BY prefix, change
SETTINGS max_bytes_before_external_group_by = {{memory}}

-- name: report_changed_keys
SELECT change, hex(substring(key, 1, {{shown}})), length(key), db, of_type, on_instance, size_before, size_after, ends
FROM ({{changes}})
WHERE change != 'same'
ORDER BY
    if(change = 'expiring', toInt64(size_after), toInt64(abs(toInt64(size_after) - toInt64(size_before)))) DESC, key, db
LIMIT {{count}} BY change
SETTINGS max_bytes_before_external_group_by = {{memory}}
