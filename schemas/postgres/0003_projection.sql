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

-- Versions below the highest one that no event has brought yet.
CREATE VIEW catalog.video_gaps AS
SELECT p.video_id, p.version, p.version - count(DISTINCT i.version) AS missing
  FROM catalog.video_projection p LEFT JOIN catalog.inbox_events i ON i.aggregate_id = p.video_id
 GROUP BY p.video_id, p.version
HAVING p.version > count(DISTINCT i.version);
COMMENT ON VIEW catalog.video_gaps IS 'Videos with versions that have not come yet, and how many';
