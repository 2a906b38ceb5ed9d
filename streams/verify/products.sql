-- name: temporary
-- What the source, and the last run's rows in the topic, say of each product: the row that came last counts.
CREATE TEMPORARY TABLE source_products (brand_code text, sku text, data_version text, description text,
                                        at timestamptz, PRIMARY KEY (brand_code, sku));
CREATE TEMPORARY TABLE topic_products (LIKE source_products INCLUDING ALL)

-- name: put
-- {table}. Without a data_version: a row that cannot become a product, or a delete.
INSERT INTO pg_temp.{table} AS known (brand_code, sku, data_version, description, at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
    ON CONFLICT (brand_code, sku) DO UPDATE
   SET data_version = EXCLUDED.data_version, description = EXCLUDED.description, at = EXCLUDED.at

-- name: wanted
SELECT jsonb_build_array(brand_code, sku)::text AS key,
       jsonb_build_array(data_version, description)::text AS content
  FROM pg_temp.{table} WHERE data_version IS NOT NULL

-- name: held
-- All products but those whose row in the source is refused: nobody knows what they should be.
SELECT jsonb_build_array(p.brand_code, p.sku)::text AS key,
       jsonb_build_array(p.data_version, p.description)::text AS content
  FROM shop.products p
 WHERE NOT EXISTS (SELECT FROM pg_temp.source_products s
                    WHERE (s.brand_code, s.sku) = (p.brand_code, p.sku) AND s.data_version IS NULL)

-- name: held_of_topic
SELECT jsonb_build_array(p.brand_code, p.sku)::text AS key,
       jsonb_build_array(p.data_version, p.description)::text AS content
  FROM shop.products p
 WHERE EXISTS (SELECT FROM pg_temp.topic_products t WHERE (t.brand_code, t.sku) = (p.brand_code, p.sku))

-- name: refused
SELECT count(*) FROM pg_temp.source_products WHERE data_version IS NULL

-- name: to_come
-- Of products that differ: those whose row the next run reads, because it lies behind the watermark.
SELECT jsonb_build_array(s.brand_code, s.sku)::text AS key
  FROM pg_temp.source_products s
  LEFT JOIN shop.etl_watermark w ON w.table_name = $2
 WHERE jsonb_build_array(s.brand_code, s.sku)::text = ANY ($1)
   AND s.at IS NOT NULL AND s.at <= now()
   AND (w.last_processed_at IS NULL
        OR (s.at, s.brand_code COLLATE "C", s.sku COLLATE "C")
           > (w.last_processed_at, w.brand COLLATE "C", w.style COLLATE "C"))

-- name: run
SELECT run, last_row FROM shop.etl_watermark WHERE table_name = $1

-- name: rows_of
-- {columns}, {table}. In the order in which a run reads them.
SELECT {columns}
  FROM {table}
 WHERE (style_brand_no::text, style_no::text) IN (SELECT * FROM unnest($1::text[], $2::text[]))
 ORDER BY src_updated_at IS NULL OR src_updated_at > now() + interval '5 minutes', src_updated_at

-- name: any
SELECT EXISTS (SELECT FROM {table})
