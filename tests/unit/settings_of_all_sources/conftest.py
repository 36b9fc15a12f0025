"""Fixtures of these tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from gunicorn.app.wsgiapp import WSGIApplication

from tests.unit.settings_of_all_sources.loading import (
    Load,
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this process: no arguments, no config file loaded before, no gunicorn variables."""
    monkeypatch.setattr(sys, "argv", ["app"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Set before it is deleted, so that one which the test loads is removed too.
    monkeypatch.setitem(sys.modules, "__config__", sys)
    monkeypatch.delitem(sys.modules, "__config__")
    # gunicorn read WEB_CONCURRENCY when it was imported.
    monkeypatch.setattr("gunicorn.config.Workers.default", 1)
    for name in ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gunicorn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """The Config of a real ``gunicorn ARGS app:app``, with the text of its config file if there is one."""

    def load(*args: str, config: str | None = None) -> Any:
        if config is not None:
            path = tmp_path / "conf.py"
            path.write_text(config)
            args = ("-c", str(path), *args)
        monkeypatch.setattr(sys, "argv", ["gunicorn", *args, "app:app"])
        return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").cfg

    return load
