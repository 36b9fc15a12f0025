"""monit: what keys ask for, what comes back, and how it ends. The terminal is a real one."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from multicore_server.cli import monit
from multicore_server.cli.figures import Reading
from multicore_server.cli.keys import Keys
from multicore_server.cli.monit import Monit
from multicore_server.cli.monit_view import Scene
from multicore_server.cli.servers import Begun, GoneError, NoAnswerError
from tests.support.reports import status, worker
from tests.support.waiting import wait_for
from tests.unit.scripted_server import ScriptedServer

SERVER = status(worker(0, pid=None), worker(1, pid=None))


class Screen:
    def __init__(self) -> None:
        self.drawn: list[object] = []

    def update(self, drawing: object, *, refresh: bool) -> None:
        self.drawn.append(drawing)


class Typist:
    """Presses what is written down, one thing at a time."""

    def __init__(self, *pressed: str) -> None:
        self.pressed = list(pressed)
        self.ended: int | None = None

    def wait(self, _: float) -> list[str]:
        return [self.pressed.pop(0)] if self.pressed else []


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Monit:
    monkeypatch.setattr(monit, "_size", lambda: os.terminal_size((100, 24)))
    return Monit(ScriptedServer(SERVER), 0.01, Scene(Reading(0.0, SERVER, {})))


def press(watching: Monit, *keys: str) -> Screen:
    screen, typist = Screen(), Typist(*keys, "q")
    keyboard: Any = typist
    display: Any = screen
    watching.run(keyboard, display)
    return screen


def test_it_draws_and_quits(watching: Monit) -> None:
    assert press(watching).drawn
    assert not watching.gone


def test_arrows_select(watching: Monit) -> None:
    press(watching, "down", "down", "up", "j")
    assert watching.scene.selected == 1


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("r", ("reload", {})),
        ("R", ("restart", {"instances": [0]})),
        ("+", ("scale", {"workers": "+1"})),
        ("-", ("scale", {"workers": "-1"})),
    ],
)
def test_keys_command(watching: Monit, key: str, asked: object) -> None:
    server = watching.server
    assert isinstance(server, ScriptedServer)
    server.begun = Begun("it has begun", None)
    press(watching, key)
    wait_for(lambda: server.asked, "the command")
    assert server.asked == [asked]
    wait_for(lambda: watching._apply_updates() and watching.scene.note, "the answer")
    assert watching.scene.note == "it has begun"


def test_what_is_refused_is_shown(watching: Monit) -> None:
    server = watching.server
    assert isinstance(server, ScriptedServer)
    server.begun = NoAnswerError("too much to do")
    press(watching, "r", "?")
    wait_for(lambda: watching._apply_updates() and watching.scene.note == "too much to do", "the answer")


def test_a_key_shows_the_requests_and_the_events_again(watching: Monit) -> None:
    press(watching, "i")
    assert watching.scene.shows_requests
    watching._press("i")
    assert not watching.scene.shows_requests


def test_without_a_worker_there_is_none_to_restart(watching: Monit) -> None:
    watching.scene.selected = None
    watching._press("R")
    assert watching._commands.empty()


def test_trouble_is_shown_until_the_next_reading(watching: Monit) -> None:
    watching._apply(NoAnswerError("it does not answer"))
    assert watching.scene.trouble == "it does not answer"
    watching._apply(Reading(1.0, SERVER, {}))
    assert watching.scene.trouble == ""


def test_it_ends_with_the_server(watching: Monit) -> None:
    server = watching.server
    assert isinstance(server, ScriptedServer)
    server.history = [GoneError("gone")]
    screen: Any = Screen()
    keyboard: Any = Typist()
    watching.run(keyboard, screen)
    assert watching.gone


# --- the keyboard ---


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """The user's end of a terminal and the program's, which is its stdin."""
    user, program = os.openpty()
    with os.fdopen(program, "rb", closefd=False) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield user, program
    for fd in (user, program):
        os.close(fd)


def test_keys_come_as_they_are_pressed_and_the_terminal_is_as_before(terminal: tuple[int, int]) -> None:
    user, program = terminal
    before = termios.tcgetattr(program)
    handler = signal.getsignal(signal.SIGTERM)
    with Keys() as keys:
        assert keys.wait(0.0) == []
        os.write(user, b"r\x1b[A")
        assert keys.wait(5.0) == ["r", "up"]
        assert not termios.tcgetattr(program)[3] & termios.ICANON
        assert termios.tcgetattr(program)[6][termios.VSUSP] == b"\0"
        signal.raise_signal(signal.SIGTERM)
        assert keys.ended == signal.SIGTERM
    assert termios.tcgetattr(program) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_terminal_that_goes_away_ends_it(
    terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Keys() as keys:
        monkeypatch.setattr("os.read", lambda *_: b"")
        os.write(terminal[0], b"x")
        assert keys.wait(5.0) == []
        assert keys.ended == signal.SIGHUP
