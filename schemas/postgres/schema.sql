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
