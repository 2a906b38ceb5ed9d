-- Products, what changed of them, and how far the staging table was read (facts 2.4).
CREATE SCHEMA IF NOT EXISTS shop;

CREATE TABLE shop.products (
    id           bigint        PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    brand_code   varchar(64)   NOT NULL,
    sku          varchar(64)   NOT NULL,
    name         varchar(255)  NOT NULL DEFAULT '',
    price        numeric(10,2) NOT NULL DEFAULT 0,
    tags         jsonb         NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(tags) = 'array'),
    attributes   jsonb         NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(attributes) = 'object'),
    description  text,
    image_url    varchar(512),
    on_sale      boolean,
    data_version varchar(64)   NOT NULL,
    created_at   timestamptz   NOT NULL DEFAULT now(),
    updated_at   timestamptz   NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX idx_products_brand_sku ON shop.products (brand_code, sku);
COMMENT ON TABLE shop.products IS 'The catalogue; written by streams.products only';
COMMENT ON COLUMN shop.products.data_version IS 'MD5 of the normalised content, without description (T68)';

CREATE TABLE shop.product_change_log (
    id           bigint        PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    brand_code   varchar(64)   NOT NULL,
    sku          varchar(64)   NOT NULL,
    seq          bigint        NOT NULL CHECK (seq > 0),
    data_version varchar(64)   NOT NULL,
    status       text          NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'PROCESSED', 'FAILED')),
    change_type  text          NOT NULL CHECK (change_type IN ('CREATE', 'UPDATE', 'DELETE')),
    retry_count  integer       NOT NULL DEFAULT 0 CHECK (retry_count >= 0),
    last_error   varchar(1000),
    created_at   timestamptz   NOT NULL DEFAULT now(),
    updated_at   timestamptz   NOT NULL DEFAULT now(),
    UNIQUE (brand_code, sku, seq)
);
CREATE INDEX product_change_log_pending ON shop.product_change_log (id) WHERE status = 'PENDING';
COMMENT ON TABLE shop.product_change_log IS 'Changes of products, each written in the transaction that makes it (T65)';
COMMENT ON COLUMN shop.product_change_log.seq IS
    'Counts the changes of one product: a return to earlier content is a new change';

CREATE TABLE shop.etl_watermark (
    id                integer     PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    table_name        varchar(64) NOT NULL UNIQUE,
    last_processed_at timestamptz NOT NULL DEFAULT '-infinity',
    brand             text        NOT NULL DEFAULT '',
    style             text        NOT NULL DEFAULT '',
    run               text        NOT NULL DEFAULT '',
    last_row          bigint      NOT NULL DEFAULT 0,
    updated_at        timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE shop.etl_watermark IS 'The last row of a source whose content is in the sink; only moves forward (T72)';
COMMENT ON COLUMN shop.etl_watermark.run IS 'The run whose rows are taken; those of runs before it are left out (T72)';
COMMENT ON COLUMN shop.etl_watermark.last_row IS 'How many rows of that run are in the sink';

-- For demo and tests; a real staging table is the DBA's, and is only read.
CREATE TABLE shop.products_staging (
    style_brand_no text,
    style_no       text,
    commodity_name text,
    price          numeric,
    colors_concat  text,
    tags_json      text,
    attrs_json     text,
    description    text,
    image_url      text,
    on_sale        boolean,
    src_updated_at timestamptz
);
CREATE INDEX products_staging_cursor
    ON shop.products_staging (src_updated_at, style_brand_no COLLATE "C", style_no COLLATE "C");
