-- ClickHouse. {table}, {ranges}, {which} and {row} are put in by us.

-- name: row
-- A row as one text; streams.verify.batch makes the same one out of a Parquet file.
concat(toString(db), '|', key, '|', type, '|', toString(member_count), '|', toString(rdb_size), '|', encoding, '|', ifNull(toString(toUnixTimestamp64Milli(expire_at)), '-'), '|', ifNull(toString(idle_seconds), '-'), '|', ifNull(toString(freq), '-'), '|', ifNull(toString(codis_slot), '-'), '|', ifNull(toString(redis_slot), '-'))

-- name: sums
SELECT instance, CRC32(key) % {ranges} AS range, count(), sum(CRC32({row}))
  FROM {table}
 WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
 GROUP BY instance, range

-- name: keys
SELECT instance, db, hex(key), count(), sum(CRC32({row}))
  FROM {table}
 WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
   AND CRC32(key) % {ranges} IN ({which})
 GROUP BY instance, db, key

-- name: completed
SELECT count() FROM {table}
 WHERE cluster = {cluster:String} AND batch = fromUnixTimestamp64Nano({batch:Int64}, 'UTC')
