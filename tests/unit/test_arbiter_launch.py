"""What a server that starts in the background tells whoever waits for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from multicore_server.arbiter.launch import Launch, launch_of


class Started:
    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.launch = Launch(writer)

    def said(self) -> bytes:
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 10_000)
        except BlockingIOError:
            return b""


@pytest.fixture
def started() -> Iterator[Started]:
    made = Started()
    yield made
    made.launch.ready()
    os.close(made.reader)


def test_errors_until_it_is_ready(started: Started) -> None:
    log = logging.getLogger("gunicorn.error")
    log.error("bad")
    log.warning("not so bad")
    started.launch.ready()
    log.error("later")
    started.launch.ended(3)
    assert started.said() == b"bad\n\0ready\n"


@pytest.mark.parametrize(
    ("status", "said"), [(3, b"\0ended 3\n"), (None, b"\0ended 0\n"), ("Error: x", b"Error: x\n\0ended 1\n")]
)
def test_its_end(started: Started, status: object, said: bytes) -> None:
    started.launch.begin()
    started.launch.ended(status)
    assert started.said() == said


def test_the_end_of_a_worker_is_not_its_own(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    started.launch.begin()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    started.launch.ended(3)
    assert started.said() == b""


def test_nobody_waits_any_more(started: Started) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    launch = Launch(writer)
    launch.ended(3)
    launch.ready()


def test_most_servers_have_none(started: Started) -> None:
    assert launch_of(SimpleNamespace(app=SimpleNamespace())) is None
    assert launch_of(SimpleNamespace(app=SimpleNamespace(launch=started.launch))) is started.launch
