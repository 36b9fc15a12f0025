"""docs/troubleshooting.md quotes lines that the code has; ``…`` stands for a value."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import multicore_server
from tests.support.pages import ROOT

TEXT = (ROOT / "docs/troubleshooting.md").read_text()
TABLES = re.findall(r"^\| line \| cause \| what to do \|\n\|.*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
LINES = [re.match(r"\| (.*?) \|", row) for table in TABLES for row in table.splitlines()]
VALUE = re.compile(r"%[-\d.]*[sdrgf]|\{[a-z][^{}]*\}")


def texts(source: str) -> Iterator[str]:
    """The texts of a module, with ``…`` for each value that is put into them."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(it.value) if isinstance(it, ast.Constant) else "…" for it in node.values)
            yield VALUE.sub("…", "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield VALUE.sub("…", node.value)


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the package says."""
    package = Path(multicore_server.__file__).parent
    return [text for path in package.rglob("*.py") for text in texts(path.read_text())]


@pytest.mark.parametrize("quoted", [line[1] for line in LINES if line])
def test_a_quoted_line_is_one_of_the_servers(quoted: str, said: list[str]) -> None:
    assert re.fullmatch("`[^`]+`", quoted), "a line is one code span"
    assert len(quoted) > 12, "too short to be found in a log"
    assert any(quoted.strip("`") in text for text in said)


def test_they_are_found() -> None:
    assert len(LINES) > 60
    assert all(LINES)
