"""How a command's progress is shown, and what ends the wait for it."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest

from multicore_server.cli import progress
from multicore_server.cli.progress import PATIENCE, Progress, wait, wait_for_end
from multicore_server.cli.servers import GoneError, LeftError, NoAnswerError
from multicore_server.cli.waiting import CommandResult, Scaling, Step
from multicore_server.ipc.report import Status
from tests.support.reports import process, status, worker
from tests.unit.scripted_server import ScriptedServer

ONE = status(worker(0, process(0)))
TWO = status(worker(0, process(0)), worker(1, process(1)))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("TERM", "xterm")
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


# --- what is shown ---


def test_a_terminal_has_a_bar_that_goes_away(clock: Clock) -> None:
    out = Terminal()
    shown = Progress("workers ready", out)
    clock.now += 3
    shown.show(Step(1, 2))
    assert out.getvalue() == f"\r[{'█' * 12}{'░' * 12}] 1/2 workers ready, 3 s\x1b[K"
    shown.end()
    assert out.getvalue().endswith("\r\x1b[K")


def test_a_dumb_terminal_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    shown = Progress("workers ready", out)
    shown.show(Step(1, 2))
    shown.end()
    assert out.getvalue() == "1 of 2 workers ready\n"


def test_a_terminal_without_unicode() -> None:
    out = Terminal()
    out.encoding = "ascii"
    Progress("workers ready", out).show(Step(1, 2))
    assert "[############............]" in out.getvalue()


def test_elsewhere_each_step_is_a_line_and_said_once() -> None:
    out = io.StringIO()
    shown = Progress("workers ready", out)
    for step in (Step(0, 2), Step(0, 2), Step(1, 2)):
        shown.show(step)
    shown.end()
    assert out.getvalue() == "0 of 2 workers ready\n1 of 2 workers ready\n"


def test_silent_and_unused_bars_write_nothing() -> None:
    out = Terminal()
    silent = Progress("workers ready", out, silent=True)
    silent.show(Step(1, 2))
    silent.end()
    Progress("workers ready", out).end()
    assert out.getvalue() == ""


# --- what ends the wait ---


def waited(*history: Status | GoneError | NoAnswerError) -> CommandResult:
    return wait(ScriptedServer(*history), Scaling(ONE, 2), silent=True)


def test_the_outcome() -> None:
    assert waited(ONE, NoAnswerError("the monitor is replaced"), TWO) == CommandResult(
        True, "scaled: 2 workers ready"
    )


def test_the_server_ends_meanwhile() -> None:
    assert waited(ONE, GoneError("gone")) == CommandResult(False, "the server has exited")
    assert waited(ONE, status(worker(0), stopping=True)) == CommandResult(False, "the server is stopping")


def test_silence_is_waited_for_so_long_and_no_longer(clock: Clock) -> None:
    assert waited(ONE, NoAnswerError("it does not answer")) == CommandResult(False, "it does not answer")
    assert PATIENCE < clock.now - 100.0 < PATIENCE + 1


def test_ctrl_c_leaves_the_server_to_itself(clock: Clock) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    clock.on_sleep = interrupt
    with pytest.raises(LeftError, match="no longer waiting; the server continues"):
        waited(ONE)
    with pytest.raises(LeftError, match="continues to stop"):
        wait_for_end(ScriptedServer(ONE, ONE), silent=True)


def test_the_end_of_a_server_counts_its_workers_down(capsys: pytest.CaptureFixture[str]) -> None:
    server = ScriptedServer(TWO, ONE, NoAnswerError("the monitor has ended"), ONE)
    assert wait_for_end(server) == CommandResult(True, "stopped")
    assert capsys.readouterr().err == "2 of 2 workers left to exit\n1 of 2 workers left to exit\n"
