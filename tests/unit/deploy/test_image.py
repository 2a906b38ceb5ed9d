"""The Dockerfile. No container engine runs here: what was built and how is told in docs/compose.md."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from millstream.errors import SinkError
from millstream.settings import PREFIX, Settings
from sinks.clickhouse.config import ClickHouseConfig
from sinks.clickhouse.embedded import EmbeddedClient
from tests.unit.deploy.dockerfile import DOCKERFILE, ROOT, command, environment, instructions, last_stage

IMAGE = ROOT / "deploy" / "image"


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)(==\S+)", path.read_text("utf-8"), re.MULTILINE))


def test_hadolint_finds_nothing() -> None:  # DF-61
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_image_runs_the_versions_that_the_tests_ran() -> None:
    everything = locked(ROOT / "requirements.lock")
    for name in ("requirements.lock", "build.lock"):
        assert locked(IMAGE / name).items() <= everything.items(), "run `make lock`"


def test_the_image_has_what_the_program_needs_and_no_tools() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = {_package(line) for line in project["dependencies"] + extras.pop("otel")}
    there = locked(IMAGE / "requirements.lock").keys()
    assert named <= there, "run `make lock`"
    assert not ({_package(line) for lines in extras.values() for line in lines} - named) & there


def _package(requirement: str) -> str:
    return re.split(r"[\[<>=!]", requirement)[0]


def test_only_what_is_locked_is_installed() -> None:
    for _, rest in (i for i in instructions() if i[0] == "RUN"):
        for step in re.split(r"&&", rest):
            ours = "--no-build-isolation ." in step
            if re.search(r"\bpip (install|wheel|--)", step) and not ours:
                assert "--require-hashes" in step or "--no-index" in step, step


def test_every_package_is_copied_and_nothing_else_is_sent_to_the_builder() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    sources = {source for one in copied for source in one}
    assert {pattern.rstrip("*") for pattern in packages["find"]["include"]} <= sources
    assert all((ROOT / source).exists() for source in sources)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert {s for s in sources if not any(fnmatch.fnmatch(s, k) for k in kept)} == set()


def test_it_does_not_run_as_root_and_every_setting_of_it_is_one() -> None:
    assert ("USER", "10001:10001") in last_stage()
    named = {name.removeprefix(PREFIX).lower() for name in environment() if name.startswith(PREFIX)}
    assert named <= set(Settings.model_fields)
    assert shutil.which(command()[0], path=str(Path(sys.executable).parent)), command()


async def test_an_image_without_chdb_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chdb.session", None)
    with pytest.raises(SinkError, match=r"engine is not installed.*pip install 'chdb.*http://"):
        await EmbeddedClient(ClickHouseConfig.parse(f"chdb://{tmp_path}/c?database=d")).open()
