"""What programs of our own do first, so that they start quickly."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder


def without_pandas() -> None:
    """Let pyarrow believe that there is no pandas, which it would import with its first array: 1.2 CPU-seconds.

    pyarrow looks only once, so `to_pandas` fails in this process from then on, while `import pandas` works. Not for
    workers with agents of others, who may want `to_pandas`: `load_pandas`.
    """
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([""])
    finally:
        sys.meta_path.remove(hidden)


def load_pandas() -> None:
    """Let pyarrow import pandas now, if it is installed, and not in the middle of a worker's first chunk. Blocking."""
    import pyarrow as pa

    pa.array([""])


class _Hidden(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Refuse pandas, leave the others to the next finder."""
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is hidden for a moment", name=fullname)
