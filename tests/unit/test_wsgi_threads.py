"""The threads of a WSGI app, also where there can be no more of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from multicore_server.wsgi.threads import Threads
from tests.unit.wsgi_client import call, hello

PATIENCE = 10.0


def refuse(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_calls_run_and_their_exceptions_are_theirs() -> None:
    threads, done = Threads(2), list[int]()
    threads.submit(done.append, 1).result(PATIENCE)
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(PATIENCE)


def test_where_no_more_threads_can_be_started_calls_wait_for_one_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, go, done = Threads(4), threading.Event(), list[int]()
    first = threads.submit(lambda: done.append(int(go.wait(PATIENCE))))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    second, third = threads.submit(done.append, 2), threads.submit(done.append, 3)
    assert third.cancel()
    go.set()
    for job in (first, second):
        job.result(PATIENCE)
    assert done == [1, 2]


def test_where_none_can_be_started_a_call_is_refused_and_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, done = Threads(4), list[int]()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            threads.submit(done.append, 1)
    threads.submit(done.append, 2).result(PATIENCE)
    assert done == [2]


def test_such_a_request_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        call(hello, threads=2)
