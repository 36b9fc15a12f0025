"""The child that answers a question of the arbiter's: it ends there, whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from multicore_server.arbiter.forked_call import ForkedCall
from tests.unit.shell import ChildExitError, Shell, shell


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in which a fork plays the child."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "alarm", lambda _: 0)
    with shell() as made:
        made.os.child = True
        yield made


def call(made: Shell) -> ForkedCall:
    return ForkedCall(made.context, lambda: "answer", lambda *_: None, lambda: None)


def test_it_ends_with_its_answer_written(child: Shell) -> None:
    with pytest.raises(ChildExitError):
        call(child)
    assert os.read(child.os.readers[0], 100) == b"+answer"


def test_it_ends_where_the_arbiter_is_gone(child: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ChildExitError):
        call(child)
