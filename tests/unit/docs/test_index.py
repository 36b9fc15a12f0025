"""What a package index shows: README.md with links that work there, and the one version."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest

from multicore_server.version import __version__
from tests.support.pages import ROOT

README = (ROOT / "README.md").read_text()
SOURCE = "https://git.example.org/we/multicore_server"


@pytest.fixture(scope="module")
def build() -> Any:
    """The hook of hatchling's."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(text: str) -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)]*)\)", text)


def test_links_of_the_readme_lead_into_the_repository(build: Any) -> None:
    assert len(relative(README)) > 10
    shown = build.for_index(README, SOURCE, "v1.2.3")
    assert relative(shown) == []
    assert f"({SOURCE}/blob/v1.2.3/docs/settings.md)" in shown
    assert f"]({SOURCE}/raw/v1.2.3/docs/pictures/page.png)" in shown


def test_without_an_address_they_are_text(build: Any) -> None:
    shown = build.for_index(README, None, "v1.2.3")
    assert relative(shown) == []
    assert "![" not in shown
    text = "See [the settings](docs/settings.md#a) and [PM2](https://pm2.io). ![A page](docs/a.png)"
    assert build.for_index(text, None, "v1") == "See the settings and [PM2](https://pm2.io). "


def test_the_hook_takes_the_address_of_the_project(build: Any) -> None:
    for urls, least in (({}, "docs/settings.md"), ({"urls": {"Source": SOURCE}}, f"{SOURCE}/blob/v7/docs/")):
        metadata: dict[str, Any] = {"version": "7", **urls}
        build.Readme(str(ROOT), {}).update(metadata)
        assert metadata["readme"]["content-type"] == "text/markdown"
        assert (least in metadata["readme"]["text"]) is bool(urls)


def test_the_version_is_semantic_and_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version", "readme"]' in pyproject
    assert 'path = "multicore_server/version.py"' in pyproject
    assert not re.search(r"^version =", pyproject, re.MULTILINE)


def test_the_changelog_has_the_version_or_what_comes_next() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(r"Unreleased|\[?\d+\.\d+\.\d+\]?( - \d{4}-\d{2}-\d{2})?", headings[0])
