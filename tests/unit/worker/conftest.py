"""Fixtures of these tests."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.metrics.app import values as app_values
from multicore_server.worker import meter
from multicore_server.worker.forked_children import ForkedChildren
from multicore_server.worker.lifeline import Lifeline
from multicore_server.worker.loggers import access_line
from tests.support import outside
from tests.unit.worker.hired import SIGNALS, Hire, Hired, hello


@pytest.fixture
def hire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hire]:
    """What a worker changes in its process is put back."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for name in ("zttp_impl", "zttp_h2_impl"):  # where zttp is installed, a worker counts its requests too
        with contextlib.suppress(ImportError):
            import_module(f"uvicorn.protocols.http.{name}")
    for host in meter.modules_of(HttpToolsProtocol):
        monkeypatch.setattr(host, "RequestResponseCycle", host.RequestResponseCycle)
    outside.put_back(monkeypatch)
    monkeypatch.setattr(app_values, "take_row", lambda number: None)
    monkeypatch.setattr(app_values, "open_files", lambda: None)
    monkeypatch.setenv("MULTICORE_INSTANCE", "")
    monkeypatch.setattr(Lifeline, "watch", lambda self: None)  # it would end this process
    monkeypatch.setattr(ForkedChildren, "watch", lambda self: None)  # for ever
    made: list[Hired] = []
    signal.set_wakeup_fd(-1)  # another test's loop may have left one that is closed

    def hire(app: Any = hello, **settings: Any) -> Hired:
        made.append(Hired(app, **settings))
        return made[-1]

    yield hire
    access_line.lent = False
    signal.set_wakeup_fd(-1)
    for hired in made:
        hired.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    faulthandler.enable()
