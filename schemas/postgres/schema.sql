-- The schema that the migrations of this folder add up to; tests/integration/postgres/test_migrations.py compares them.
CREATE SCHEMA IF NOT EXISTS millstream;

CREATE TABLE IF NOT EXISTS millstream.migrations (
    version     integer     PRIMARY KEY,
    name        text        NOT NULL,
    sha256      text        NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
);

-- How far each sink has taken each partition: the receipt of its last chunk, written with the chunk's rows in one
-- transaction. One row per sink and partition, so it does not grow.
CREATE TABLE millstream.positions (
    sink        text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL CHECK (partition >= 0),
    topic_id    text        NOT NULL,
    epoch       integer     NOT NULL,
    first       bigint      NOT NULL,
    last        bigint      NOT NULL CHECK (last >= first),
    crc         bigint      NOT NULL,
    rows        bigint      NOT NULL,
    details     jsonb       NOT NULL DEFAULT '{}',
    written_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sink, topic, partition)
);
COMMENT ON TABLE millstream.positions IS 'The last chunk that a sink holds of a partition: identity, receipt, time';

-- Transactional outbox, and the business table of the videos.
CREATE SCHEMA IF NOT EXISTS catalog;

CREATE TYPE catalog.video_status AS ENUM
    ('pending_upload', 'processing', 'ready', 'published', 'failed', 'rejected', 'archived');
CREATE TYPE catalog.stage_status AS ENUM ('pending', 'processing', 'ready', 'failed');

CREATE TABLE catalog.videos (
    video_id            uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    uploader_id         uuid        NOT NULL,
    title               text        NOT NULL,
    description         text,
    duration_micros     bigint      CHECK (duration_micros >= 0),
    status              catalog.video_status NOT NULL DEFAULT 'pending_upload',
    media_status        catalog.stage_status NOT NULL DEFAULT 'pending',
    analysis_status     catalog.stage_status NOT NULL DEFAULT 'pending',
    thumbnail_url       text,
    hls_master_playlist text,
    difficulty          text,
    summary             text,
    tags                text[]      NOT NULL DEFAULT '{}',
    raw_subtitle_url    text,
    published_at        timestamptz,
    version             bigint      NOT NULL DEFAULT 1 CHECK (version > 0),
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE catalog.videos IS 'Videos; what is written here is told in outbox_events, in the same transaction';
COMMENT ON COLUMN catalog.videos.version IS
    'Raised by 1 in each transaction, under the row lock; the events carry it (T48)';

CREATE TABLE catalog.outbox_events (
    event_id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    seq               bigint      GENERATED ALWAYS AS IDENTITY,
    aggregate_type    text        NOT NULL CHECK (aggregate_type <> ''),
    aggregate_id      uuid        NOT NULL,
    event_type        text        NOT NULL CHECK (event_type <> ''),
    version           bigint      NOT NULL CHECK (version > 0),
    payload           bytea       NOT NULL,
    headers           jsonb       NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(headers) = 'object'),
    source_event_id   uuid,
    occurred_at       timestamptz NOT NULL DEFAULT now(),
    available_at      timestamptz NOT NULL DEFAULT now(),
    published_at      timestamptz,
    parked_at         timestamptz,
    delivery_attempts integer     NOT NULL DEFAULT 0 CHECK (delivery_attempts >= 0),
    last_error        text,
    lock_token        text,
    locked_at         timestamptz,
    UNIQUE (aggregate_id, version, aggregate_type),
    CHECK ((lock_token IS NULL) = (locked_at IS NULL))
);
-- What is not published yet: small, however large the table is.
CREATE INDEX outbox_events_pending ON catalog.outbox_events (seq) WHERE published_at IS NULL;
CREATE INDEX outbox_events_order ON catalog.outbox_events (aggregate_id, version) WHERE published_at IS NULL;
CREATE INDEX outbox_events_published ON catalog.outbox_events (published_at) WHERE published_at IS NOT NULL;
CREATE UNIQUE INDEX outbox_events_source ON catalog.outbox_events (source_event_id) WHERE source_event_id IS NOT NULL;

COMMENT ON TABLE catalog.outbox_events IS 'Events to be published, each written in the transaction that it tells of';
COMMENT ON COLUMN catalog.outbox_events.event_id IS 'Given by the client, a command that is sent twice is done once';
COMMENT ON COLUMN catalog.outbox_events.seq IS 'Order in which relays look at rows; says nothing about commits (T55)';
COMMENT ON COLUMN catalog.outbox_events.version IS 'Order within the aggregate';
COMMENT ON COLUMN catalog.outbox_events.source_event_id IS 'The event that led to this one, if a consumer wrote it';
COMMENT ON COLUMN catalog.outbox_events.available_at IS 'Not before; moved on after a failure';
COMMENT ON COLUMN catalog.outbox_events.parked_at IS 'Given up; holds back its aggregate until it is requeued (T54)';
COMMENT ON COLUMN catalog.outbox_events.lock_token IS 'Lease of a relay, from locked_at on, both by the database (T52)';

-- Wakes the relays at commit. It is only a hint: they poll as well.
CREATE FUNCTION catalog.outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('catalog.outbox_events', '');
    RETURN NULL;
END $$;
CREATE TRIGGER outbox_events_notify AFTER INSERT ON catalog.outbox_events
    FOR EACH STATEMENT EXECUTE FUNCTION catalog.outbox_notify();

-- The projection of the videos' events: what was taken in, what came of it, and what was refused.

-- Events that were applied. An event id is a record's identity, whatever offset it has (hole n).
CREATE TABLE catalog.inbox_events (
    event_id     uuid        PRIMARY KEY,
    event_type   text        NOT NULL,
    aggregate_id uuid        NOT NULL,
    version      bigint      NOT NULL CHECK (version > 0),
    digest       bytea       NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    "offset"     bigint      NOT NULL,
    received_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_events_version ON catalog.inbox_events (aggregate_id, version);
CREATE INDEX inbox_events_received ON catalog.inbox_events (received_at);
COMMENT ON TABLE catalog.inbox_events IS 'Events that were applied, each once';
COMMENT ON COLUMN catalog.inbox_events.digest IS 'Equal for equal content: tells a redelivery from a conflict (T49)';

-- Registers of fields: the greatest (version, event id, value) of each field wins, so order does not matter. A register
-- that is not above the deleted version is gone; occurred_at says when the last event happened, deleted or not.
CREATE FUNCTION catalog.merge_fields(one jsonb, other jsonb, deleted bigint) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(jsonb_object_agg(key, entry), '{}')
      FROM (
        SELECT DISTINCT ON (key) key, entry
          FROM (SELECT * FROM jsonb_each(one) UNION ALL SELECT * FROM jsonb_each(other)) AS both_sides (key, entry)
         ORDER BY key, (entry ->> 0)::bigint DESC, (entry ->> 1) COLLATE "C" DESC, (entry ->> 2) COLLATE "C" DESC
      ) AS winners
     WHERE key = 'occurred_at' OR (entry ->> 0)::bigint > deleted
$$;

-- Microseconds since 1970 as a time. Days apart from the rest: a product with an interval goes by way of a float.
CREATE FUNCTION catalog.field_time(fields jsonb, name text) RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (date '1970-01-01' + ((fields -> name ->> 2)::bigint / 86400000000)::integer
            + (fields -> name ->> 2)::bigint % 86400000000 * interval '1 microsecond') AT TIME ZONE 'UTC'
$$;

CREATE FUNCTION catalog.field_texts(fields jsonb, name text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN jsonb_typeof(fields -> name -> 2) = 'array'
                THEN ARRAY(SELECT jsonb_array_elements_text(fields -> name -> 2)) END
$$;

-- The columns are computed out of field_versions: they cannot differ from it. That rules out enums (their input is not
-- immutable), so status is text with a CHECK; the codec refuses other values before they come here.
CREATE TABLE catalog.video_projection (
    video_id            uuid        PRIMARY KEY,
    version             bigint      NOT NULL CHECK (version > 0),
    created_version     bigint      NOT NULL DEFAULT 0,
    deleted_version     bigint      NOT NULL DEFAULT 0,
    events_applied      bigint      NOT NULL,
    field_versions      jsonb       NOT NULL,
    visible             boolean     NOT NULL GENERATED ALWAYS AS (created_version > deleted_version) STORED,
    occurred_at         timestamptz GENERATED ALWAYS AS (catalog.field_time(field_versions, 'occurred_at')) STORED,
    created_at          timestamptz GENERATED ALWAYS AS (catalog.field_time(field_versions, 'created_at')) STORED,
    uploader_id         uuid        GENERATED ALWAYS AS ((field_versions -> 'uploader_id' ->> 2)::uuid) STORED,
    title               text        GENERATED ALWAYS AS (field_versions -> 'title' ->> 2) STORED,
    description         text        GENERATED ALWAYS AS (field_versions -> 'description' ->> 2) STORED,
    duration_micros     bigint      GENERATED ALWAYS AS ((field_versions -> 'duration_micros' ->> 2)::bigint) STORED,
    status              text        GENERATED ALWAYS AS (field_versions -> 'status' ->> 2) STORED
        CHECK (status IN ('pending_upload', 'processing', 'ready', 'published', 'failed', 'rejected', 'archived')),
    media_status        text        GENERATED ALWAYS AS (field_versions -> 'media_status' ->> 2) STORED
        CHECK (media_status IN ('pending', 'processing', 'ready', 'failed')),
    analysis_status     text        GENERATED ALWAYS AS (field_versions -> 'analysis_status' ->> 2) STORED
        CHECK (analysis_status IN ('pending', 'processing', 'ready', 'failed')),
    thumbnail_url       text        GENERATED ALWAYS AS (field_versions -> 'thumbnail_url' ->> 2) STORED,
    hls_master_playlist text        GENERATED ALWAYS AS (field_versions -> 'hls_master_playlist' ->> 2) STORED,
    difficulty          text        GENERATED ALWAYS AS (field_versions -> 'difficulty' ->> 2) STORED,
    summary             text        GENERATED ALWAYS AS (field_versions -> 'summary' ->> 2) STORED,
    tags                text[]      GENERATED ALWAYS AS (catalog.field_texts(field_versions, 'tags')) STORED,
    raw_subtitle_url    text        GENERATED ALWAYS AS (field_versions -> 'raw_subtitle_url' ->> 2) STORED,
    published_at        timestamptz GENERATED ALWAYS AS (catalog.field_time(field_versions, 'published_at')) STORED
);
CREATE INDEX video_projection_status ON catalog.video_projection (status) WHERE visible;
COMMENT ON TABLE catalog.video_projection IS 'Videos as their events tell them; readers look at visible rows only';
COMMENT ON COLUMN catalog.video_projection.field_versions IS 'Field -> [version, event id, value] of what set it last';
COMMENT ON COLUMN catalog.video_projection.version IS 'Highest version seen';
COMMENT ON COLUMN catalog.video_projection.created_version IS 'Version of the last created event; 0: none yet (T45)';
COMMENT ON COLUMN catalog.video_projection.deleted_version IS 'Tombstone: nothing up to it counts any more (T44)';

-- Events that were read and not applied as they stand, and applications that failed.
CREATE TABLE catalog.projection_errors (
    digest        bytea       PRIMARY KEY,
    kind          text        NOT NULL,
    error         text        NOT NULL,
    event_id      uuid,
    event_type    text,
    aggregate_id  uuid,
    version       bigint,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    "offset"      bigint      NOT NULL,
    key           bytea,
    value         bytea,
    headers       jsonb,
    seen          bigint      NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projection_errors_first_seen ON catalog.projection_errors (first_seen_at);
CREATE INDEX projection_errors_aggregate ON catalog.projection_errors (aggregate_id);
COMMENT ON TABLE catalog.projection_errors IS 'Business errors, recorded and acknowledged; the same one again is counted';

-- Where pruning of the inbox has been.
CREATE TABLE catalog.inbox_floors (
    aggregate_id uuid   PRIMARY KEY,
    version      bigint NOT NULL CHECK (version > 0)
);
COMMENT ON TABLE catalog.inbox_floors IS 'Highest version whose event was pruned from the inbox, of each aggregate';

-- Versions above the pruned ones and below the highest one that no event has brought yet.
CREATE VIEW catalog.video_gaps AS
SELECT p.video_id, p.version, p.version - coalesce(f.version, 0) - count(DISTINCT i.version) AS missing
  FROM catalog.video_projection p
  LEFT JOIN catalog.inbox_floors f ON f.aggregate_id = p.video_id
  LEFT JOIN catalog.inbox_events i ON i.aggregate_id = p.video_id AND i.version > coalesce(f.version, 0)
 GROUP BY p.video_id, p.version, f.version
HAVING p.version - coalesce(f.version, 0) > count(DISTINCT i.version);
COMMENT ON VIEW catalog.video_gaps IS 'Videos with versions above the pruned ones that have not come yet, and how many';

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
