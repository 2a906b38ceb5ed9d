"""Directories of one batch: who owns it, which run of an instance is valid, what is published.

    <dir>/<cluster>/tmp_<slug>/<instance>.parquet      merged files, not visible yet
    <dir>/<cluster>/<slug>/<instance>.parquet          published
    <dir>/.staging/<cluster>/<slug>/owner.json         whose batch it is
    <dir>/.staging/<cluster>/<slug>/<instance>/run-<n> runs in the order in which they began; the last one is valid
    <dir>/.staging/<cluster>/<slug>/<instance>/<run>/  parts

Only `open` and `open_run` make directories, and publishing takes the staging tree away at one stroke: a worker that
wakes up later finds no place to write to (T7).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from millstream.errors import BatchRefusedError, IdentityMismatchError, RunVoidError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from schemas.batch import Batch, Run
from schemas.names import batch_dir, cluster_dir, instance_file
from sinks.files import drop_tree, ensure_dir, fsync, make_dir, put_new

AFTER_OWNER = declare("parquet.open_batch.after_owner", "the owner file of a batch stands")
AFTER_MKDIR = declare("parquet.open_batch.after_mkdir", "tmp_<batch> stands, publication is not looked for again yet")

_RUN_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ABORTED = ""
"""Stands in place of a run that takes over from an aborted one."""

log = get_logger(__name__)


class Staging:
    """Paths of one batch, and the rules of who may use them."""

    def __init__(self, root: Path, batch: Batch, owner: str) -> None:
        cluster = cluster_dir(batch.cluster)
        self.batch, self.owner = batch, owner
        self.trash = root / ".staging"
        self.root = self.trash / cluster / batch.slug
        self.working = root / cluster / f"tmp_{batch.slug}"  # RP-12
        self.published = batch_dir(root, batch)

    def open(self) -> None:
        """Take the batch for its owner; again is fine. Raises BatchRefusedError, OSError."""
        owner_file = self.root / "owner.json"
        self._not_published()
        # Looked at in this order: who opens the batch beside us puts the owner file first, then makes the directory.
        made = os.path.lexists(self.working)
        if not owner_file.exists():
            self._not_published()  # publishing takes both away, after the batch is visible
            if made:
                raise BatchRefusedError(
                    f"{self.working} is there but not ours: {self._ways_out(self.working)}"  # T29, RP-70
                )
            ensure_dir(self.root)
            # Whole batch key: two batches within one millisecond share a directory name (T30).
            content = json.dumps({"owner": self.owner, "batch": self.batch.key}, ensure_ascii=False)
            put_new(owner_file, lambda tmp: _write(tmp, content))
        failpoint(AFTER_OWNER)
        self.check_owner()
        ensure_dir(self.working.parent)
        if make_dir(self.working):
            log.info(
                "parquet_batch_dir_created", description="batch opened", path=str(self.working), batch=self.batch.key
            )
        failpoint(AFTER_MKDIR)
        self._not_published(remove_made=True)  # hole f

    def check_owner(self) -> None:
        """Raise BatchRefusedError unless the batch was opened by our owner."""
        path = self.root / "owner.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BatchRefusedError(f"{path} is missing: batch {self.batch.key} is not open (any more)") from None
        if found != {"owner": self.owner, "batch": self.batch.key}:
            raise BatchRefusedError(
                f"{self.root} belongs to {found['owner']!r}, batch {found['batch']}, not to {self.owner!r}, batch "
                f"{self.batch.key}: {self._ways_out(self.working, self.root)}"
            )

    def _not_published(self, remove_made: bool = False) -> None:
        if not os.path.lexists(self.published):
            return
        if remove_made:
            # We were paused while the batch was published: what we made since is empty and ours.
            if self.working.is_dir() and not any(self.working.iterdir()):
                self.working.rmdir()
            if not self.staged():
                self.drop()
        raise BatchRefusedError(f"{self.published} is published already: {self._ways_out(self.published)}")

    def _ways_out(self, *paths: Path) -> str:
        return f"clean up (remove {' and '.join(map(str, paths))}) or use another batch timestamp"

    def drop(self) -> None:
        """Take the staging tree away."""
        drop_tree(self.root, self.trash)

    def open_run(self, run: Run) -> Path:
        """Make a run the valid one of its instance, drop older ones' parts. Raises SinkError if it is an older one."""
        if not _RUN_ID.fullmatch(run.run_id):
            raise SinkError(f"run id {run.run_id!r} of instance {run.instance}: 32 hexadecimal digits are expected")
        home = self.home(run)
        make_dir(home)
        while run.run_id not in (runs := self.runs(run)):
            _claim(home, len(runs), run.instance, run.run_id)
        self.check_valid(run)
        made = make_dir(home / run.run_id)
        for older in filter(None, runs[:-1]):
            drop_tree(home / older, self.trash)
        if made:
            log.info("parquet_writer_open", description="run opened", path=str(home), instance=run.instance)
        return home / run.run_id

    def abort_run(self, run: Run) -> None:
        """Void a run and drop its parts; it cannot be opened again. Merged files stay (RP-62)."""
        home = self.home(run)
        while (runs := self.runs(run)) and runs[-1] == run.run_id:
            _claim(home, len(runs), run.instance, _ABORTED)
        if run.run_id in runs:
            drop_tree(home / run.run_id, self.trash)

    def check_valid(self, run: Run) -> list[str]:
        """Raise SinkError unless the run is its instance's last one. Returns the runs, oldest first."""
        runs = self.runs(run)
        if not runs or runs[-1] != run.run_id:
            by = f"voided by run {runs[-1]}" if runs and runs[-1] else "aborted" if runs else "never opened"
            raise RunVoidError(f"{self.home(run)}: run {run.run_id} of instance {run.instance} was {by}")
        return runs

    def runs(self, run: Run) -> list[str]:
        """Ids of an instance's runs in the order in which they began; empty text where one was aborted."""
        found = []
        for path in sorted(self.home(run).glob("run-" + "[0-9]" * 6)):
            claim = json.loads(path.read_text(encoding="utf-8"))
            if claim["instance"] != run.instance:
                raise IdentityMismatchError(f"{path} belongs to instance {claim['instance']!r}, not {run.instance!r}")
            found.append(claim["run"])
        return found

    def home(self, run: Run) -> Path:
        """Directory of an instance in the staging tree."""
        return self.root / instance_file(run.instance)

    def parts(self, run: Run) -> Path:
        """Directory of a run's parts; stands from `open_run` until the run is void or the batch published."""
        return self.home(run) / run.run_id

    def staged(self) -> set[str]:
        """File names of the instances that were ever opened."""
        try:
            return {path.name for path in self.root.iterdir() if path.is_dir()}
        except FileNotFoundError:
            return set()


def _claim(home: Path, number: int, instance: str, run_id: str) -> None:
    """Put a run on record as the instance's next one; another process may be faster, so look again after it."""
    content = json.dumps({"instance": instance, "run": run_id}, ensure_ascii=False)
    put_new(home / f"run-{number:06d}", lambda tmp: _write(tmp, content))


def _write(tmp: Path, content: str) -> None:
    with tmp.open("w", encoding="utf-8") as file:
        file.write(content)


def remove_leftovers(directory: Path, instances: set[str]) -> None:
    """Remove our `<instance>.parquet.tmp` from a batch's directory."""
    for name in instances:
        (directory / f"{name}.parquet.tmp").unlink(missing_ok=True)
    fsync(directory)
