"""What one-shot commands share: a private namespace, a worker of its own in it, and tidying up."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import confluent_kafka as ck

from millstream.broker import broker_from
from millstream.cluster import Cluster, client_config
from millstream.settings import PREFIX, Settings, get_settings, override_settings
from streams.cli.worker import WorkerProcess

_DEFAULTS = {
    "SESSION_TIMEOUT": "10",  # a one-shot that was killed is started again: its successor waits for this
    "SINK_RETRY_TIMEOUT": "60",  # RU-73
    "LOG_FORMAT": "console",
    "WORKER_THREADS": str(max(2, os.cpu_count() or 2)),  # each thread keeps a heap; there is one machine to use up
}
_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
"""Less held back by allocators: 330 MiB become 220 in the worker of a 10 M key dump, at the same speed."""


@dataclass(frozen=True)
class Private:
    """A namespace on a broker that runs."""

    settings: Settings
    environment: Mapping[str, str]
    """Of the worker and of feeders."""
    log_path: Path

    def worker(self, *, web: bool = False) -> WorkerProcess:
        """A worker of the namespace, with its web views if asked for; a context manager."""
        return WorkerProcess(self.environment, self.log_path, web=web)

    def clean_up(self, prefix: str = "", keep: tuple[str, ...] = ()) -> None:
        """Delete topics, groups and local state of the namespace, or of all that begin with `prefix`. Blocking.

        `keep`: suffixes of topics that stay. Raises BrokerError.
        """
        settings, ours = self.settings, prefix or self.settings.namespace
        cluster, timeout = Cluster(client_config(settings), settings.request_timeout), settings.request_timeout
        groups = cluster.admin.list_consumer_groups(request_timeout=timeout).result().valid
        found = [g.group_id for g in groups if g.group_id.startswith(ours)]
        # A group whose member was killed is not empty yet; without its topics it means nothing and expires.
        for future in (cluster.admin.delete_consumer_groups(found, request_timeout=timeout) if found else {}).values():
            with suppress(ck.KafkaException):
                future.result()
        cluster.delete(cluster.matching(lambda t: t.startswith(ours) and not (keep and t.endswith(keep))))
        for directory in settings.data_dir.glob(f"{ours}*"):
            shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def private(namespace: str, options: Mapping[str, str]) -> AsyncIterator[Private]:
    """A namespace on the configured broker, or on an embedded one for as long as it lasts.

    `options`: settings of the worker, names without prefix; they go before what the user has set.
    """
    given = get_settings()
    async with broker_from(given) as servers:
        with override_settings(bootstrap_servers=servers, namespace=namespace) as settings:
            defaults = {k: v for k, v in _DEFAULTS.items() if k.lower() not in given.model_fields_set}
            ours = {
                **defaults,
                "BOOTSTRAP_SERVERS": servers,
                "NAMESPACE": namespace,
                "WORKER_SLOT": "oneshot",
                "DATA_DIR": str(given.data_dir.absolute()),
                **options,
            }
            environment = _MEMORY | dict(os.environ) | {PREFIX + name: value for name, value in ours.items()}
            yield Private(settings, environment, (given.data_dir / "logs" / f"{namespace}log").absolute())
