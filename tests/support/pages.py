"""The pages that people read, and their snippets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
# Between two commands; a redirection belongs to its command, and goes.
SEPARATORS = {"&&", "||", ";", "|", "&", "(", ")"}


class Snippet(NamedTuple):
    """A fenced block of a page; ``why_not`` is the reason of a block that no test runs."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text()
        for found in FENCE.finditer(text):
            line = text.count("\n", 0, found.start("language")) + 1
            yield Snippet(page, line, found["language"], found["text"], found["why"])


def prose(page: Path) -> str:
    """A page without its snippets."""
    return FENCE.sub("", page.read_text())


class Command(NamedTuple):
    """One command of a shell: the variables in front of it, and its words."""

    variables: dict[str, str]
    words: list[str]


def commands(script: str) -> Iterator[Command]:
    """The commands of a script, those in ``$(...)`` too. Raises ValueError where a quote is left open."""
    for line in re.sub(r"\\\n", " ", script).splitlines():
        for inner in re.findall(r"\$\(([^()]+)\)", line):
            yield from commands(inner)
        lexer = shlex.shlex(re.sub(r"\$\(([^()]+)\)", "VALUE", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token not in SEPARATORS:
                words.append(token)
            elif words:
                yield _command(words)
                words = []


def _command(words: list[str]) -> Command:
    for number, word in enumerate(words):
        if set(word) <= set("<>"):  # to a file, from a file
            words = words[:number]
            break
    variables = {}
    while words and (found := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
        variables[found[1]] = found[2]
        words = words[1:]
    return Command(variables, words)
