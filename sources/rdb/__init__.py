"""Redis and Valkey dump files (RDB) as Arrow record batches. Usable alone: see `RdbReader`."""

from sources.rdb.reader import Position, RdbReader
from sources.rdb.slots import codis_slot, redis_slot
from sources.rdb.window import ByteSource

__all__ = ["ByteSource", "Position", "RdbReader", "codis_slot", "redis_slot"]
