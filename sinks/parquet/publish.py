"""An instance's merged file, and the rename that makes a batch visible."""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from millstream.errors import BatchRefusedError, IdentityMismatchError, MillstreamError, RunVoidError, SinkError
from millstream.failpoints import declare, failpoint
from millstream.logs import get_logger
from schemas.batch import Run
from schemas.names import instance_file
from sinks.base import InstanceRange
from sinks.files import durable, fsync, link_new, rename_dir_new, retried, unique
from sinks.parquet.config import ParquetConfig
from sinks.parquet.merge import write_merged
from sinks.parquet.parts import Part, list_parts
from sinks.parquet.staging import Staging, remove_leftovers

BEFORE_MERGE = declare("parquet.merge.before", "the parts of a run are about to be merged")
BEFORE_MERGE_RENAME = declare("parquet.merge.before_rename", "a merged file is durable under its temporary name")
AFTER_MERGE_RENAME = declare("parquet.merge.after_rename", "a merged file stands under its own name in tmp_<batch>")
BEFORE_PUBLISH = declare("parquet.publish.before_rename", "tmp_<batch> is complete, not yet renamed")
AFTER_PUBLISH = declare("parquet.publish.after_rename", "a batch is visible, its staging tree still stands")
AFTER_DROP = declare("parquet.publish.after_staging_drop", "a batch is visible, its staging tree is gone")

RUN_KEY = "millstream.run"
"""Where a published file holds its run, offsets, parts and rows, as JSON."""

Runs = dict[str, tuple[Run, InstanceRange]]

log = get_logger(__name__)


def finalize_instance(config: ParquetConfig, staging: Staging, run: Run, where: InstanceRange) -> int:
    """Merge a run's parts into `tmp_<slug>/<instance>.parquet`; rows in it. Again, or twice at once, is fine.

    Raises OSError, SinkError (run not valid, parts missing), IdentityMismatchError (another run's file stands there).
    """
    try:
        return _finalize_instance(config, staging, run, where)
    except (FileNotFoundError, BatchRefusedError) as e:
        # Our directories are gone: published meanwhile, with our file in it, or void.
        published = _footer(staging.published / f"{instance_file(run.instance)}.parquet")
        if published is not None and _is_of(published, run, where):
            return int(published["rows"])
        if isinstance(e, BatchRefusedError):
            raise
        raise RunVoidError(f"{e.filename}: instance {run.instance}, run {run.run_id} is not open (any more)") from e


def _finalize_instance(config: ParquetConfig, staging: Staging, run: Run, where: InstanceRange) -> int:
    name = instance_file(run.instance)
    staging.check_owner()
    runs = staging.check_valid(run)
    parts = _covering(list_parts(staging.parts(run)), run, where, staging.parts(run))
    rows = sum(part.rows for part in parts)
    names = "\n".join(part.identity for part in parts)
    footer = _range(run, where) | {"parts": len(parts), "parts_crc": zlib.crc32(names.encode()), "rows": rows}
    target = staging.working / f"{name}.parquet"
    tell = {"path": str(target), "instance": run.instance}
    log.info("parquet_writer_closing", description="merging parts", **tell, parts=len(parts), rows=rows)
    existing = _footer(target)
    if existing != footer:
        if existing is not None and existing["run"] not in runs[:-1]:
            raise IdentityMismatchError(f"{target} holds {existing}, expected {footer}. Move it away")
        _merge(config, staging, run, parts, target, footer, replace=existing is not None)
    fsync(staging.working)
    target.with_name(f"{target.name}.tmp").unlink(missing_ok=True)
    log.info("parquet_writer_closed", description="parts merged", **tell, parts=len(parts))
    log.info("parquet_instance_finalized", description="instance file is in place", **tell, rows=rows)
    return rows


def _merge(
    config: ParquetConfig,
    staging: Staging,
    run: Run,
    parts: list[Part],
    target: Path,
    footer: dict[str, Any],
    replace: bool,
) -> None:
    """Write the file under a name of its own, which `<instance>.parquet.tmp` shows; then put it in place.

    So a retry never appends to, and a second process never writes into, what another began (T32).
    """
    failpoint(BEFORE_MERGE)
    tmp, visible = unique(staging.parts(run), "merge"), target.with_name(f"{target.name}.tmp")
    with retried(tmp):
        with durable(tmp) as sync:
            visible.unlink(missing_ok=True)
            with suppress(FileExistsError):
                visible.hardlink_to(tmp)
            write_merged(
                tmp,
                parts,
                run,
                sort=config.sort,
                codec=config.codec,
                metadata={RUN_KEY: json.dumps(footer, ensure_ascii=False)},
            )
            sync()
        failpoint(BEFORE_MERGE_RENAME)
        if replace:
            # Only the file of a void run gives way, and only to the run that voided it.
            staging.check_valid(run)
            tmp.rename(target)
        else:
            if not link_new(tmp, target) and (found := _footer(target)) != footer:
                raise IdentityMismatchError(f"{target} holds {found}, expected {footer}. Move it away")
            tmp.unlink(missing_ok=True)
    failpoint(AFTER_MERGE_RENAME)


def _covering(parts: list[Part], run: Run, where: InstanceRange, directory: Path) -> list[Part]:
    """Check that parts are of this run and cover its range once. Raises SinkError naming the gap or the overlap."""
    expected = where.begin + 1
    for part in parts:
        what = json.loads(part.identity)
        ours = (run.run_id, run.batch.key, run.instance, where.topic_id, where.epoch, where.partition)
        theirs = tuple(what.get(k) for k in ("run", "batch", "instance", "topic_id", "epoch", "partition"))
        if theirs != ours:
            raise IdentityMismatchError(f"{part.path} belongs to {theirs}, not to {ours}. Move it away")
        if part.first < expected or part.last >= where.done or (where.exclusive and part.first > expected):
            kind = "a gap" if part.first > expected else "an overlap"
            raise RunVoidError(
                f"{part.path}: instance {run.instance}, {kind}: offset {expected} is next, and {where.done} the end"
            )
        expected = part.last + 1
    if where.exclusive and parts and expected != where.done:
        raise RunVoidError(
            f"{directory}: instance {run.instance}, a gap: offsets {expected} to {where.done - 1} are in no part"
        )
    return parts


def finalize_batch(staging: Staging, runs: Runs) -> None:
    """Publish: check every instance's file, rename `tmp_<slug>` to `<slug>`, drop the staging tree.

    Published already with these runs is success (T31). Raises BatchRefusedError (other or void runs, foreign files),
    SinkError (a file is missing), IdentityMismatchError, OSError.
    """
    tell = {"path": str(staging.published), "batch": staging.batch.key}
    known = staging.staged() | {instance_file(name) for name in runs}
    if not staging.published.exists():
        try:
            staging.check_owner()
            remove_leftovers(staging.working, known)
            try:
                _check_files(staging.working, runs)
            except IdentityMismatchError:
                _check_valid(staging, runs)  # the file may be a later run's, which voided this one
                raise
            _check_valid(staging, runs)
            failpoint(BEFORE_PUBLISH)
            log.info("parquet_batch_dir_renaming", description="publishing the batch", **tell, instances=len(runs))
            rename_dir_new(staging.working, staging.published)
        except (MillstreamError, OSError):
            # Another process may have published between any two of these steps: what stands there decides.
            if not staging.published.exists():
                raise
    failpoint(AFTER_PUBLISH)
    # A paused merge may have put its temporary file here just before the rename.
    remove_leftovers(staging.published, known)
    try:
        _check_files(staging.published, runs)
    except (SinkError, BatchRefusedError) as e:
        raise BatchRefusedError(
            f"{staging.published} was published by another run: {e}. "
            "Clean up (remove it) or use another batch timestamp"
        ) from e
    fsync(staging.published.parent)
    staging.drop()
    failpoint(AFTER_DROP)
    log.info("parquet_batch_finalized", description="batch is published", **tell, instances=len(runs))


def _check_valid(staging: Staging, runs: Runs) -> None:
    """A merged file may be of a run that a later one voided since: refused, the later one publishes."""
    for run, _ in runs.values():
        try:
            staging.check_valid(run)
        except SinkError as e:
            raise BatchRefusedError(f"{e}: batch {staging.batch.key} is not published with it") from e


def _check_files(directory: Path, runs: Runs) -> None:
    """One file per instance with its run's footer, and nothing else."""
    expected = {f"{instance_file(instance)}.parquet": instance for instance in runs}
    for file, instance in expected.items():
        run, where = runs[instance]
        found = _footer(directory / file)
        if found is None:
            tell = {"path": str(directory / file), "instance": instance}
            log.warning("parquet_instance_not_found", description="expected instance has no file", **tell)
            raise SinkError(f"{directory / file}: the file of instance {instance} is missing")
        if not _is_of(found, run, where):
            raise IdentityMismatchError(f"{directory / file} holds {found}, expected {_range(run, where)}")
    foreign = sorted({path.name for path in directory.iterdir()} - expected.keys())
    if foreign:
        raise BatchRefusedError(f"{directory} holds what is not of this batch: {', '.join(foreign)}. Move it away")


def _range(run: Run, where: InstanceRange) -> dict[str, Any]:
    return {
        "run": run.run_id, "batch": run.batch.key, "instance": run.instance, "topic_id": where.topic_id,
        "epoch": where.epoch, "partition": where.partition, "begin": where.begin, "done": where.done,
    }  # fmt: skip


def _is_of(footer: dict[str, Any], run: Run, where: InstanceRange) -> bool:
    return footer.items() >= _range(run, where).items()


def _footer(path: Path) -> dict[str, Any] | None:
    """What a merged file says of itself; None if there is none. Raises IdentityMismatchError if it is not ours."""
    try:
        return read_footer(path)
    except FileNotFoundError:
        return None


def read_footer(path: Path) -> dict[str, Any]:
    """What a merged file says of itself. Raises FileNotFoundError, IdentityMismatchError if it is not ours."""
    try:
        footer: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[RUN_KEY.encode()])
    except (pa.ArrowInvalid, ValueError, KeyError, TypeError) as e:
        raise IdentityMismatchError(f"{path} is damaged or no file of ours: {e!r}. Move it away") from e
    return footer
