"""Reading the documents: headings, links, code blocks, commands."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh_CN.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_TEST = re.compile(r"`(tests/[\w/.]+)(?:::(\w+))?`")


def name_of(page: Path) -> str:
    """Path within the repository."""
    return str(page.relative_to(ROOT))


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each code block."""
    return [(m[1], m[2]) for m in _FENCE.finditer(page.read_text("utf-8"))]


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def headings(page: Path) -> list[tuple[int, str]]:
    """(level, text) of each heading."""
    return [(len(m[1]), m[2]) for m in _HEADING.finditer(prose(page))]


def links(page: Path) -> list[str]:
    """Targets of all links."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """What `#…` may name in a page, as GitHub makes it of the headings."""
    texts = (re.sub(r"[^\w\- ]", "", text.lower()) for _, text in headings(page))
    return {text.replace(" ", "-") for text in texts}


def commands(page: Path) -> list[list[str]]:
    """Commands of shell blocks as lists of words, without assignments before them; those with placeholders left out."""
    found = []
    for language, text in code_blocks(page):
        if language not in ("sh", "console", ""):
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if set("…[|") & set(line) or (language == "console" and not line.startswith("$ ")):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words:
                found.append([word for word in words if word != "&"])
    return found


def named_tests(text: str) -> list[tuple[str, str]]:
    """(path, test or nothing) of what a text names as `tests/…` or `tests/…::test_…`."""
    return [(path, test) for path, test in _TEST.findall(text)]


@cache
def tests_in(path: str) -> frozenset[str]:
    """Test functions of a file."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(
        n.name
        for n in ast.walk(tree)
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name.startswith("test_")
    )


def exists(path: str, test: str) -> bool:
    """Whether a named test, test file or folder is there."""
    at = ROOT / path
    return test in tests_in(path) if test and at.is_file() else at.exists() and not test
