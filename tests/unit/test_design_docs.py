"""docs/design.md is a map: what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import multicore_server

PACKAGE = Path(multicore_server.__file__).parent
ROOT = Path(__file__).parents[2]
NAMED = sorted(
    set(re.findall(r"`([a-z_]+/(?:[a-z_]+\.py)?|[a-z_]+\.py)`", (ROOT / "docs/design.md").read_text()))
)


@pytest.mark.parametrize("name", NAMED)
def test_what_the_map_names_is_there(name: str) -> None:
    assert (PACKAGE / name).exists()


def test_every_folder_is_on_the_map() -> None:
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(NAMED)
