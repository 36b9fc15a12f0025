"""Calls the user's hooks. The log names a hook that raises and a hook that blocks the arbiter."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from multicore_server.settings.hooks import EVENTS

# A mistake in one of these costs nothing else. post_fork and post_worker_init are not among them: when they
# fail, the worker's boot has failed.
RESCUED = (
    "on_reload", "pre_exec", "child_exit", "nworkers_changed", "on_exit",
    "worker_int", "worker_abort", "worker_exit",
)  # fmt: skip
# People use these as gates: as in gunicorn, one that raises stops the start, or this fork.
GATES = ("on_starting", "when_ready", "pre_fork")
# Hooks that run in the arbiter, which does nothing else meanwhile.
IN_ARBITER = frozenset({*GATES, "on_reload", "child_exit", "nworkers_changed", *EVENTS})
SLOW = 0.1  # seconds


class HookError(Exception):
    """A gate has raised: one line."""


def wrap(cfg: Any, log: Any) -> None:
    """Wrap the hooks of this configuration: what one of `RESCUED` raises is logged and goes no further, what
    one of `GATES` raises becomes a HookError."""
    _rescue(RESCUED, cfg, log)
    for name in GATES:
        cfg.set(name, _named(name, _timed(name, cfg.settings[name].get(), log)))


def wrap_events(cfg: Any, log: Any) -> None:
    """Wrap the hooks that gunicorn does not have, as `wrap` does with those of `RESCUED`."""
    _rescue(EVENTS, cfg, log)


def _rescue(names: Iterable[str], cfg: Any, log: Any) -> None:
    for name in names:
        cfg.set(name, _rescued(name, _timed(name, cfg.settings[name].get(), log), log))


def _timed(name: str, hook: Callable[..., Any], log: Any) -> Callable[..., Any]:
    if name not in IN_ARBITER:
        return hook

    @functools.wraps(hook)
    def call(*args: Any) -> Any:
        began = time.monotonic()
        try:
            return hook(*args)
        finally:
            took = time.monotonic() - began
            if took > SLOW:
                log.warning(
                    "the %s hook took %.1f s; the arbiter does nothing else during a hook", name, took
                )

    return call


def _rescued(name: str, hook: Callable[..., Any], log: Any) -> Callable[..., Any]:
    @functools.wraps(hook)  # gunicorn counts the arguments of a hook by its signature
    def call(*args: Any) -> Any:
        try:
            return hook(*args)
        except Exception:
            log.exception("the %s hook failed; continuing without it", name)
            return None

    return call


def _named(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(*args: Any) -> Any:
        try:
            return hook(*args)
        except Exception as exc:
            raise HookError(
                f"the {name} hook failed: {type(exc).__name__}: {exc}".removesuffix(": ")
            ) from exc

    return call


def once(hook: Callable[[], None]) -> Callable[[], None]:
    """The hook, called at the first of several ends that meet; the others wait for it."""
    lock = threading.RLock()  # a signal handler may find its own thread inside the hook
    called = False

    def call() -> None:
        nonlocal called
        with lock:
            if not called:
                called = True
                hook()

    return call
