"""A table from its changelog."""

from __future__ import annotations

from bench import data
from bench.runner import Contender
from bench.session import Bench, stock, worker

SECONDS = (0, 22)
KEYS, STOCK_KEYS = 1_000_000, 20_000


def run(bench: Bench) -> None:
    """Each round has changelogs of its own."""
    bench.title("restore", f"Restoring a table of {KEYS:,} keys (stock Faust: {STOCK_KEYS:,}) from its changelog")
    contenders = []
    for turn in range(bench.rounds):
        for who, keys in {"millstream": KEYS, "stock": STOCK_KEYS}.items():
            app = f"bench-restore-{who}-{turn}"
            data.fill(bench.servers, f"{app}-counts-changelog", data.changelog_records(keys))
            data.create(bench.servers, f"{app}-in")
            env = {"MILLSTREAM_APP_ID": app}
            if who == "stock":
                contenders.append(stock("stock Faust", f"{app}-in", keys, "restore", env))
            else:
                contenders.append(Contender("on", "millstream", worker("restore"), f"{app}-in", keys, env))
    bench.take_turns("restore", contenders, once=True)
