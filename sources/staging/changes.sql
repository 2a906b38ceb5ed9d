-- name: lock
SELECT pg_try_advisory_lock(hashtextextended('millstream etl changes', 0))

-- name: pending
SELECT id, brand_code, sku, seq, data_version, change_type, created_at
  FROM shop.product_change_log
 WHERE status = 'PENDING' AND id > $1
 ORDER BY id
 LIMIT $2

-- name: processed
UPDATE shop.product_change_log SET status = 'PROCESSED', updated_at = now() WHERE id = ANY($1::bigint[])

-- name: failed
UPDATE shop.product_change_log l
   SET retry_count = l.retry_count + 1, last_error = left(f.error, 1000), updated_at = now(),
       status = CASE WHEN l.retry_count + 1 >= $3 THEN 'FAILED' ELSE 'PENDING' END
  FROM unnest($1::bigint[], $2::text[]) AS f (id, error)
 WHERE l.id = f.id
RETURNING l.id, l.brand_code, l.sku, l.seq, l.status, l.last_error
