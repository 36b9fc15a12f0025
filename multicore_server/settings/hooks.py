"""Hooks that gunicorn does not have: functions in the config file that are told of events in the server.

They are gunicorn settings like its own hooks, so ``run()`` takes them as options too. gunicorn's command
makes its configuration before it imports us; `adopt` adds to that one what its config file has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gunicorn.config import Setting, validate_callable

from multicore_server.settings.sources import in_config_file
from multicore_server.settings.table import SettingError

SECTION = "Server Hooks"


class OnMessage(Setting):  # type: ignore[misc]  # gunicorn has no types
    name = "on_message"
    section = SECTION
    validator = validate_callable(3)
    type = callable

    def on_message(server: Any, worker: Any, message: Any) -> None:  # noqa: N805 - no method
        pass

    default = staticmethod(on_message)
    desc = """An app has sent a message to the ``"arbiter"``; ``worker.send()`` answers."""


class OnWorkerReady(Setting):  # type: ignore[misc]
    name = "on_worker_ready"
    section = SECTION
    validator = validate_callable(2)
    type = callable

    def on_worker_ready(server: Any, worker: Any) -> None:  # noqa: N805
        pass

    default = staticmethod(on_worker_ready)
    desc = """A worker is ready for requests."""


class OnWorkerExit(Setting):  # type: ignore[misc]
    name = "on_worker_exit"
    section = SECTION
    validator = validate_callable(4)
    type = callable

    def on_worker_exit(server: Any, worker: Any, reason: str, status: int) -> None:  # noqa: N805
        pass

    default = staticmethod(on_worker_exit)
    desc = """A worker's process has ended, for one of the reasons of ``worker_restarts_total``.

    ``status`` is its exit code, or the number of the signal that killed it with a minus before it."""


class OnReloadResult(Setting):  # type: ignore[misc]
    name = "on_reload_result"
    section = SECTION
    validator = validate_callable(3)
    type = callable

    def on_reload_result(server: Any, result: str, reason: str) -> None:  # noqa: N805
        pass

    default = staticmethod(on_reload_result)
    desc = """A reload has ended: ``ok``, ``rolled_back`` or ``failed``; ``reason`` is a line about it."""


class OnErrored(Setting):  # type: ignore[misc]
    name = "on_errored"
    section = SECTION
    validator = validate_callable(2)
    type = callable

    def on_errored(server: Any, instance: int) -> None:  # noqa: N805
        pass

    default = staticmethod(on_errored)
    desc = """An instance was given up after ``max_restarts`` unstable exits."""


EVENTS: Mapping[str, type[Any]] = {
    hook.name: hook for hook in (OnMessage, OnWorkerReady, OnWorkerExit, OnReloadResult, OnErrored)
}


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
                    raise SettingError(f"{found[name].of(name)} is no hook: {exc}") from None
