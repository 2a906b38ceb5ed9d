"""Names of files, directories and topics for clusters and instances: always legal, never shared, never a way out.

Any non-empty UTF-8 name is accepted. A name of plain form stays readable as it is; every other one is escaped and
shortened, and a hash of its bytes makes it unique again. Both forms are lower case and ASCII, so file systems that
ignore case or normalise Unicode keep them apart too (T15).
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from millstream.errors import ConfigError
from schemas.batch import Batch

_HOST_PORT = re.compile(r"[a-z0-9.]+:[0-9]+")
_CLUSTER_DIR = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_CLUSTER_TOPIC = re.compile(r"[a-z0-9-]+")
_HASH_FIRST = re.compile(r"[0-9a-f]{16}\.")
_NAMESPACE = re.compile(r"[a-z0-9-]{1,64}\.?")
"""No inner dot, no underscore: or the topics of two namespaces could be one, and a pattern match a foreign topic."""
_UNSAFE = re.compile(r"[^a-z0-9]+")

_HASH_CHARS = 16
_FILE_CHARS = 200
"""Of 255 bytes: leaves room for `.parquet.tmp` and whatever a backup tool appends."""
_CLUSTER_TOPIC_CHARS = 70
_INSTANCE_TOPIC_CHARS = 97
"""12 (`rdb.records.`) + 70 + 1 + 97 + 4 (`.dlq`) + 65 (namespace) = 249, Kafka's limit."""

DLQ_SUFFIX = ".dlq"


def instance_file(instance: str) -> str:
    """File name of an instance, without suffix (RP-13, RP-71). Raises ConfigError for a name that is not UTF-8."""
    _check("instance", instance)
    if _HOST_PORT.fullmatch(instance) and len(instance) <= _FILE_CHARS:
        return instance.replace(":", "-")
    return _escaped(instance, 100, "~")


def cluster_dir(cluster: str) -> str:
    """Directory name of a cluster. Raises ConfigError for a name that is not UTF-8."""
    _check("cluster", cluster)
    # Some systems drop a dot at the end; the two suffixes would make a directory look like one of our files.
    if _CLUSTER_DIR.fullmatch(cluster) and not cluster.endswith((".", ".tmp", ".parquet")):
        return cluster
    return _escaped(cluster, 100, "~")


def batch_dir(root: Path, batch: Batch) -> Path:
    """Where a batch is once it is published. Another one of the same millisecond would be there as well (T30)."""
    return root / cluster_dir(batch.cluster) / batch.slug


def records_topic(cluster: str, instance: str, namespace: str = "") -> str:
    """Topic of one instance's records: `rdb.records.<cluster>.<instance>`.

    The cluster's part never holds a dot, so the split is unambiguous. Only escaped parts hold an underscore, one each:
    topics stay distinct when Kafka's metric names turn dots into underscores. A host whose first label looks like our
    hash would break that, so it is escaped too.
    """
    _check("cluster", cluster)
    _check("instance", instance)
    if _CLUSTER_TOPIC.fullmatch(cluster) and len(cluster) <= _CLUSTER_TOPIC_CHARS:
        first = cluster
    else:
        first = _escaped(cluster, _CLUSTER_TOPIC_CHARS, "_")
    plain = _HOST_PORT.fullmatch(instance) and not _HASH_FIRST.match(instance)
    if plain and len(instance) <= _INSTANCE_TOPIC_CHARS:
        second = instance.replace(":", "-")
    else:
        second = _escaped(instance, _INSTANCE_TOPIC_CHARS, "_")
    return f"{shared_records_topic(namespace)}.{first}.{second}"


def records_pattern(namespace: str = "") -> str:
    """Regular expression (POSIX extended, anchored) of all instance topics of a namespace and of nothing else."""
    escaped = r"[a-z0-9-]+_[0-9a-f]{16}"
    prefix = shared_records_topic(namespace).replace(".", r"\.")
    return rf"^{prefix}\.([a-z0-9-]+|{escaped})\.([a-z0-9.]+-[0-9]+|{escaped})$"


def shared_records_topic(namespace: str = "") -> str:
    """The one topic of the shared layout: `rdb.records`."""
    return _prefix(namespace) + "rdb.records"


def batches_topic(namespace: str = "") -> str:
    """Topic of the batch facts: `rdb.batches`."""
    return _prefix(namespace) + "rdb.batches"


def dlq_topic(topic: str) -> str:
    """Dead-letter topic of a topic. Raises ConfigError if the topic is too long to have one."""
    if len(topic) > 249 - len(DLQ_SUFFIX):
        raise ConfigError(f"topic {topic}: {len(topic)} characters, so {DLQ_SUFFIX} does not fit; 245 are allowed")
    return topic + DLQ_SUFFIX


def _prefix(namespace: str) -> str:
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise ConfigError(f"namespace {namespace!r}: up to 64 of a-z, 0-9 and dashes, then maybe one dot, are allowed")
    return namespace


def _check(what: str, name: str) -> None:
    if not name:
        raise ConfigError(f"the {what} name is empty")
    try:
        name.encode()
    except UnicodeEncodeError as e:
        raise ConfigError(f"{what} name {name!r} is not valid UTF-8 at character {e.start}") from e


def _escaped(name: str, limit: int, separator: str) -> str:
    stem = _UNSAFE.sub("-", name.lower()).strip("-")
    stem = stem[: limit - _HASH_CHARS - 1] or "x"
    return f"{stem}{separator}{sha256(name.encode()).hexdigest()[:_HASH_CHARS]}"
