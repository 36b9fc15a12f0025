"""Links lead somewhere, in the repository as in the site; each page is in the site; names are names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import PAGES, ROOT, prose
from tests.unit.docs.command_lines import check_variable

LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
SITE = (ROOT / "mkdocs.yml").read_text()


def anchors(page: Path) -> list[str]:
    """Those of its headings, as GitHub makes them."""
    texts = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in HEADING.findall(prose(page)))
    return [text.replace(" ", "-") for text in texts]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), target
        assert place.is_relative_to(ROOT)
        assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_merge_was_left_half_done(page: Path) -> None:
    assert not re.findall(r"^(?:<{7}|={7}|>{7})(?: .*)?$", page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_have_anchors_of_their_own(page: Path) -> None:
    if page.name != "CHANGELOG.md":  # each version has the same ones
        found = anchors(page)
        assert sorted(set(found)) == sorted(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_variables_are_variables(page: Path) -> None:
    for name in re.findall(r"\b(?:MULTICORE|UVICORN)_[A-Z_]*[A-Z](?![A-Z_*])", page.read_text()):
        check_variable(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_list_is_a_list_in_the_site_too(page: Path) -> None:
    """GitHub needs no empty line before it, and less space before what is inside it."""
    lines = prose(page).splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if re.match(r"([-*]|\d+\.) ", line):
            assert not before or re.match(r"([-*]|\d+\.| ) *", before), line
        assert not re.match(r" {1,3}([-*]|\d+\.) ", line), line


def test_each_page_is_in_the_site() -> None:
    named = set(re.findall(r"^ *- .*?: ([\w-]+\.md)$", SITE, re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages <= named
    assert len(named - pages) == len(list(ROOT.glob("*.md")))  # docs/outside.py has their names there


def test_the_readme_is_short_and_its_pictures_are_small() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 150
    pictures = list((ROOT / "docs/pictures").iterdir())
    assert {f"docs/pictures/{path.name}" for path in pictures} <= {it[0] for it in LINK.findall(readme)}
    assert all(path.stat().st_size < 150_000 for path in pictures)
