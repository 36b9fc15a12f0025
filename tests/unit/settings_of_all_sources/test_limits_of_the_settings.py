"""What the settings say about the limits of a request."""

from __future__ import annotations

from typing import Any

import pytest

from multicore_server.application import Application
from multicore_server.connections.limits import limits_of
from multicore_server.settings.table import Settings
from tests.unit.settings_of_all_sources.loading import Load


def header_map(cfg: Any, *, maps_names: bool = True) -> str:
    return limits_of(cfg, Settings(workers=1), maps_names=maps_names).header_map


@pytest.mark.parametrize("value", ["drop", "refuse", "dangerous"])
def test_header_map_counts_where_it_is_set(
    gunicorn: Load, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    cfg = gunicorn("--header-map", value)
    assert header_map(cfg) == value
    assert header_map(cfg, maps_names=False) == "dangerous"
    assert header_map(gunicorn(f"--header-map={value}")) == value
    assert header_map(gunicorn(config=f"header_map = {value!r}")) == value
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--header-map {value}")
    assert header_map(gunicorn(config="")) == value
    monkeypatch.delenv("GUNICORN_CMD_ARGS")
    assert header_map(gunicorn(config="")) == "dangerous"
    assert header_map(Application("app:app", {"header_map": value}).cfg) == value


def test_where_it_is_not_set_every_name_passes(gunicorn: Load) -> None:
    assert header_map(gunicorn()) == "dangerous"
    assert header_map(Application("app:app", {}).cfg) == "dangerous"
