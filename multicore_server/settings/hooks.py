"""Hooks that gunicorn does not have: functions in the config file that are called for events in the server.

They are gunicorn settings like its own hooks, so ``run()`` takes them as options too. gunicorn's command
makes its configuration before it imports this package; `adopt` adds the hooks in the config file to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from gunicorn.config import Setting, validate_callable

from multicore_server.settings.sources import in_config_file
from multicore_server.settings.table import SettingError

SECTION = "Server Hooks"


def on_message(server: Any, worker: Any, message: Any) -> None:
    """Called when an app has sent a message to the ``"arbiter"``; ``worker.send()`` answers."""


def on_worker_ready(server: Any, worker: Any) -> None:
    """Called when a worker is ready for requests."""


def on_worker_exit(server: Any, worker: Any, reason: str, status: int) -> None:
    """Called when a worker's process has exited, for one of the reasons of ``worker_restarts_total``.

    ``status`` is its exit code, or the negative number of the signal that killed it.
    """


def on_reload_result(server: Any, result: str, reason: str) -> None:
    """Called when a reload has ended: ``ok``, ``rolled_back`` or ``failed``; ``reason`` is a line about
    it."""


def on_errored(server: Any, instance: int) -> None:
    """Called when an instance has become ``errored`` after ``max_restarts`` unstable exits."""


def _setting(hook: Callable[..., None]) -> type[Any]:
    """Make a gunicorn setting of a hook, which every later configuration knows."""
    own = {
        "name": hook.__name__,
        "section": SECTION,
        "validator": validate_callable(len(signature(hook).parameters)),
        "type": callable,
        "default": staticmethod(hook),
        "desc": hook.__doc__ or hook.__name__,  # `python -OO` has no docstrings
    }
    return type(Setting)(hook.__name__, (Setting,), own)  # type: ignore[no-any-return]  # gunicorn has no types


_HOOKS = (on_message, on_worker_ready, on_worker_exit, on_reload_result, on_errored)
EVENTS: Mapping[str, type[Any]] = {hook.__name__: _setting(hook) for hook in _HOOKS}


def adopt(cfg: Any) -> None:
    """Add the hooks to a configuration that gunicorn has made without them. Raises SettingError."""
    found = in_config_file(cfg, EVENTS)
    for name, hook in EVENTS.items():
        if name not in cfg.settings:
            cfg.settings[name] = hook()
            if name in found:
                try:
                    cfg.set(name, found[name].value)
                except (TypeError, ValueError) as exc:
                    raise SettingError(f"{found[name].of(name)} is not a hook: {exc}") from None
