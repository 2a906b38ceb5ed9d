-- The projection built anew beside the live one (schema catalog_rebuild), compared with it, and put into its place.

-- name: exists
SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'catalog_rebuild'

-- name: create
-- As the live tables are, names of constraints and indexes included: they are the live tables one day.
DO $$
DECLARE
    name text;
    index record;
BEGIN
    CREATE SCHEMA catalog_rebuild;
    FOREACH name IN ARRAY ARRAY['inbox_events', 'video_projection', 'projection_errors'] LOOP
        EXECUTE format('CREATE TABLE catalog_rebuild.%1$I (LIKE catalog.%1$I INCLUDING ALL EXCLUDING INDEXES)', name);
        EXECUTE format('COMMENT ON TABLE catalog_rebuild.%I IS %L', name,
                       obj_description(format('catalog.%I', name)::regclass, 'pg_class'));
        FOR index IN
            SELECT pg_get_indexdef(x.indexrelid) AS definition, c.conname AS constraint_name,
                   pg_get_constraintdef(c.oid) AS constraint_definition
              FROM pg_index x
              LEFT JOIN pg_constraint c ON c.conindid = x.indexrelid AND c.conrelid = x.indrelid AND c.contype IN ('p', 'u')
             WHERE x.indrelid = format('catalog.%I', name)::regclass
             ORDER BY x.indexrelid
        LOOP
            IF index.constraint_name IS NULL THEN
                EXECUTE replace(index.definition, format(' ON catalog.%I ', name),
                                format(' ON catalog_rebuild.%I ', name));
            ELSE
                EXECUTE format('ALTER TABLE catalog_rebuild.%I ADD CONSTRAINT %I %s', name, index.constraint_name,
                               index.constraint_definition);
            END IF;
        END LOOP;
    END LOOP;
END $$

-- name: describe
-- What the shadow is of; the text is put in by us.
COMMENT ON SCHEMA catalog_rebuild IS {text}

-- name: analyze
ANALYZE catalog_rebuild.inbox_events, catalog_rebuild.video_projection

-- name: drop
DROP SCHEMA IF EXISTS catalog_rebuild CASCADE

-- name: forget
DELETE FROM millstream.positions WHERE starts_with(sink, $1)

-- name: temporary
-- The same tables for one session, which ends with them: a dry run. `before` is what the touched rows were.
CREATE TEMPORARY TABLE inbox_events (LIKE catalog.inbox_events INCLUDING ALL);
CREATE TEMPORARY TABLE video_projection (LIKE catalog.video_projection INCLUDING ALL);
CREATE TEMPORARY TABLE projection_errors (LIKE catalog.projection_errors INCLUDING ALL);
CREATE TEMPORARY TABLE inbox_floors (LIKE catalog.inbox_floors INCLUDING ALL);
CREATE TEMPORARY TABLE before (LIKE catalog.video_projection INCLUDING ALL)

-- name: seed
WITH kept AS (
    INSERT INTO pg_temp.before
           (video_id, version, created_version, deleted_version, events_applied, field_versions)
    SELECT video_id, version, created_version, deleted_version, events_applied, field_versions
      FROM catalog.video_projection WHERE video_id = ANY($1::uuid[])
        ON CONFLICT DO NOTHING
    RETURNING video_id, version, created_version, deleted_version, events_applied, field_versions
), events AS (
    INSERT INTO pg_temp.inbox_events SELECT * FROM catalog.inbox_events WHERE aggregate_id = ANY($1::uuid[])
        ON CONFLICT DO NOTHING
), floors AS (
    INSERT INTO pg_temp.inbox_floors SELECT * FROM catalog.inbox_floors WHERE aggregate_id = ANY($1::uuid[])
        ON CONFLICT DO NOTHING
), errors AS (
    INSERT INTO pg_temp.projection_errors SELECT * FROM catalog.projection_errors WHERE aggregate_id = ANY($1::uuid[])
        ON CONFLICT DO NOTHING
)
INSERT INTO pg_temp.video_projection
       (video_id, version, created_version, deleted_version, events_applied, field_versions)
SELECT * FROM kept
    ON CONFLICT DO NOTHING

-- name: diff
-- Rows of the projection ({live}) against those built anew ({new}). Where one of the two has taken in events of a video
-- that the other has not, the difference says nothing yet: `ahead` (only the new one has them) or `behind`. Of events
-- that were pruned from the inbox there is only their number.
WITH differing AS (
    SELECT video_id, o.video_id IS NULL AS is_new, n.video_id IS NULL AS is_gone, coalesce(f.version, 0) AS floor,
           f.version IS NOT NULL AND o.events_applied > coalesce(n.events_applied, 0) AS is_short
      FROM {live} o FULL JOIN {new} n USING (video_id) LEFT JOIN catalog.inbox_floors f ON f.aggregate_id = video_id
     WHERE (o.version, o.created_version, o.deleted_version, o.events_applied, o.field_versions)
           IS DISTINCT FROM (n.version, n.created_version, n.deleted_version, n.events_applied, n.field_versions)
), judged AS (
    SELECT d.video_id,
           CASE WHEN is_short OR EXISTS (SELECT FROM {live_inbox} i WHERE i.aggregate_id = d.video_id
                                AND NOT EXISTS (SELECT FROM {new_inbox} j WHERE j.event_id = i.event_id)) THEN 'behind'
                WHEN EXISTS (SELECT FROM {new_inbox} i WHERE i.aggregate_id = d.video_id AND i.version > d.floor
                                AND NOT EXISTS (SELECT FROM {live_inbox} j WHERE j.event_id = i.event_id)) THEN 'ahead'
                WHEN is_gone THEN 'missing'
                WHEN is_new THEN 'extra'
                ELSE 'different' END AS kind
      FROM differing d
)
SELECT kind, count(*) AS count, (array_agg(video_id::text ORDER BY video_id))[1:{first}] AS first
  FROM judged GROUP BY kind

-- name: touched
-- The same for a dry run into the live projection.
SELECT CASE WHEN o.video_id IS NULL THEN 'created' ELSE 'changed' END AS kind, count(*) AS count,
       (array_agg(n.video_id::text ORDER BY n.video_id))[1:{first}] AS first
  FROM pg_temp.video_projection n LEFT JOIN pg_temp.before o USING (video_id)
 WHERE (o.version, o.created_version, o.deleted_version, o.events_applied, o.field_versions)
       IS DISTINCT FROM (n.version, n.created_version, n.deleted_version, n.events_applied, n.field_versions)
 GROUP BY 1

-- name: unread
-- Events that the projection holds and the shadow has not taken in.
SELECT i.topic, i.partition, count(*) AS count, min(i."offset") AS first, max(i."offset") AS last,
       (array_agg(i.event_id::text ORDER BY i."offset"))[1] AS event
  FROM catalog.inbox_events i
 WHERE NOT EXISTS (SELECT FROM catalog_rebuild.inbox_events j WHERE j.event_id = i.event_id)
 GROUP BY i.topic, i.partition
 ORDER BY i.topic, i.partition

-- name: short
-- The same for videos whose events were pruned from the inbox: fewer were taken in than there were.
SELECT count(*) AS videos, min(p.video_id::text) AS video
  FROM catalog.inbox_floors f
  JOIN catalog.video_projection p ON p.video_id = f.aggregate_id
  LEFT JOIN catalog_rebuild.video_projection n ON n.video_id = f.aggregate_id
 WHERE p.events_applied > coalesce(n.events_applied, 0)

-- name: lock
-- No writer from here on; readers go on until the tables are renamed. Never waits long: others queue behind.
SET LOCAL lock_timeout = '15s';
SET LOCAL search_path = pg_catalog;
LOCK TABLE catalog.inbox_events, catalog.video_projection, catalog.projection_errors IN SHARE ROW EXCLUSIVE MODE

-- name: changed
-- Columns that are not the same in both: a migration came between.
(SELECT table_name, column_name, data_type, generation_expression FROM information_schema.columns
  WHERE table_schema = 'catalog' AND table_name IN ('inbox_events', 'video_projection')
 EXCEPT
 SELECT table_name, column_name, data_type, generation_expression FROM information_schema.columns
  WHERE table_schema = 'catalog_rebuild')
UNION ALL
(SELECT table_name, column_name, data_type, generation_expression FROM information_schema.columns
  WHERE table_schema = 'catalog_rebuild' AND table_name IN ('inbox_events', 'video_projection')
 EXCEPT
 SELECT table_name, column_name, data_type, generation_expression FROM information_schema.columns
  WHERE table_schema = 'catalog')

-- name: attached
-- What hangs on the live tables, would not come along, and would not stop them from being dropped either.
SELECT 'trigger ' || tgname || ' of ' || tgrelid::regclass AS what FROM pg_trigger
 WHERE tgrelid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass) AND NOT tgisinternal
UNION ALL
SELECT 'policy ' || polname || ' of ' || polrelid::regclass FROM pg_policy
 WHERE polrelid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass)
UNION ALL
SELECT 'publication ' || p.pubname || ' of ' || r.prrelid::regclass
  FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
 WHERE r.prrelid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass)
UNION ALL
SELECT 'rights to column ' || attname || ' of ' || attrelid::regclass FROM pg_attribute
 WHERE attrelid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass) AND attacl IS NOT NULL

-- name: swap
-- Views are bound to tables, not to names: each is bound anew. Owner, rights and storage parameters come along. What
-- else depends on the old tables makes DROP TABLE fail, and with it all of this.
DO $$
DECLARE
    name text;
    definition text;
    views text[];
    rights text[] := '{}';
BEGIN
    SELECT array_agg(DISTINCT format('CREATE OR REPLACE VIEW %s%s AS %s', v.oid::regclass,
                                     ' WITH (' || array_to_string(v.reloptions, ', ') || ')', pg_get_viewdef(v.oid)))
      INTO views
      FROM pg_depend d
      JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
      JOIN pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
     WHERE d.refclassid = 'pg_class'::regclass
       AND d.refobjid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass);
    SELECT coalesce(array_agg(command), '{}') INTO rights FROM (
        SELECT format('ALTER TABLE %s OWNER TO %I', c.oid::regclass, pg_get_userbyid(c.relowner)) AS command, 1 AS place
          FROM pg_class c
         WHERE c.oid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass)
        UNION ALL
        SELECT format('ALTER TABLE %s SET (%s)', c.oid::regclass, array_to_string(c.reloptions, ', ')), 2
          FROM pg_class c
         WHERE c.oid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass)
           AND c.reloptions IS NOT NULL
        UNION ALL
        SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass,
                      CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                      CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END), 3
          FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
         WHERE c.oid IN ('catalog.inbox_events'::regclass, 'catalog.video_projection'::regclass)
           AND a.grantee <> c.relowner
         ORDER BY 2
    ) AS ordered;
    CREATE SCHEMA catalog_replaced;
    FOREACH name IN ARRAY ARRAY['video_projection', 'inbox_events'] LOOP
        EXECUTE format('ALTER TABLE catalog.%I SET SCHEMA catalog_replaced', name);
        EXECUTE format('ALTER TABLE catalog_rebuild.%I SET SCHEMA catalog', name);
    END LOOP;
    FOREACH definition IN ARRAY coalesce(views, '{}') || rights LOOP
        EXECUTE definition;
    END LOOP;
    INSERT INTO catalog.projection_errors SELECT * FROM catalog_rebuild.projection_errors ON CONFLICT DO NOTHING;
    DROP TABLE catalog_replaced.video_projection, catalog_replaced.inbox_events RESTRICT;
    DROP TABLE catalog_rebuild.projection_errors;
    DROP SCHEMA catalog_replaced, catalog_rebuild;
END $$
