"""`millstream report`: what is written, and what is said about bad input."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from millstream.settings import override_settings
from schemas.batch import Batch
from schemas.names import cluster_dir
from streams.cli import cli
from tests.integration.report.data import HOSTILE, NEWER, OLDER, OTHER, Instances
from tests.support.published import publish_parquet, wire
from tests.unit.docs.documents import ROOT, commands


def run(*words: str | Path, **environment: str) -> Result:
    with override_settings():
        return CliRunner().invoke(cli, ["report", *map(str, words)], env=environment or None, prog_name="millstream")


@pytest.fixture(autouse=True)
def _at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Page(HTMLParser):
    """Elements of a page: tags with attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


def figures(page: Path) -> dict[str, Any]:
    return Page(page.read_text("utf-8")).data


def test_both_sources_write_the_same_page(parquet: Path, chdb_url: str, http_url: str, tmp_path: Path) -> None:
    slug = NEWER.slug
    words = ["--cluster", NEWER.cluster, "--compare", OLDER.rfc3339]
    assert run("from-parquet", parquet, *words).exit_code == 0
    default = tmp_path / f"rdb_report_{cluster_dir(NEWER.cluster)}_{slug}.html"
    assert default.stat().st_mode & 0o777 == 0o644
    pages = [default.read_text("utf-8")]
    for url in (chdb_url, http_url):
        result = run("from-clickhouse", "--batch", slug, *words, "--output", "c.html", MILLSTREAM_CLICKHOUSE_URL=url)
        assert result.exit_code == 0, result.output
        assert "s3cret" not in result.output
        pages.append(Path("c.html").read_text("utf-8"))
    # But for the line about the source.
    parts = [re.split(r"<footer>.*?</footer>", page) for page in pages]
    assert parts[0] == parts[1] == parts[2]
    assert "reader:***@" in pages[2]
    assert "s3cret" not in pages[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["c.html", default.name])  # nothing is left over


def test_a_page_is_one_file_that_loads_nothing_and_holds_hostile_keys_as_text(parquet: Path) -> None:  # T34
    assert run("from-parquet", parquet, "--cluster", NEWER.cluster, "--output", "r.html").exit_code == 0
    text = Path("r.html").read_text("utf-8")
    page = Page(text)
    assert len(page.scripts) == 2  # the data and ours: no key became one
    assert {"img", "link", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in page.elements)
    assert not {"src", "style", "onclick", "onload"} & {name for _, found in page.elements for name in found}
    assert all(v.startswith("#") for _, found in page.elements for n, v in found.items() if n == "href" and v)
    (policy,) = (a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "\u202e" not in text  # which would turn the reading direction
    keys = {base64.b64decode(key) for key, *_ in page.data["top_keys"]}
    assert all(key != b"x" * 5000 for key in keys)  # cut
    assert page.data["cluster"] == NEWER.cluster


def test_every_hostile_key_is_shown_and_exported_byte_for_byte(tmp_path: Path) -> None:
    batch = Batch("hostile", NEWER.batch_ts)
    publish_parquet(tmp_path / "out", {batch: {"i:1": wire([{"key": key, "rdb_size": 9} for key in HOSTILE])}})
    assert run("from-parquet", "out", "--output", "r.html").exit_code == 0
    page = Page(Path("r.html").read_text("utf-8"))
    exported = {base64.b64decode(key) for key, *_ in page.data["top_keys"]}
    assert exported == {key[:4096] for key in HOSTILE}
    assert len(page.scripts) == 2


def test_a_batch_without_keys_has_a_page(tmp_path: Path) -> None:
    batch = Batch("empty", NEWER.batch_ts)
    publish_parquet(tmp_path / "out", {batch: {"i:1": wire([])}, OTHER: {"i:1": wire([])}})
    assert run("from-parquet", "out", "--cluster", "empty", "--output", "r.html").exit_code == 0
    assert figures(Path("r.html"))["keys"] == 0


def test_the_newest_batch_is_the_default_and_a_running_one_is_not_seen(parquet: Path, tmp_path: Path) -> None:
    shutil.copytree(parquet, "out")
    home = Path("out") / cluster_dir(NEWER.cluster)
    (home / OLDER.slug).rename(home / "tmp_2099-01-01_00-00-00.000Z")
    assert run("from-parquet", "out", "--cluster", NEWER.cluster, "--output", "r.html").exit_code == 0
    assert figures(Path("r.html"))["batch"] == NEWER.rfc3339
    result = run("from-parquet", "out", "--cluster", NEWER.cluster, "--batch", OLDER.slug)
    assert result.exit_code == 1
    assert f"no published batch {OLDER.slug}" in result.output


def _refusals() -> Iterator[tuple[str, list[str], str, int]]:
    cluster = ["--cluster", NEWER.cluster]
    yield "several clusters", [], f"choose one by --cluster: {NEWER.cluster}, other", 1
    yield "unknown cluster", ["--cluster", "prod"], "no published batch of cluster 'prod'; there is", 1
    yield (
        "unknown batch",
        [*cluster, "--batch", "2020-01-01T00:00:00Z"],
        f"there is {NEWER.rfc3339}, {OLDER.rfc3339}",
        1,
    )
    nearly = Batch("", NEWER.batch_ts + 1).rfc3339
    yield "a nanosecond later", [*cluster, "--batch", nearly], f"no published batch {nearly}", 1  # T30, T36
    yield "no time", [*cluster, "--batch", "yesterday"], "'yesterday' is not an RFC 3339 time", 2
    yield "itself", [*cluster, "--compare", NEWER.slug], "that is the batch itself", 1
    yield "compared with nothing", [*cluster, "--compare", "2020-01-01T00:00:00Z"], "no published batch 2020", 1
    yield "no such folder", [*cluster, "--output", "missing/r.html"], "r.html: cannot be written: No such file", 2


@pytest.mark.parametrize(("words", "said", "code"), [pytest.param(*rest, id=name) for name, *rest in _refusals()])
def test_what_is_wrong_is_said_by_both_sources(
    parquet: Path, chdb_url: str, words: list[str], said: str, code: int
) -> None:
    for source in (["from-parquet", parquet], ["from-clickhouse", "--url", chdb_url]):
        result = run(*source, *words)
        assert result.exit_code == code, result.output
        assert said in " ".join(result.output.split())
        assert "Traceback" not in result.output
        assert list(Path().iterdir()) == []


def test_a_source_that_is_not_there_is_named(tmp_path: Path, http_url: str) -> None:
    said = {
        "holds no published batch": ("from-parquet", tmp_path),
        "there is no directory": ("from-clickhouse", "--url", f"chdb://{tmp_path}/nowhere?database=redis"),
        "check user and password": ("from-clickhouse", "--url", http_url.replace("s3cret", "wr0ng")),
        "create the tables": ("from-clickhouse", "--url", http_url.replace("=redis", "=default")),
    }
    for text, words in said.items():
        result = run(*words)
        assert result.exit_code == 1, result.output
        assert text in " ".join(result.output.split())
        assert "wr0ng" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named_and_other_batches_can_be_read(parquet: Path) -> None:
    shutil.copytree(parquet, "out")
    home = Path("out") / cluster_dir(NEWER.cluster)
    broken = sorted((home / NEWER.slug).glob("*.parquet"))[1]
    content = bytearray(broken.read_bytes())
    content[4:4000] = bytes(3996)
    broken.write_bytes(content)
    cluster = ["--cluster", NEWER.cluster]
    result = run("from-parquet", "out", *cluster)
    assert result.exit_code == 1
    assert broken.name in "".join(result.output.split())
    for path in (home / NEWER.slug).iterdir():
        path.write_bytes(b"PAR1 nothing")
    assert run("from-parquet", "out", *cluster, "--batch", OLDER.slug, "--output", "r.html").exit_code == 0


def test_two_batches_of_one_millisecond_are_told_apart_by_their_nanoseconds(
    chdb_url: str, batches: dict[Batch, Instances]
) -> None:  # T30
    from streams.cli.report import choose

    twins = [Batch("c", 10**18 + 2), Batch("c", 10**18 + 1)]
    with pytest.raises(Exception, match="share this name"):
        choose(twins, None, twins[0].slug, "here")
    assert choose(twins, "c", twins[1].rfc3339, "here") == twins[1]


def test_the_examples_of_the_document_run(tmp_path: Path, batches: dict[Batch, Instances]) -> None:
    days = ("2026-11-22T08:30:00Z", "2026-11-23T08:30:00Z")
    from schemas.batch import parse_rfc3339

    found = {Batch("prod", parse_rfc3339(day)): batches[b] for day, b in zip(days, (OLDER, NEWER), strict=True)}
    publish_parquet(tmp_path / "out", found)
    shown = [w[2:] for w in commands(ROOT / "docs" / "report.md") if w[:3] == ["millstream", "report", "from-parquet"]]
    for words in shown:
        result = run(*words)
        assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.glob("*.html")} == {
        "rdb_report_prod_2026-11-23_08-30-00.000Z.html", "yesterday.html", "changes.html",
    }  # fmt: skip
