"""The whole job."""

from __future__ import annotations

import shutil

from bench import job
from bench.session import Bench

SECONDS = (20, 40)


def run(bench: Bench) -> None:
    """`millstream dump`, of each size in every round."""
    bench.title("job", "RDB files through Kafka into published, sorted Parquet (`millstream dump`)")
    paths = {keys: bench.directory / f"{keys}.rdb" for keys in bench.options.job_sizes}
    for keys, path in paths.items():
        job.make(path, keys)
    for turn in range(bench.rounds):
        for keys, path in paths.items():
            if keys > 5_000_000 and turn >= 3:
                continue  # it takes most of a minute, and its rounds differ little
            where = bench.directory / f"job-{keys}-{turn}"
            bench.add("job", str(keys), f"{keys:,} keys", job.run(path, keys, bench.servers, where))
            shutil.rmtree(where)
    for path in paths.values():
        path.unlink()
