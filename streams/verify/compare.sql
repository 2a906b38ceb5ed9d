-- {relation} gives `key` and `content`, both text. A row's hash takes its key's as seed, so that rows cannot change places.

-- name: sums
SELECT ((hashtextextended(key, 0) & 9223372036854775807) % {ranges})::integer AS range, count(*) AS rows,
       sum(hashtextextended(content, hashtextextended(key, 0))::numeric)::text AS checksum
  FROM ({relation}) AS r
 GROUP BY 1

-- name: keys
SELECT key, hashtextextended(content, hashtextextended(key, 0)) AS hash
  FROM ({relation}) AS r
 WHERE (hashtextextended(key, 0) & 9223372036854775807) % {ranges} = ANY ($1::bigint[])
