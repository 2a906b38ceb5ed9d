"""The checker: reads only what went in and what came out, and counts what is missing, doubled or wrong.

It knows nothing of the engine and imports nothing of it: Kafka by a plain consumer (read committed), Parquet by
pyarrow, ClickHouse by HTTP, RDB content from the lists that the files were made from.

    python -m tests.chaos.check stream --kafka H:P --name APP [--parquet DIR] [--clickhouse URL]
    python -m tests.chaos.check batches --expected FILE --parquet DIR --clickhouse URL

prints one JSON object and exits with 0 only if nothing is missing, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from confluent_kafka import Message

from tests.support.kafka import read_all

Verdict = dict[str, int]


def rows_of(url: str, sql: str) -> Iterator[dict[str, Any]]:
    """A SELECT over HTTP. `url` is the sink's: `http://host:port?database=d`."""
    database = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["database"][0]
    body = f"{sql.replace('{db}', f'`{database}`')} FORMAT JSONEachRow".encode()
    with urllib.request.urlopen(urllib.request.Request(url.replace("?", "/?", 1), data=body), timeout=120) as answer:
        for line in answer.read().decode().splitlines():
            yield json.loads(line)


def judge(expected: dict[Any, Any], found: Iterable[tuple[Any, Any]]) -> Verdict:
    """`expected`: identity -> content; `found`: (identity, content) of every row there is."""
    pairs = list(found)
    seen = Counter(identity for identity, _ in pairs)
    return {
        "rows": len(pairs),
        "missing": len(expected.keys() - seen.keys()),
        "doubled": sum(n - 1 for n in seen.values()),
        "wrong": sum(1 for identity, content in pairs if expected.get(identity) != content),
    }


# ---------------------------------------------------------------------- the generic stream
def check_stream(
    kafka: str, name: str, parquet: Path | None, clickhouse: str | None, *, sinks_only: bool
) -> dict[str, Verdict]:
    """Everything that came out of `tests.chaos.stream_app`, against its input topic."""
    records = {(m.partition(), m.offset()): json.loads(_value(m)) for m in read_all(kafka, f"{name}-in", timeout=120)}
    ids = {at: r["id"] for at, r in records.items()}
    verdicts = {"input": {"rows": len(ids)}}
    if parquet is not None:
        found = []
        for path in sorted((parquet / f"{name}-in").glob("*/*.parquet")):
            table = pq.read_table(path, partitioning=None)
            offsets, values = table.column("_offset").to_pylist(), table.column("id").to_pylist()
            found += [((int(path.parent.name), o), v) for o, v in zip(offsets, values, strict=True)]
        verdicts["parquet"] = judge(ids, found)
    if clickhouse is not None:
        columns = "_partition AS p, toString(_offset) AS o, toString(id) AS id"
        sql = f"SELECT {columns} FROM {{db}}.events WHERE _topic = '{name}-in'"
        verdicts["clickhouse"] = judge(ids, (((r["p"], int(r["o"])), int(r["id"])) for r in rows_of(clickhouse, sql)))
    if sinks_only:
        return verdicts
    numbers: dict[tuple[int, int], int] = {}
    totals: Counter[str] = Counter()
    for at in sorted(records):
        key = records[at]["k"]
        totals[key] += 1
        numbers[at] = totals[key]
    sent = [json.loads(_value(m)) for m in read_all(kafka, f"{name}-out", timeout=120)]
    verdicts["output"] = judge(
        {at: (ids[at], records[at]["k"], numbers[at]) for at in ids},
        (((r["p"], r["o"]), (r["id"], r["k"], r["n"])) for r in sent),
    )
    table: dict[str, int] = {}
    for m in read_all(kafka, f"{name}-counts-changelog", timeout=120):
        table[json.loads(m.key() or b"null")] = json.loads(_value(m))
    verdicts["table"] = judge(dict(totals), table.items())
    return verdicts


def _value(message: Message) -> bytes:
    return bytes(message.value() or b"")


# ---------------------------------------------------------------------- the batches of the job
def check_batches(expected: Path, parquet: Path | None, clickhouse: str | None) -> dict[str, Verdict]:
    """Published batches.

    `expected`: JSON list of {cluster, batch (RFC 3339, 9 digits), slug, instances: {name: [row]}}, a row being
    [db, key (hex), type, member_count, expire_at (ms) or null]. Nothing but these batches may be visible.
    """
    batches = json.loads(expected.read_text())
    verdicts: dict[str, Verdict] = defaultdict(lambda: {"rows": 0, "missing": 0, "doubled": 0, "wrong": 0})

    def add(name: str, verdict: Verdict) -> None:
        verdicts[name] = {k: verdicts[name][k] + v for k, v in verdict.items()}

    for batch in batches:
        wanted = {
            (instance, row[0], row[1]): tuple(row[2:]) for instance, rows in batch["instances"].items() for row in rows
        }
        if parquet is not None:
            home = parquet / batch["cluster"] / batch["slug"]
            files = sorted(home.iterdir()) if home.is_dir() else []
            names = {f"{i.replace(':', '-')}.parquet": i for i in batch["instances"]}
            add("parquet files", judge(dict.fromkeys(names, True), ((f.name, f.name in names) for f in files)))
            for f in files:
                add("parquet columns", judge({}, ()) | {"wrong": _wrong_columns(f, batch, names.get(f.name, ""))})
            add("parquet", judge(wanted, (pair for f in files for pair in _parquet_rows(f))))
        if clickhouse is not None:
            where = f"cluster = '{batch['cluster']}' AND toString(batch) = '{batch['batch'][:-1].replace('T', ' ')}'"
            sql = (
                "SELECT instance, toString(db) AS db, hex(key) AS key, type, toString(member_count) AS n,"
                f" toString(toUnixTimestamp64Milli(expire_at)) AS at FROM {{db}}.redis_records_raw WHERE {where}"
            )
            found = (
                ((r["instance"], int(r["db"]), r["key"].lower()), (r["type"], int(r["n"]), r["at"] and int(r["at"])))
                for r in rows_of(clickhouse, sql)
            )
            add("clickhouse", judge(wanted, found))
            markers = list(rows_of(clickhouse, f"SELECT cluster FROM {{db}}.import_batches_completed WHERE {where}"))
            add("clickhouse markers", judge({0: 0}, [(0, 0)] * len(markers)))
    if parquet is not None:
        known = {(b["cluster"], b["slug"]): True for b in batches}
        standing = [(d.parent.name, d.name) for d in parquet.glob("[!.]*/*") if d.is_dir()]
        add("parquet directories", judge(known, ((d, True) for d in standing)))
        add("parquet staging", judge({}, ((d, False) for d in parquet.glob(".staging/*/*"))))
    return dict(verdicts)


def _parquet_rows(path: Path) -> Iterator[tuple[Any, Any]]:
    for r in pq.read_table(path, partitioning=None).to_pylist():
        at = r["expire_at"]
        yield (
            (r["instance"], r["db"], r["key"].hex()),
            (r["type"], r["member_count"], at and round(at.timestamp() * 1000)),
        )


def _wrong_columns(path: Path, batch: dict[str, Any], instance: str) -> int:
    rows = pq.read_table(path, columns=["cluster", "instance"], partitioning=None).to_pylist()
    return sum(1 for r in rows if (r["cluster"], r["instance"]) != (batch["cluster"], instance))


def bad(verdicts: dict[str, Verdict]) -> int:
    """How many faults in all; an empty input counts as one, for it proves nothing."""
    faults = sum(v.get(k, 0) for v in verdicts.values() for k in ("missing", "doubled", "wrong"))
    return faults + (not any(v["rows"] for v in verdicts.values()))


def main() -> int:
    """Exit code 0 only if everything is exact."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    stream, batches = what.add_parser("stream"), what.add_parser("batches")
    stream.add_argument("--kafka", required=True)
    stream.add_argument("--name", required=True)
    stream.add_argument("--sinks-only", action="store_true", help="no output topic and no table to look at")
    batches.add_argument("--expected", type=Path, required=True)
    for one in (stream, batches):
        one.add_argument("--parquet", type=Path)
        one.add_argument("--clickhouse")
    given = parser.parse_args()
    if given.what == "stream":
        verdicts = check_stream(given.kafka, given.name, given.parquet, given.clickhouse, sinks_only=given.sinks_only)
    else:
        verdicts = check_batches(given.expected, given.parquet, given.clickhouse)
    print(json.dumps(verdicts))
    return 1 if bad(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
