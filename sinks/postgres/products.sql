-- name: own
INSERT INTO shop.etl_watermark (table_name) VALUES ($1) ON CONFLICT (table_name) DO UPDATE SET table_name = $1
RETURNING run

-- name: lock
SELECT brand_code, sku
  FROM shop.products
 WHERE (brand_code, sku) IN (SELECT * FROM unnest($1::text[], $2::text[]))
 ORDER BY brand_code, sku
   FOR UPDATE

-- name: upsert
WITH given AS (
    SELECT *
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::boolean[], $10::text[]) WITH ORDINALITY
           AS g (brand_code, sku, name, price, tags, attributes, description, image_url, on_sale, data_version, place)
), held AS (
    SELECT p.brand_code, p.sku, p.data_version
      FROM shop.products p JOIN given g ON (p.brand_code, p.sku) = (g.brand_code, g.sku)
), written AS (
    INSERT INTO shop.products AS p
           (brand_code, sku, name, price, tags, attributes, description, image_url, on_sale, data_version)
    SELECT brand_code, sku, name, price::numeric, tags::jsonb, attributes::jsonb, description, image_url, on_sale,
           data_version
      FROM given
     ORDER BY place
        ON CONFLICT (brand_code, sku) DO UPDATE
       SET name = EXCLUDED.name, price = EXCLUDED.price, tags = EXCLUDED.tags, attributes = EXCLUDED.attributes,
           description = EXCLUDED.description, image_url = EXCLUDED.image_url, on_sale = EXCLUDED.on_sale,
           data_version = EXCLUDED.data_version, updated_at = now()
     WHERE p.data_version IS DISTINCT FROM EXCLUDED.data_version
        OR p.description IS DISTINCT FROM EXCLUDED.description
    RETURNING p.brand_code, p.sku, p.data_version
), logged AS (
    INSERT INTO shop.product_change_log (brand_code, sku, seq, data_version, change_type)
    SELECT w.brand_code, w.sku,
           1 + coalesce((SELECT max(l.seq) FROM shop.product_change_log l
                          WHERE (l.brand_code, l.sku) = (w.brand_code, w.sku)), 0),
           w.data_version, CASE WHEN h.sku IS NULL THEN 'CREATE' ELSE 'UPDATE' END
      FROM written w
      JOIN given g ON (g.brand_code, g.sku) = (w.brand_code, w.sku)
      LEFT JOIN held h ON (h.brand_code, h.sku) = (w.brand_code, w.sku)
     WHERE h.data_version IS DISTINCT FROM w.data_version
     ORDER BY g.place
    RETURNING change_type
)
SELECT (SELECT count(*) FROM logged WHERE change_type = 'CREATE') AS created,
       (SELECT count(*) FROM logged WHERE change_type = 'UPDATE') AS updated,
       (SELECT count(*) FROM written) - (SELECT count(*) FROM logged) AS described

-- name: delete
WITH given AS (
    SELECT * FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS g (brand_code, sku, place)
), gone AS (
    DELETE FROM shop.products p USING given g WHERE (p.brand_code, p.sku) = (g.brand_code, g.sku)
    RETURNING p.brand_code, p.sku, p.data_version, g.place
), logged AS (
    INSERT INTO shop.product_change_log (brand_code, sku, seq, data_version, change_type)
    SELECT d.brand_code, d.sku,
           1 + coalesce((SELECT max(l.seq) FROM shop.product_change_log l
                          WHERE (l.brand_code, l.sku) = (d.brand_code, d.sku)), 0),
           d.data_version, 'DELETE'
      FROM gone d
     ORDER BY d.place
    RETURNING 1
)
SELECT count(*) FROM logged

-- name: advance
UPDATE shop.etl_watermark
   SET last_processed_at = $2, brand = $3, style = $4, updated_at = now()
 WHERE table_name = $1
   AND (last_processed_at, brand COLLATE "C", style COLLATE "C") < ($2, $3, $4)

-- name: arrived
UPDATE shop.etl_watermark SET last_row = $2, updated_at = now() WHERE table_name = $1

-- name: held
SELECT CASE WHEN isfinite(last_processed_at) THEN (extract(epoch FROM last_processed_at) * 1000000)::bigint ELSE 0 END
  FROM shop.etl_watermark
 WHERE table_name = $1

-- name: compare
SELECT g.place - 1 AS place,
       CASE WHEN p.sku IS NULL THEN 'created'
            WHEN p.data_version IS DISTINCT FROM g.data_version THEN 'updated'
            WHEN p.description IS DISTINCT FROM g.description THEN 'described'
            ELSE 'unchanged' END AS change
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
       AS g (brand_code, sku, data_version, description, place)
  LEFT JOIN shop.products p ON (p.brand_code, p.sku) = (g.brand_code, g.sku)
