"""Batches with everything in them that a report must bear."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.batch import Batch
from schemas.survey import EXPIRY_STEPS
from sources.rdb import redis_slot
from tests.support.published import wire

HOUR_NS = 3_600 * 10**9
NEWER = Batch("clu'ster\\1 名", time.time_ns() // 10**9 * 10**9 + 123_456_789)
OLDER = Batch(NEWER.cluster, NEWER.batch_ts - 6 * HOUR_NS)
OTHER = Batch("other", NEWER.batch_ts - HOUR_NS)

HOSTILE = (
    b"", b"\x00", b"\xff\xfe", b"</script><script>alert(1)</script>", b"'\"`\\%{}", "键:ключ\u202e".encode(),
    b"{}{a}", b"x{tag}y", b"x" * 5000, b"line\nbreak\r\t", b"user:\xff", b"{{a}}",
)  # fmt: skip
_KINDS = (
    ("string", "raw"), ("string", "int"), ("hash", "list_pack"), ("list", "quick_list2"), ("set", "int_set"),
    ("zset", "skip_list"), ("stream", "list_packs3"), ("module", "module"),
)  # fmt: skip

Instances = Mapping[str, pa.Table]


def instances(batch: Batch, seed: int, slots: str = "", count: int = 1500) -> Instances:
    """Rows of three instances; most keys of different seeds are the same, with other sizes."""
    random = np.random.default_rng(seed)
    now = batch.batch_ts // 10**6
    found = {}
    for number, name in enumerate(("10.0.0.1:6379", "10.0.0.2:6379", "[fe80::1%eth0]:6379")):
        rows = [_row(random, key, now) for key in HOSTILE[number::2]]
        for group in (b"session:%08d", b"user:%d:profile", b"cache:page:%05d", b"k%d"):
            ids = random.choice(5000, count // 12, replace=False) * 3 + number
            rows += [_row(random, group % i, now) for i in ids]
        rows.append(_row(random, b"big:%d" % number, now) | {"rdb_size": (1 << 20) + 5 * number, "type": "string",
                                                              "encoding": "raw"})  # fmt: skip
        rows += [{**_row(random, b"same size", now), "db": db, "rdb_size": 999_999} for db in (0, 1)]
        if slots:
            for row in rows:
                row[f"{slots}_slot"] = redis_slot(row["key"]) % (1024 if slots == "codis" else 16384)
        found[name] = wire(rows)
    huge = _row(random, b"huge", now) | {"type": "hash", "encoding": "list_pack", "rdb_size": (1 << 30) + 1}
    found["10.0.0.2:6379"] = pa.concat_tables([found["10.0.0.2:6379"], wire([huge])]).unify_dictionaries()
    return found


def _row(random: np.random.Generator, key: bytes, now: int) -> dict[str, Any]:
    kind, encoding = _KINDS[random.integers(len(_KINDS))]
    steps = (None, None, None, -5, -1, *EXPIRY_STEPS, EXPIRY_STEPS[-1] * 3)
    step = steps[random.integers(len(steps))]
    return {
        "db": int(random.choice([0, 0, 0, 1, 15])), "key": key, "type": kind, "encoding": encoding,
        "member_count": int(random.integers(0, 50)), "rdb_size": int(random.choice([20, 57, 57, 300, 9000])),
        "expire_at_ms": None if step is None else now + step,
    }  # fmt: skip
