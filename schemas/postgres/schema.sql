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
