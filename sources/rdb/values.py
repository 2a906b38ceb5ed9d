"""How to pass over the value of each type byte, and how many members it has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from schemas.records import ENCODINGS, TYPES
from sources.rdb.blobs import INTSET, LISTPACK, ZIPLIST, ZIPMAP
from sources.rdb.window import Window

Counter = Callable[[Window], int]
"""Passes over a value and returns its member_count."""


def _packed(window: Window, kind: str, width: int) -> int:
    """One packed string; `width` elements make a member."""
    start = window.offset
    elements = window.blob_count(kind)
    if elements % width:
        window.corrupt(f"a {kind} of {elements} elements, which is not a multiple of {width}", start)
    return elements // width


def _strings(window: Window, width: int, trailer: int = 0) -> int:
    """Members of `width` strings each; `trailer` bytes follow each string."""
    count = window.length()
    if window.size is not None:
        window.expect(count * width * (1 + trailer))
    window.skip_strings(count * width, trailer=trailer)
    return count


def _zset(window: Window) -> int:
    """Members with their scores as text (Redis before 4)."""
    count = window.length()
    window.expect(2 * count)
    for _ in range(count):
        window.skip_string()
        size = window.byte()
        if size < 253:  # 253..255: not a number, infinities
            window.skip(size)
    return count


def _quicklist(window: Window) -> int:
    nodes = window.length()
    window.expect(nodes)
    return sum(window.blob_count(ZIPLIST) for _ in range(nodes))


def _quicklist2(window: Window) -> int:
    nodes, count = window.length(), 0
    window.expect(2 * nodes)
    for _ in range(nodes):
        start = window.offset
        container = window.length()
        if container == 1:  # one large element by itself
            window.skip_string()
            count += 1
        elif container == 2:
            count += window.blob_count(LISTPACK)
        else:
            window.corrupt(f"unknown quicklist container {container}", start)
    return count


def _hash_metadata(window: Window, *, min_expire: bool) -> int:
    """Redis 7.4+: a relative time to live (0: none) before each field and value."""
    if min_expire:
        window.skip(8)
    count = window.length()
    window.expect(3 * count)
    for _ in range(count):
        window.length()
        window.skip_strings(2)
    return count


def _hash_listpack_ex(window: Window, *, min_expire: bool) -> int:
    """Redis 7.4+: field, value and expiry time as three elements of a listpack."""
    if min_expire:
        window.skip(8)
    return _packed(window, LISTPACK, 3)


def _hash_2(window: Window) -> int:
    """Valkey 9+: field, value and the expiry time in 8 bytes (-1: none)."""
    count = window.length()
    window.expect(10 * count)
    for _ in range(count):
        window.skip_strings(2)
        window.skip(8)
    return count


def _stream(window: Window, version: int) -> int:
    nodes = window.length()
    window.expect(2 * nodes)
    window.skip_strings(2 * nodes)  # for each radix tree node its first id and its listpack
    count = window.length()
    for _ in range(2 if version == 1 else 7):  # last id; first id, maximal deleted id, entries added
        window.length()
    groups = window.length()
    window.expect(groups)
    for _ in range(groups):
        window.skip_string()
        for _ in range(2 if version == 1 else 3):  # last delivered id; entries read
            window.length()
        pending = window.length()
        window.expect(25 * pending)
        for _ in range(pending):
            window.skip(16 + 8)  # id, delivery time
            window.length()  # deliveries
        consumers = window.length()
        window.expect(consumers)
        for _ in range(consumers):
            window.skip_string()
            window.skip(8 if version < 3 else 16)  # seen time; active time
            window.skip(16 * window.length())
    return count


def skip_module_data(window: Window) -> None:
    """Pass over what a module wrote: a list of marked values up to an end mark."""
    while True:
        start = window.offset
        kind = window.length()
        if kind == 0:
            return
        if kind in (1, 2):  # signed, unsigned
            window.length()
        elif kind in (3, 4):  # float, double
            window.skip(4 if kind == 3 else 8)
        elif kind == 5:
            window.skip_string()
        else:
            window.corrupt(f"unknown module value {kind}", start)


def _module(window: Window) -> int:
    window.length()  # the module's name and version
    skip_module_data(window)
    return 0


def _module_pre_ga(window: Window) -> int:
    window.corrupt("a module value in the format of Redis 4.0 release candidates, which only that module can read")


def _string(window: Window) -> int:
    window.skip_string()
    return 1


_COMMON: dict[int, tuple[str, str, Counter]] = {
    0: ("string", "raw", _string),  # or int or lzf: the string itself tells
    1: ("list", "list", partial(_strings, width=1)),
    2: ("set", "raw", partial(_strings, width=1)),
    3: ("zset", "skip_list", _zset),
    4: ("hash", "raw", partial(_strings, width=2)),
    5: ("zset", "skip_list", partial(_strings, width=1, trailer=8)),
    6: ("module", "module", _module_pre_ga),
    7: ("module", "module", _module),
    9: ("hash", "zip_map", partial(_packed, kind=ZIPMAP, width=2)),
    10: ("list", "zip_list", partial(_packed, kind=ZIPLIST, width=1)),
    11: ("set", "int_set", partial(_packed, kind=INTSET, width=1)),
    12: ("zset", "zip_list", partial(_packed, kind=ZIPLIST, width=2)),
    13: ("hash", "zip_list", partial(_packed, kind=ZIPLIST, width=2)),
    14: ("list", "quick_list", _quicklist),
    15: ("stream", "list_packs", partial(_stream, version=1)),
    16: ("hash", "list_pack", partial(_packed, kind=LISTPACK, width=2)),
    17: ("zset", "list_pack", partial(_packed, kind=LISTPACK, width=2)),
    18: ("list", "quick_list2", _quicklist2),
    19: ("stream", "list_packs2", partial(_stream, version=2)),
    20: ("set", "list_pack", partial(_packed, kind=LISTPACK, width=1)),
    21: ("stream", "list_packs3", partial(_stream, version=3)),
}
_REDIS: dict[int, tuple[str, str, Counter]] = _COMMON | {
    22: ("hash", "metadata", partial(_hash_metadata, min_expire=False)),  # release candidates of 7.4
    23: ("hash", "list_pack_ex", partial(_hash_listpack_ex, min_expire=False)),
    24: ("hash", "metadata", partial(_hash_metadata, min_expire=True)),
    25: ("hash", "list_pack_ex", partial(_hash_listpack_ex, min_expire=True)),
}
_VALKEY: dict[int, tuple[str, str, Counter]] = _COMMON | {22: ("hash", "metadata", _hash_2)}

Values = dict[int, tuple[int, int, Counter]]
"""By type byte: index in TYPES, index in ENCODINGS, and how to pass over the value."""


def _indexed(values: dict[int, tuple[str, str, Counter]]) -> Values:
    return {code: (TYPES.index(t), ENCODINGS.index(e), counter) for code, (t, e, counter) in values.items()}


REDIS_VALUES = _indexed(_REDIS)
VALKEY_VALUES = _indexed(_VALKEY)
"""Files with the magic VALKEY: from type 22 on the bytes mean something else than in Redis."""
STRING_ENCODINGS = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2), ENCODINGS.index("int")),
    0xC3: ENCODINGS.index("lzf"),
}
"""Encoding of a string (type byte 0) by its first byte; every other first byte is `raw`."""
