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
from millstream.errors import ConfigError
from millstream.settings import PREFIX, Settings, get_settings, override_settings
from streams.cli.worker import WorkerProcess

_DEFAULTS = {
    "SESSION_TIMEOUT": "10",  # a one-shot that was killed is started again: its successor waits for this
    "SINK_RETRY_TIMEOUT": "60",  # RU-73
    "LOG_FORMAT": "console",
    "WORKER_THREADS": str(max(2, os.cpu_count() or 2)),  # each thread keeps a heap; there is one machine to use up
}
_SLOT = "oneshot"
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

    def drop_tables(self) -> None:
        """Delete the local state, which a next start restores from Kafka, unless a worker uses it. Blocking."""
        from streams.engine.slot import SlotLock

        home = self.settings.data_dir / self.settings.group_id / _SLOT
        if not home.is_dir():
            return
        with suppress(ConfigError):
            lock = SlotLock(home)
            shutil.rmtree(home.parent, ignore_errors=True)
            lock.release()


def begun(namespace: str) -> bool:
    """Whether something of the namespace is left here: it was killed, or it failed."""
    home = get_settings().data_dir
    return _log_path(home, namespace).exists() or any(home.glob(f"{namespace}*"))


def _log_path(data_dir: Path, namespace: str) -> Path:
    return (data_dir / "logs" / f"{namespace}log").absolute()


@asynccontextmanager
async def private(namespace: str, options: Mapping[str, str]) -> AsyncIterator[Private]:
    """A namespace on the configured broker, or on an embedded one for as long as it lasts.

    `options`: settings of the worker, names without prefix; they go before what the user has set.
    """
    given = get_settings()
    defaults = {k: v for k, v in _DEFAULTS.items() if k.lower() not in given.model_fields_set}
    same = {k.lower(): v for k, v in defaults.items() if k == "SINK_RETRY_TIMEOUT"}
    async with broker_from(given) as servers:
        with override_settings(bootstrap_servers=servers, namespace=namespace, **same) as settings:
            ours = {
                **defaults,
                "BOOTSTRAP_SERVERS": servers,
                "NAMESPACE": namespace,
                "WORKER_SLOT": _SLOT,
                # The command reads there that a sink is retried.
                "LOG_LEVEL": "warning" if given.log_level == "error" else given.log_level,
                "DATA_DIR": str(given.data_dir.absolute()),
                **options,
            }
            environment = _MEMORY | dict(os.environ) | {PREFIX + name: value for name, value in ours.items()}
            yield Private(settings, environment, _log_path(given.data_dir, namespace))
