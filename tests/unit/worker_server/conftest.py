"""Fixtures of these tests."""

from __future__ import annotations

import logging

import pytest

from multicore_server.worker import drain
from multicore_server.worker import server as module
from tests.support import outside


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LINGER": 0.05, "FAREWELL": 0.1, "LOOK": 0.005}.items():
        monkeypatch.setattr(drain, name, seconds)
    monkeypatch.setattr(module, "LIFESPAN_GRACE", 0.05)
    outside.put_back(monkeypatch)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    caplog.set_level(logging.INFO, "gunicorn.error")
    return caplog
