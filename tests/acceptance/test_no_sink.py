"""A worker that has nowhere to write to."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_worker_without_a_sink_says_which_variables_to_set(kafka: str, tmp_path: object) -> None:
    environment = {
        "MILLSTREAM_BOOTSTRAP_SERVERS": kafka,
        "MILLSTREAM_DATA_DIR": str(tmp_path),
        "MILLSTREAM_NAMESPACE": "nosink.",
    }
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", "streams", "worker", "--without-web"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "MILLSTREAM_PARQUET_DIR" in done.stdout + done.stderr
    assert "MILLSTREAM_CLICKHOUSE_URL" in done.stdout + done.stderr
