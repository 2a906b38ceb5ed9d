-- name: columns
SELECT attname FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped

-- name: watermark
SELECT last_processed_at, brand, style FROM shop.etl_watermark WHERE table_name = $1

-- name: now
SELECT now()

-- name: ordered
SELECT {columns}, src_updated_at::timestamptz AS _at
  FROM {table}
 WHERE src_updated_at >= $1::timestamptz AND src_updated_at <= $4::timestamptz
   AND style_brand_no IS NOT NULL AND style_no IS NOT NULL
   AND (src_updated_at, style_brand_no::text COLLATE "C", style_no::text COLLATE "C")
       > ($1::timestamptz, $2::text, $3::text)
 ORDER BY src_updated_at, style_brand_no::text COLLATE "C", style_no::text COLLATE "C"
 LIMIT $5

-- name: odd
SELECT {columns}, src_updated_at::timestamptz AS _at
  FROM {table}
 WHERE src_updated_at IS NULL OR src_updated_at > $1::timestamptz OR style_brand_no IS NULL OR style_no IS NULL
 ORDER BY style_brand_no::text COLLATE "C", style_no::text COLLATE "C"

-- name: vanished
SELECT brand_code, sku
  FROM shop.products p
 WHERE (brand_code COLLATE "C", sku COLLATE "C") > ($1::text, $2::text)
   AND NOT EXISTS (SELECT FROM {table} s WHERE (s.style_brand_no::text, s.style_no::text) = (p.brand_code, p.sku))
 ORDER BY brand_code COLLATE "C", sku COLLATE "C"
 LIMIT $3

-- name: rows
SELECT EXISTS (SELECT FROM {table})

-- name: lock
SELECT pg_try_advisory_lock(hashtextextended('millstream etl ' || $1, 0))

-- name: claim
INSERT INTO shop.etl_watermark AS w (table_name, run) VALUES ($1, $2)
    ON CONFLICT (table_name) DO UPDATE SET run = $2, last_row = 0, updated_at = now()

-- name: arrived
SELECT last_row FROM shop.etl_watermark WHERE table_name = $1 AND run = $2
