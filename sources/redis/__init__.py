"""Dumps straight from Redis servers: standalone, Redis Cluster, Codis (docs/redis-sources.md)."""

from sources.redis.endpoint import RedisEndpoint, Tls
from sources.redis.errors import RedisSourceError, TransferDroppedError
from sources.redis.stream import DumpStream

__all__ = ["DumpStream", "RedisEndpoint", "RedisSourceError", "Tls", "TransferDroppedError"]
