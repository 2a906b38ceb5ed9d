"""The groups: a module each, with `SECONDS` (once, per round; at 1,000,000 records, quiet 2 cores) and `run(bench)`."""

NAMES = (
    "json",
    "arrow",
    "clickhouse",
    "table",
    "restore",
    "job",
    "outbox",
    "projection",
    "latency",
    "memory",
    "growth",
)
