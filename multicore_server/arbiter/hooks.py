"""User hooks of gunicorn's: a mistake in one is reported by name and costs nothing else."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

# post_fork and post_worker_init are not among them: when they fail, the worker's boot has failed.
RESCUED = (
    "on_starting", "on_reload", "when_ready", "pre_fork", "pre_exec", "child_exit",
    "nworkers_changed", "on_exit", "worker_int", "worker_abort", "worker_exit",
)  # fmt: skip


def rescue(cfg: Any, log: Any) -> None:
    """Wrap the hooks of this configuration, so that an exception in one is logged and goes no further."""
    for name in RESCUED:
        cfg.set(name, _rescued(name, cfg.settings[name].get(), log))


def _rescued(name: str, hook: Callable[..., Any], log: Any) -> Callable[..., Any]:
    @functools.wraps(hook)  # gunicorn counts the arguments of a hook by its signature
    def call(*args: Any) -> Any:
        try:
            return hook(*args)
        except Exception:
            log.exception("the %s hook failed; going on without it", name)
            return None

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
