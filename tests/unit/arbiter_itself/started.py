"""gunicorn's arbiter with our worker class, in this process; nothing is forked."""

from __future__ import annotations

import os
from typing import Any

from gunicorn.app.base import BaseApplication

from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.forks import forks
from tests.unit.shell import Log


class Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """An app that is never loaded: no worker is forked in these tests."""

    multicore_options: dict[str, Any]

    def __init__(self, **settings: Any) -> None:
        self.given = settings
        self.multicore_options = {"workers": 2, "metrics_bind": "none"}
        self.app_uri = "app:app"
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("worker_class", "multicore_server.Worker")
        self.cfg.set("logger_class", Log)
        for name, value in self.given.items():
            self.cfg.set(name, value)

    def load(self) -> None:
        raise AssertionError


def end(found: Arbiter) -> None:
    forks.release()
    found.monitor.addresses.end()
    found._close_loop()
    for descriptor in (found.context.lifeline.reader, found.context.lifeline.writer):
        os.close(descriptor)
    found._clean_up()
    found.context.handover.inboxes.close()
    os.close(found.context.handover.lock)
    found.context.cluster.close()


def said(found: Arbiter, text: str) -> list[str]:
    log: Log = found.log
    return log.said(text)


def turn(found: Arbiter, timeout: float = 0.0) -> list[int]:
    """One turn of the loop, without waiting."""
    found._deadline = 0.0
    signals: list[int] = found.wait_for_signals()
    return signals
