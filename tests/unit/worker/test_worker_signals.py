"""What signals, the reloader and the arbiter's end do to a worker."""

from __future__ import annotations

import asyncio
import dataclasses
import faulthandler
import io
import logging
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.ipc.messages import RetireRequest
from multicore_server.settings.table import Settings
from multicore_server.worker import worker as module
from multicore_server.worker.lifeline import Lifeline
from tests.unit.worker.hired import PATIENCE, Hire, hello

# --- signals


def test_signals_of_the_group_are_ignored_and_abort_ends_it_for_sure(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    hired = hire()
    hired.worker.leave = lambda: hired.hooks.append("exit")
    hired.worker.init_signals()
    for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU):
        os.kill(os.getpid(), number)
    assert faulthandler.is_enabled()
    handler: Any = signal.getsignal(signal.SIGABRT)
    handler(signal.SIGABRT, None)
    assert hired.hooks == ["abort", "exit"]
    assert ended == [1]


def test_a_log_that_was_rotated_while_it_booted_is_opened_anew_when_it_serves(
    hire: Hire, tmp_path: Path
) -> None:
    """A signal handler would do it in the midst of a line that is being written, which is lost then."""
    path = tmp_path / "log"
    hired = hire(errorlog=str(path))
    hired.worker.init_signals()
    path.rename(tmp_path / "log.1")
    os.kill(os.getpid(), signal.SIGUSR1)
    hired.log.error("while it boots")

    async def main() -> None:
        hired.worker.watch(asyncio.get_running_loop())

    asyncio.run(main())
    hired.log.error("when it serves")
    hired.log.error_log.handlers.pop().close()
    assert "while it boots" in (tmp_path / "log.1").read_text()
    assert "when it serves" in path.read_text()


def test_stacks_go_to_the_first_stream_that_has_a_descriptor(hire: Hire, tmp_path: Path) -> None:
    hired = hire()
    with (tmp_path / "log").open("w") as stream:
        hired.log.error_log.handlers = [
            logging.NullHandler(),
            logging.StreamHandler(io.StringIO()),
            logging.StreamHandler(stream),
        ]
        hired.worker.init_signals()
        faulthandler.dump_traceback(stream)
        hired.log.error_log.handlers = [logging.StreamHandler(io.StringIO())]
        hired.worker.init_signals()
    assert faulthandler.is_enabled()


def test_an_end_in_any_case_comes_from_a_thread(hire: Hire, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(module, "END_GRACE", 0.01)
    hire().worker.end_in_any_case()
    assert ended.wait(PATIENCE)


# --- the arbiter's end, the reloader


class Stoppable:
    """In a server's place."""

    def __init__(self, stopped: list[bool]) -> None:
        self.stopped = stopped

    def stop(self, *, quick: bool = False) -> None:
        self.stopped.append(quick)


def test_a_worker_that_serves_drains_when_its_arbiter_is_gone(hire: Hire) -> None:
    hired = hire()
    stopped: list[bool] = []
    hired.worker.server = Stoppable(stopped)  # type: ignore[assignment]
    ended: list[int] = []
    hired.worker._lifeline = Lifeline(hired.lifeline, "instance=0", 0.0, ended.append)
    threading.Thread(target=hired.worker._lifeline._wait).start()

    async def main() -> None:
        hired.worker.watch(asyncio.get_running_loop())
        os.close(hired.writer)
        while not (stopped and ended):
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert stopped == [False]


def test_each_change_of_a_source_file_is_told_once(hire: Hire, tmp_path: Path) -> None:
    hired = hire()
    hired.worker.reloader = SimpleNamespace(_callback=None)

    async def main() -> None:
        hired.worker.watch(asyncio.get_running_loop())
        changed = hired.worker.reloader._callback
        source = tmp_path / "app.py"
        source.write_text("")
        heard: list[Any] = []
        for _ in range(3):
            changed(str(source))
        while not heard:
            await asyncio.sleep(0.001)
            heard += hired.heard()
        source.unlink()
        changed(str(source))
        while len(heard) == 1:
            await asyncio.sleep(0.001)
            heard += hired.heard()
        assert heard == [RetireRequest("reload", draining=False)] * 2

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_the_metrics_path_is_outside_of_the_app(hire: Hire) -> None:
    hired = hire()
    assert hired.worker.surround(hello, "") is hello
    context = hired.worker.context
    settings = Settings(workers=1, metrics_path="/metrics")
    hired.worker.context = dataclasses.replace(context, settings=settings, monitor="monitor")
    assert hired.worker.surround(hello, "/root").path == "/root/metrics"
