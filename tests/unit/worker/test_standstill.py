"""Where a thread is: within the app's code, and at which of its lines."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from multicore_server.worker import standstill
from multicore_server.worker.standstill import is_in_app, place_of

SOURCE = """
import json, time

def sleeps(until):
    while not until():
        time.sleep(0.01)

def parses(until):
    class Slow(dict):
        def items(self):
            sleeps(until)
            return ()
    json.dumps(Slow(a=1), indent=1)

async def handler(until):
    sleeps(until)
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    path = tmp_path / "views.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"__name__": "views"}
    exec(compile(SOURCE, str(path), "exec"), found)
    return found


def seen(run: Callable[[Callable[[], bool]], object], look: Callable[[Any], Any]) -> Any:
    """What ``look`` finds in the frames of a thread that is within ``run``."""
    done = threading.Event()
    thread = threading.Thread(target=run, args=(done.is_set,))
    thread.start()
    try:
        time.sleep(0.05)  # most of it is spent in there; where it is at that time, `look` sees
        deadline = time.monotonic() + 5
        while not (found := look(sys._current_frames().get(thread.ident or 0))):
            assert time.monotonic() < deadline
        return found
    finally:
        done.set()
        thread.join()


def test_the_line_is_the_app_s_own(app: dict[str, Any]) -> None:
    place = seen(app["sleeps"], place_of)
    assert (place.file, place.function) == ("views.py", "sleeps")
    assert place.line in (5, 6)
    assert "until" in str(place) or "time.sleep(0.01)" in str(place)


def test_what_a_library_calls_back_is_the_app_s_too(app: dict[str, Any]) -> None:
    assert seen(app["parses"], place_of).file == "views.py"


def test_a_library_that_the_app_calls_is_named_behind_its_line(app: dict[str, Any]) -> None:
    class Waits(json.JSONEncoder):
        def __init__(self, until: Callable[[], bool]) -> None:
            super().__init__()
            self.until = until

    source = "def view(event, until):\n    while not until():\n        event.wait(0.01)\n"
    exec(compile(source, str(Path.cwd() / "views.py"), "exec"), app)
    event = threading.Event()
    found = seen(lambda until: app["view"](event, until), place_of)
    assert str(found).startswith("views.py:3 in view (threading.wait") or found.line == 2


def test_where_there_is_no_code_of_the_app_s_it_is_a_library_s() -> None:
    def waits(until: Callable[[], bool]) -> None:
        event = threading.Event()
        while not until():
            event.wait(0.01)

    frame = seen(waits, lambda top: top if top.f_code.co_name == "wait" else None)
    place = place_of(frame)
    assert place is not None
    assert place.file == "threading.py" or place.file.endswith("test_standstill.py")
    assert place_of(None) is None


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_loop_that_waits_is_not_in_the_app(run: Any, app: dict[str, Any]) -> None:
    async def rests() -> None:
        await asyncio.sleep(0.5)

    thread = threading.Thread(target=run, args=(rests(),))
    thread.start()
    time.sleep(0.2)
    assert not is_in_app(sys._current_frames().get(thread.ident or 0))
    thread.join()
    assert seen(lambda until: run(app["handler"](until)), is_in_app)
    assert not is_in_app(None)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_the_loop_calls_in_between_is_not_the_app_s(run: Any, app: dict[str, Any]) -> None:
    async def calls(until: Callable[[], bool]) -> None:
        reader, writer = socket.socketpair()
        with reader, writer:
            asyncio.get_running_loop().add_reader(reader, called, reader, until)
            writer.send(b"x")
            while not until():
                await asyncio.sleep(0.01)

    def called(reader: socket.socket, until: Callable[[], bool]) -> None:
        asyncio.get_running_loop().remove_reader(reader)
        app["sleeps"](until)

    looks: list[bool] = []

    def look(top: Any) -> bool:
        if place_of(top) is not None and "sleeps" in str(place_of(top)):
            looks.append(is_in_app(top))
        return len(looks) > 3

    seen(lambda until: run(calls(until)), look)
    assert not any(looks)


@pytest.mark.parametrize("file", ["connections/protocol.py", "worker/server.py"])
def test_our_own_work_is_not_the_app_s(file: str, app: dict[str, Any]) -> None:
    """The thread deals with connections there; what is called from there may be anything."""
    found: dict[str, Any] = {}
    source = "def ours(function, until):\n    function(until)\n"
    exec(compile(source, standstill.OURS + file, "exec"), found)
    looks: list[bool] = []

    def look(top: Any) -> bool:
        looks.append(is_in_app(top))
        return len(looks) > 3

    seen(lambda until: found["ours"](app["sleeps"], until), look)
    assert not any(looks)
