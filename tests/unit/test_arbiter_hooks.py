"""Hooks: a mistake in one is named; gates stop what they guard; one that keeps the arbiter is named too."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from gunicorn.config import Config

from multicore_server.arbiter import hooks
from multicore_server.arbiter.hooks import GATES, IN_ARBITER, RESCUED, HookError
from tests.unit.shell import Log


def wrapped(name: str, hook: Any) -> tuple[Any, Log]:
    cfg, log = Config(), Log()
    # gunicorn checks how many arguments a hook takes.
    by_count: dict[int, Any] = {
        1: lambda a: hook(a),  # noqa: PLW0108 - of one argument
        2: lambda a, b: hook(a, b),  # noqa: PLW0108
        3: lambda a, b, c: hook(a, b, c),  # noqa: PLW0108
    }
    count = 3 if name == "nworkers_changed" else 2 if name in ("pre_fork", "child_exit", "worker_exit") else 1
    cfg.set(name, by_count[count])
    hooks.wrap(cfg, log)
    call = getattr(cfg, name)
    return (lambda: call(*range(count))), log


def fail(*_: Any) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize("name", RESCUED)
def test_a_mistake_in_a_hook_is_named_and_costs_nothing(name: str) -> None:
    call, log = wrapped(name, fail)
    assert call() is None
    assert log.lines == [f"ERROR: the {name} hook failed; continuing without it"]


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_raises_is_named_and_stops_what_it_guards(name: str) -> None:
    call, _ = wrapped(name, fail)
    with pytest.raises(HookError, match=f"the {name} hook failed: RuntimeError: boom"):
        call()


@pytest.mark.parametrize("name", [*RESCUED, *GATES])
def test_a_hook_may_end_the_server(name: str) -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(4)

    call, _ = wrapped(name, leave)
    with pytest.raises(SystemExit):
        call()


@pytest.mark.parametrize("name", [*RESCUED, *GATES])
def test_a_hook_that_keeps_the_arbiter_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, log = wrapped(name, lambda *_: None)
    times = iter([0.0, 2.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(times, 100.0))
    call()
    assert len(log.said(f"the {name} hook took 2.5 s")) == (name in IN_ARBITER)


def test_once_is_once_also_for_ends_that_meet() -> None:
    called: list[int] = []

    def hook() -> None:
        called.append(1)
        leave()  # a signal handler of the same thread

    leave = hooks.once(hook)
    threads = [threading.Thread(target=leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert called == [1]
