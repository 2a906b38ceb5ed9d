"""The usual hand-written consumer as a control: write the file, then save the offset. Dies between the two if told to.

python -m tests.chaos.plain_loop KAFKA TOPIC GROUP DIR
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Message, TopicPartition

from millstream.failpoints import declare, failpoint

WRITTEN = declare("control.written", "the file is written, the offset not saved")
BATCH_SECONDS = 0.2


def main() -> None:
    """Until killed."""
    kafka, topic, group, directory = sys.argv[1:]
    home = Path(directory) / topic / "0"
    home.mkdir(parents=True, exist_ok=True)
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group, "enable.auto.commit": False})
    at = consumer.committed([TopicPartition(topic, 0)], 30)[0]
    consumer.assign([TopicPartition(topic, 0, max(0, at.offset))])
    while True:
        batch: list[Message] = []
        until = time.monotonic() + BATCH_SECONDS
        while (left := until - time.monotonic()) > 0:
            batch += [m for m in consumer.consume(1000, left) if m.error() is None]
        if not batch:
            continue
        offsets = [m.offset() for m in batch]
        rows = [json.loads(m.value() or b"") for m in batch]
        columns = {name: [r[name] for r in rows] for name in ("id", "k")}
        pq.write_table(pa.table(columns | {"_offset": offsets}), home / f"{offsets[0]}-{offsets[-1]}.parquet")
        failpoint(WRITTEN)
        consumer.commit(offsets=[TopicPartition(topic, 0, (offsets[-1] or 0) + 1)], asynchronous=False)


if __name__ == "__main__":
    main()
