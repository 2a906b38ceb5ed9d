"""One entry of an RDB file, read step by step: every type byte and opcode that Redis and Valkey ever wrote.

This is the complete reader. `scan` reads the most common shapes of keys, many at a time, and leaves the rest to here.
"""

from __future__ import annotations

from typing import NamedTuple

from sources.rdb.values import STRING_ENCODINGS, Values, skip_module_data
from sources.rdb.window import Window

SUPPORTED = "Redis RDB versions 1 to 12 (Redis 2 to 8.2) and VALKEY080 (Valkey 9)"

SLOT_IMPORT, SLOT_INFO, FUNCTION2, FUNCTION_PRE_GA, MODULE_AUX = range(243, 248)
IDLE, FREQ, AUX, RESIZEDB, EXPIRETIME_MS, EXPIRETIME, SELECTDB, EOF = range(248, 256)
_INT64 = 1 << 63


class Entry(NamedTuple):
    """What one call of `read_entry` passed over."""

    key: bytes | None
    """None: no key, but an opcode or the end of the file."""
    db: int
    eof: bool = False
    type: int = 0
    """Index in TYPES."""
    encoding: int = 0
    """Index in ENCODINGS."""
    member_count: int = 0
    rdb_size: int = 0
    """Bytes from the type byte to the value's end, both included."""
    expire_at_ms: int | None = None
    idle_seconds: int | None = None
    freq: int | None = None


def read_entry(window: Window, db: int, values: Values) -> Entry:
    """Read up to the end of the next key's value, or of an opcode that belongs to no key.

    `db` is the database selected before; the entry has the one selected now. Raises CorruptSourceError.
    """
    expire_at_ms = idle_seconds = freq = None
    while True:
        start = window.offset
        code = window.byte()
        if code in values:
            break
        if code == EXPIRETIME_MS:
            expire_at_ms = window.integer(8)
        elif code == EXPIRETIME:
            expire_at_ms = window.integer(4) * 1000
        elif code == IDLE:
            idle_seconds = _number(window, "idle time", start)
        elif code == FREQ:
            freq = window.byte()
        else:
            if code == SELECTDB:
                db = _number(window, "database number", start)
            elif code != EOF:
                _skip_opcode(window, code, start)
            if code == EOF or (expire_at_ms is None and idle_seconds is None and freq is None):
                return Entry(None, db, eof=code == EOF)
    key = window.string()
    type_, encoding, skip = values[code]
    if code == 0:
        encoding = STRING_ENCODINGS.get(window.peek(1)[0], encoding)
    member_count = skip(window)
    if member_count >= _INT64:
        window.corrupt(f"a value with {member_count} members", start)
    size = window.offset - start
    return Entry(key, db, False, type_, encoding, member_count, size, expire_at_ms, idle_seconds, freq)


def _number(window: Window, what: str, start: int) -> int:
    value = window.length()
    if value >= _INT64:
        window.corrupt(f"a {what} of {value}", start)
    return value


def _skip_opcode(window: Window, code: int, start: int) -> None:
    """Pass over what concerns no key: server information, size hints, functions, module data, slots."""
    if code == AUX:
        window.skip_strings(2)
    elif code == RESIZEDB:
        window.length()
        window.length()
    elif code == SLOT_INFO:
        for _ in range(3):
            window.length()
    elif code == FUNCTION2:
        window.skip_string()
    elif code == FUNCTION_PRE_GA:  # release candidates of 7.0: name, engine, description if any, code
        window.skip_strings(2)
        if window.length():
            window.skip_string()
        window.skip_string()
    elif code == MODULE_AUX:
        for _ in range(3):  # module, kind of the number that follows, when to load
            window.length()
        skip_module_data(window)
    elif code == SLOT_IMPORT:  # Valkey 9+: job name, ranges of slots
        window.skip_string()
        ranges = window.length()
        window.expect(2 * ranges)
        for _ in range(2 * ranges):
            window.length()
    else:
        window.corrupt(f"unknown type or opcode {code}; supported are {SUPPORTED}", start)
