-- Every statement the sink runs. {{…}} is put in by us (names we checked, conditions below), {name:Type} is bound by
-- the server. Text after a `-- name:` line up to the next one is one statement.

-- name: insert
-- The condition is the fence (design, hole a): an owner whose generation was overtaken writes 0 rows, and its token
-- stays unspent for the owner that follows. The gate is a dump batch's: it is not closed (closing.py).
INSERT INTO {{table}} ({{columns}})
SELECT {{columns}} FROM input({{structure}})
WHERE (
    SELECT max(generation) FROM {{database}}.millstream_fence
    WHERE topic_id = {fence_topic_id:String} AND epoch = {fence_epoch:UInt32} AND partition = {fence_partition:Int32}
) <= {fence_generation:Int64} AND {{gate}}
FORMAT ArrowStream

-- name: closed
SELECT count() FROM {{database}}.millstream_closed_batches
WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')

-- name: closed_runs
SELECT DISTINCT runs FROM {{database}}.millstream_closed_batches
WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')

-- name: close_batch
INSERT INTO {{database}}.millstream_closed_batches (cluster, batch, runs)
SELECT {cluster:String}, fromUnixTimestamp64Nano({batch:Int64}, 'UTC'), {runs:String}
WHERE (
    SELECT count() FROM {{database}}.millstream_closed_batches
    WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
) = 0

-- name: count_range
SELECT count() FROM {{table}}
WHERE {{restriction}} AND _topic = {label:String} AND _partition = {partition:Int32}
  AND _offset BETWEEN {first:Int64} AND {last:Int64}

-- name: delete_range
DELETE FROM {{table}}
WHERE {{restriction}} AND _topic = {label:String} AND _partition = {partition:Int32}
  AND _offset BETWEEN {first:Int64} AND {last:Int64}

-- name: kill
KILL QUERY WHERE startsWith(query_id, {prefix:String}) AND endsWith(query_id, {suffix:String}) SYNC

-- name: fence_record
INSERT INTO {{database}}.millstream_fence (topic, topic_id, epoch, partition, label, generation)
SELECT {topic:String}, {topic_id:String}, {epoch:UInt32}, {partition:Int32}, {label:String}, {generation:Int64}

-- name: fence_read
SELECT label, groupUniqArray((topic_id, epoch)), maxIf(generation, topic_id = {topic_id:String} AND epoch = {epoch:UInt32})
FROM {{database}}.millstream_fence
WHERE partition = {partition:Int32} AND (topic = {topic:String} OR topic_id = {topic_id:String})
GROUP BY label

-- name: fence_labels
SELECT DISTINCT label FROM {{database}}.millstream_fence
WHERE topic_id = {topic_id:String} AND epoch = {epoch:UInt32} AND partition = {partition:Int32}

-- name: batch_completed
SELECT count() FROM {{database}}.import_batches_completed
WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')

-- name: batch_instances
SELECT instance, count() FROM {{database}}.redis_records_raw
WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
GROUP BY instance

-- name: count_voided
SELECT count() FROM {{database}}.redis_records_raw WHERE {{restriction}} AND NOT ({{valid}})

-- name: delete_voided
DELETE FROM {{database}}.redis_records_raw WHERE {{restriction}} AND NOT ({{valid}})

-- name: complete_batch
INSERT INTO {{database}}.import_batches_completed (cluster, batch)
SELECT {cluster:String}, fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
WHERE (
    SELECT count() FROM {{database}}.import_batches_completed
    WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
) = 0

-- name: databases
SELECT name FROM system.databases WHERE name = {database:String}

-- name: tables
SELECT name, engine, create_table_query FROM system.tables
WHERE database = {database:String} AND name IN {names:Array(String)}

-- name: columns
SELECT name, type, default_kind FROM system.columns
WHERE database = {database:String} AND table = {table:String} ORDER BY position
