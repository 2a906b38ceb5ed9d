"""The checker: reads only what went in and what came out, and counts what is missing, doubled or wrong.

It knows nothing of the engine and imports nothing of it: Kafka by a plain consumer (read committed), Parquet by
pyarrow, ClickHouse by HTTP, RDB content from the lists that the files were made from.

    python -m tests.chaos.check stream --kafka H:P --name APP [--kinds parquet,table] [--parquet DIR] [--clickhouse URL]
    python -m tests.chaos.check projection --kafka H:P --name APP --postgres URL
    python -m tests.chaos.check batches --expected FILE --parquet DIR --clickhouse URL

prints one JSON object and exits with 0 only if nothing is missing, doubled or wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Message

from tests.chaos.check_projection import check_projection
from tests.support.kafka import read_all

Verdict = dict[str, int]


def rows_of(url: str, sql: str) -> Iterator[dict[str, Any]]:
    """A SELECT over HTTP. `url` is the sink's: `http://host:port?database=d`. A table that is not made has no rows."""
    database = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)["database"][0]
    body = f"{sql.replace('{db}', f'`{database}`')} FORMAT JSONEachRow".encode()
    request = urllib.request.Request(url.replace("?", "/?", 1), data=body)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as exc:
        why = exc.read().decode("utf-8", "replace")
        if "UNKNOWN_TABLE" in why:
            return
        raise AssertionError(f"{sql}: HTTP {exc.code}: {why[:500]}") from exc
    yield from map(json.loads, text.splitlines())


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
Rows = Iterable[tuple[Any, Any]]
"""((partition, offset, id), key) of every row."""


def parquet_of(name: str, given: argparse.Namespace) -> Rows:
    """Rows of the stream in Parquet."""
    for path in sorted((given.parquet / f"{name}-in").glob("*/*.parquet")):
        columns = pq.read_table(path, partitioning=None).select(["_offset", "id", "k"]).to_pydict().values()
        for offset, number, key in zip(*columns, strict=True):
            yield (int(path.parent.name), offset, number), key


def clickhouse_of(name: str, given: argparse.Namespace) -> Rows:
    """Rows of the stream in ClickHouse."""
    columns = "_partition AS p, toString(_offset) AS o, toString(id) AS id, k"
    sql = f"SELECT {columns} FROM {{db}}.events WHERE _topic = '{name}-in'"
    for r in rows_of(given.clickhouse, sql):
        yield (r["p"], int(r["o"]), int(r["id"])), r["k"]


SINKS = {"parquet": parquet_of, "clickhouse": clickhouse_of}


def check_stream(given: argparse.Namespace) -> dict[str, Verdict]:
    """Everything that came out of `tests.chaos.stream_app`, against its input topic."""
    name, kinds = given.name, given.kinds.split(",")
    rows: dict[tuple[int, int, int], str] = {}
    for m in read_all(given.kafka, f"{name}-in", timeout=120):
        value = _value(m)
        found = [json.loads(value)] if given.payload == "json" else pa.ipc.open_stream(value).read_all().to_pylist()
        rows |= {(m.partition() or 0, m.offset() or 0, r["id"]): r["k"] for r in found}
    verdicts = {"input": {"rows": len(rows)}}
    for kind, read in SINKS.items():
        if kind in kinds:
            verdicts[kind] = judge(rows, read(name, given))
    numbers: dict[tuple[int, int, int], int] = {}
    totals: Counter[str] = Counter()
    for at in sorted(rows):
        totals[rows[at]] += "table" in kinds
        numbers[at] = totals[rows[at]]
    if "topic" in kinds:
        sent = [json.loads(_value(m)) for m in read_all(given.kafka, f"{name}-out", timeout=120)]
        verdicts["topic"] = judge(
            {at: (key, numbers[at]) for at, key in rows.items()},
            (((r["p"], r["o"], r["id"]), (r["k"], r["n"])) for r in sent),
        )
    if "table" in kinds:
        table: dict[str, int] = {}
        for m in read_all(given.kafka, f"{name}-counts-changelog", timeout=120):
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
    projection = what.add_parser("projection")
    for option in ("--kafka", "--name", "--postgres"):
        projection.add_argument(option, required=True)
    stream.add_argument("--kafka", required=True)
    stream.add_argument("--name", required=True)
    stream.add_argument("--payload", choices=("json", "arrow"), default="json")
    stream.add_argument("--kinds", default="parquet,clickhouse,table,topic", help="outputs to look at")
    batches.add_argument("--expected", type=Path, required=True)
    for one in (stream, batches):
        one.add_argument("--parquet", type=Path)
        one.add_argument("--clickhouse")
    given = parser.parse_args()
    if given.what == "stream":
        verdicts = check_stream(given)
    elif given.what == "projection":
        verdicts = check_projection(given.kafka, given.name, given.postgres, judge)
    else:
        verdicts = check_batches(given.expected, given.parquet, given.clickhouse)
    print(json.dumps(verdicts))
    return 1 if bad(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
