"""What the pages about deploying show of configurations is what examples/ has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["docker", "systemd", "kubernetes", "proxies"]
LANGUAGES = "dockerfile|yaml|ini|nginx|haproxy"
EXAMPLES = [path.read_bytes() for path in (ROOT / "examples").rglob("*") if path.is_file()]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name in PAGES
    for number, (_, block) in enumerate(re.findall(rf"```({LANGUAGES})\n(.*?\n)```", page(name), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_configuration_is_that_of_an_example(block: str) -> None:
    assert any(f"\n{block}".encode() in b"\n" + text for text in EXAMPLES), block


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_there(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page(name)) if link]
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_found(name: str) -> None:
    assert f"(docs/{name}.md)" in (ROOT / "README.md").read_text()
