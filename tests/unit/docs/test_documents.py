"""What the documents name exists: links, settings, commands, options, targets, tests, log lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from millstream.settings import OTHER_VARIABLES, PREFIX, Settings
from streams.cli import cli
from tests.unit.docs import settings_table
from tests.unit.docs.documents import (
    CHINESE,
    ENGLISH,
    PAGES,
    ROOT,
    anchors,
    code_blocks,
    commands,
    exists,
    headings,
    links,
    name_of,
    named_tests,
)

TRANSLATION = {"README.md": "README.zh_CN.md", "README.zh_CN.md": "README.md"}
LEVELS = {"debug", "info", "warning", "error", "critical"}
PACKAGES = ("millstream", "schemas", "sources", "sinks", "tables", "streams")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_the_readme_and_its_chinese_version_have_the_same_shape() -> None:  # RU-5
    assert [level for level, _ in headings(ENGLISH)] == [level for level, _ in headings(CHINESE)]
    assert list(links(ENGLISH)) == [TRANSLATION.get(link, link) for link in links(CHINESE)]
    english, chinese = code_blocks(ENGLISH), code_blocks(CHINESE)
    assert [language for language, _ in english] == [language for language, _ in chinese]
    for (language, one), (_, other) in zip(english, chinese, strict=True):
        if language != "mermaid":  # whose labels are translated; of the others only the comments are
            assert [_code(line) for line in one.splitlines()] == [_code(line) for line in other.splitlines()]
    assert _tables(ENGLISH) == _tables(CHINESE)


def _code(line: str) -> str:
    return re.sub(r"\s*#.*", "", line)


def _tables(page: Path) -> list[int]:
    """Cells of each line of each table."""
    return [line.count("|") for line in page.read_text("utf-8").splitlines() if line.startswith("|")]


def test_the_table_of_settings_is_that_of_the_class() -> None:
    assert settings_table.written() == settings_table.table().strip()
    told = re.findall(rf"^\| `{PREFIX}(\w+)`", settings_table.table(), re.MULTILINE)
    assert sorted(told) == sorted(name.upper() for name in Settings.model_fields)


def test_the_example_of_a_settings_file_is_valid(workdir: Path) -> None:
    (example,) = (text for language, text in code_blocks(settings_table.DOCUMENT) if language == "toml")
    (workdir / "millstream.toml").write_text(example, "utf-8")
    assert Settings().model_fields_set == {line.partition(" = ")[0] for line in example.splitlines()}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_variable_that_is_named_is_a_setting(page: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {PREFIX + name for name in OTHER_VARIABLES}
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]*[A-Z]\b", page.read_text("utf-8")))
    wrong = {name for name in named if name not in known and not name.startswith(f"{PREFIX}TEST_")}
    assert wrong <= {"MILLSTREAM_PARQET_DIR"}  # the typing error that configuration.md shows on purpose


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_shown_is_understood(page: Path) -> None:
    """Parsed to the last option, not run. What is run: tests/acceptance."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for words in commands(page):
        match words:
            case ["millstream", *rest]:
                _parse(cli, rest)
            case ["make", *rest]:
                assert {word for word in rest if "=" not in word} <= targets, words
            case ["faust", *rest]:
                assert rest == ["-A", "streams", "worker"], words
            case ["export", *rest]:
                assert all("=" in word for word in rest), words
            case ["python", "-m", module, *_]:
                assert (ROOT / f"{module.replace('.', '/')}.py").exists(), words


def _parse(group: click.Group, words: list[str], parent: click.Context | None = None) -> None:
    context = group.make_context(group.name, words, parent=parent)
    rest = [*context._protected_args, *context.args]
    if not rest:
        assert group.invoke_without_command or words == [], words
        return
    name, command, rest = group.resolve_command(context, rest)
    assert command is not None, words
    if isinstance(command, click.Group):
        _parse(command, rest, context)
    else:
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_is_named_exists(page: Path) -> None:
    assert [at for at in named_tests(page.read_text("utf-8")) if not exists(*at)] == []


def test_the_table_of_log_lines_is_complete() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    section = page.partition("## Log lines")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = set(re.findall(r"`(\w+)`", " ".join(rows)))
    operations = _operations()
    retries = {name for name in told - operations if name.endswith("_retry")}
    assert told - retries == operations
    assert {name.removesuffix("_retry") for name in retries} == _sink_calls()


def _operations() -> set[str]:
    """First arguments of all calls of a logger, and of what the ledger tells."""
    found: set[str] = set()
    for call in _calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS and call.args:
            name = call.args[0]
        elif isinstance(call.func, ast.Name) and call.func.id == "_tell":
            name = call.args[1]
        else:
            continue
        if isinstance(name, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)+", str(name.value)):
            found.add(str(name.value))
    return found


def _sink_calls() -> set[str]:
    """What the sink wrapper retries."""
    return {
        str(arg.value)
        for call in _calls()
        if isinstance(call.func, ast.Name | ast.Attribute)
        and getattr(call.func, "id", getattr(call.func, "attr", "")) in ("_Call", "_verb")
        for arg in call.args[:2]
        if isinstance(arg, ast.Constant)
    }


def _calls() -> list[ast.Call]:
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [n for path in sources for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
