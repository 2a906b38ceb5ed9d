-- The inbox is pruned (MILLSTREAM_PROJECTION_INBOX_RETENTION). What came of an event stands in the projection for good,
-- so an event that comes again after that changes nothing; only looking for gaps needs to know where pruning has been.
CREATE INDEX inbox_events_received ON catalog.inbox_events (received_at);

CREATE TABLE catalog.inbox_floors (
    aggregate_id uuid   PRIMARY KEY,
    version      bigint NOT NULL CHECK (version > 0)
);
COMMENT ON TABLE catalog.inbox_floors IS 'Highest version whose event was pruned from the inbox, of each aggregate';

CREATE OR REPLACE VIEW catalog.video_gaps AS
SELECT p.video_id, p.version, p.version - coalesce(f.version, 0) - count(DISTINCT i.version) AS missing
  FROM catalog.video_projection p
  LEFT JOIN catalog.inbox_floors f ON f.aggregate_id = p.video_id
  LEFT JOIN catalog.inbox_events i ON i.aggregate_id = p.video_id AND i.version > coalesce(f.version, 0)
 GROUP BY p.video_id, p.version, f.version
HAVING p.version - coalesce(f.version, 0) > count(DISTINCT i.version);
COMMENT ON VIEW catalog.video_gaps IS 'Videos with versions above the pruned ones that have not come yet, and how many';
