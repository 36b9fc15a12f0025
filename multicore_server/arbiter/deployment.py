"""A deployment is what workers are made from: an app, its configuration, its settings and its listeners.

A reload makes a new deployment beside the one in force. It commits the new one, or drops it without a trace.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from multicore_server.arbiter import hooks, listeners, resolution
from multicore_server.arbiter.interruption import Interrupted
from multicore_server.arbiter.pairing import pair
from multicore_server.fleet.policy import Options, RestartPolicy
from multicore_server.settings.gunicorn import worker_class
from multicore_server.settings.table import SettingError, Settings
from multicore_server.worker.worker import Worker

# What is said about a configuration is said when it is loaded, and not when it is checked.
_SILENT = logging.Logger("silent", logging.CRITICAL + 1)


Breakable: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]


class DeploymentError(Exception):
    """A configuration that cannot be used: one line."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What loading a configuration changes in the process: its directory, where it imports from, its
    environment (without ``raw_env``) and the config file's module."""

    directory: str
    path: list[str]
    environ: dict[str, str]
    name: str
    module: ModuleType | None

    @classmethod
    def now(cls, cfg: Any) -> Surroundings:
        name = _config_module(cfg)
        directory = ""
        with contextlib.suppress(FileNotFoundError):  # removed: an old release, say
            directory = str(Path.cwd())
        return cls(directory, list(sys.path), dict(os.environ), name, sys.modules.get(name))

    def enter(self) -> None:
        if self.directory:
            with contextlib.suppress(OSError):  # as above
                os.chdir(self.directory)
        sys.path[:] = self.path
        os.environ.clear()
        os.environ.update(self.environ)
        sys.modules.pop(self.name, None)
        if self.module is not None:
            sys.modules[self.name] = self.module


@dataclass(frozen=True, slots=True)
class Deployment:
    """``app`` is gunicorn's application object, ``cfg`` its configuration. Its surroundings are to be
    entered before it is used; those of the deployment in force are the process's."""

    app: Any
    cfg: Any
    settings: Settings
    listeners: list[Any]
    number: int = 1  # a reload makes the next one
    given: bool = False  # the listeners are systemd's: the addresses of the configuration do not count
    surroundings: Surroundings | None = None

    def enter(self) -> None:
        if self.surroundings is not None:
            self.surroundings.enter()


def fleet_options(settings: Settings, cfg: Any) -> Options:
    """The part of the settings that the fleet decides by."""

    def lifetime(random: float) -> float | None:
        least = settings.max_lifetime
        return None if least is None else least + settings.max_lifetime_jitter.seconds(least, random)

    return Options(
        policy=RestartPolicy(
            autorestart=settings.autorestart,
            min_uptime=settings.min_uptime,
            max_restarts=settings.max_restarts,
            restart_delay=settings.restart_delay,
            exp_backoff_restart_delay=settings.exp_backoff_restart_delay,
            max_restart_delay=settings.max_restart_delay,
            backoff_reset=settings.backoff_reset,
            stop_exit_codes=settings.stop_exit_codes,
        ),
        listen_timeout=settings.listen_timeout,
        graceful_timeout=cfg.graceful_timeout,
        shutdown_delay=settings.shutdown_delay,
        reload_surge=settings.reload_surge,
        draining_limit=settings.draining_limit,
        lifetime=lifetime,
    )


def load(current: Deployment, log: Any, breakable: Breakable = contextlib.nullcontext) -> Deployment:
    """Load the configuration as it is now; nothing else changes, and nothing is bound.

    ``breakable`` surrounds the user's code. Raises DeploymentError, or Interrupted where that broke it off.
    """
    with _whatever_is_wrong():
        return _load(current, log, breakable)


@contextlib.contextmanager
def _whatever_is_wrong() -> Iterator[None]:
    """Turn it into a DeploymentError. A config file may raise KeyboardInterrupt or SystemExit, and an
    exception of its own may fail when it is shown."""
    try:
        yield
    except (DeploymentError, Interrupted):
        raise
    except BaseException as exc:
        text = type(exc).__name__
        with contextlib.suppress(Exception):
            text = f"{text}: {exc}".removesuffix(": ")
        raise DeploymentError(in_one_line(text)) from exc


def _load(current: Deployment, log: Any, breakable: Breakable) -> Deployment:
    app = copy.copy(current.app)
    if not current.cfg.preload_app:
        app.callable = None
    before = Surroundings.now(current.cfg)
    try:
        _leave(current.cfg)
        _load_configuration(app, breakable)
        app.cfg.env_orig = current.cfg.env_orig
        _keep_preload(app.cfg, current.cfg, log)
        surroundings = Surroundings.now(app.cfg)
        os.environ.update(app.cfg.env)
        settings = _settings(app)
        if settings.app_metrics != current.settings.app_metrics:
            log.warning("app_metrics = %s takes effect with USR2 or the next start", settings.app_metrics)
        for line in resolution.doubts(app, settings):
            log.warning("%s", line)
        _check_worker_class(app.cfg)
        _check_bind(app.cfg)
    finally:
        before.enter()
    hooks.wrap(app.cfg, log)
    hooks.wrap_events(app.cfg, log)
    return Deployment(
        app,
        app.cfg,
        settings,
        current.listeners,
        given=current.given,
        surroundings=surroundings,
    )


def check(current: Deployment) -> dict[str, str]:
    """Load the configuration, as a reload is about to do; return the IP addresses of the names in its new
    addresses.

    Raises DeploymentError.
    """
    new = load(current, _SILENT)
    if current.given:
        return {}
    with _whatever_is_wrong():
        try:
            known = pair(new.cfg.address, current.listeners, {})
            return listeners.resolve(address for address in new.cfg.address if address not in known)
        except listeners.BindError as exc:
            raise DeploymentError(str(exc)) from exc


def _keep_preload(cfg: Any, before: Any, log: Any) -> None:
    """What the arbiter has imported stays, and importing an app takes longer than its loop may wait."""
    if cfg.preload_app != before.preload_app:
        log.warning("preload_app = %s takes effect with USR2 or the next start", cfg.preload_app)
        cfg.set("preload_app", before.preload_app)


def _leave(cfg: Any) -> None:
    """Go back to where gunicorn loads a configuration: no ``raw_env``, no config file."""
    reset_environment(cfg)
    sys.modules.pop(_config_module(cfg), None)  # or -c python:module would not be read again
    importlib.invalidate_caches()


def _config_module(cfg: Any) -> str:
    location = cfg.settings["config"].get() or ""
    return str(location).removeprefix("python:") if location.startswith("python:") else "__config__"


def _load_configuration(app: Any, breakable: Breakable) -> None:
    """gunicorn's own loading prints what is wrong and ends the process; here it becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), breakable():
            app.do_load_config()
    except SystemExit as exc:
        if said.getvalue().strip():
            raise DeploymentError(in_one_line(said.getvalue())) from None
        raise DeploymentError(f"the config file ended the process (sys.exit({exc.code!r}))") from None
    if "\0" in (app.cfg.pythonpath or ""):  # no import would work any more
        raise DeploymentError(f"pythonpath: {app.cfg.pythonpath!r} is not a directory")
    _add_python_path(app.cfg)


def _add_python_path(cfg: Any) -> None:
    for directory in reversed((cfg.pythonpath or "").split(",")):
        path = str(Path(directory).absolute())
        if directory and path not in sys.path:
            sys.path.insert(0, path)


def enter_environment(cfg: Any) -> None:
    """What the arbiter does with a configuration before anybody imports the app."""
    os.environ.update(cfg.env)
    _add_python_path(cfg)


def in_one_line(said: str) -> str:
    """The first line of gunicorn's says where, the last one what; argparse begins with its usage. Of a
    traceback, the line of the file that is named counts."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    where = [line for line in lines[:1] if not line.startswith("usage:")]
    what = [line.removeprefix("Error: ") for line in lines[1:][-1:]]
    text = ": ".join(where + what).removeprefix("Error: ") or "the configuration cannot be loaded"
    file = re.fullmatch(r"Failed to read config file: (.*)", where[0]) if where else None
    found = re.findall(rf'File "[^"]*{re.escape(file[1])}", line (\d+)', said) if file else []
    return f"{text} (line {found[-1]})" if found else text


def _settings(app: Any) -> Settings:
    try:
        return resolution.resolve_settings(app)
    except SettingError as exc:
        raise DeploymentError(str(exc)) from exc


def _check_worker_class(cfg: Any) -> None:
    try:
        ours = issubclass(worker_class(cfg), Worker)
    except (RuntimeError, TypeError) as exc:
        raise DeploymentError(f"worker_class: {in_one_line(str(exc))}") from exc
    if not ours:
        raise DeploymentError(f"worker_class: {cfg.worker_class_str!r} needs a restart of the server")


def _check_bind(cfg: Any) -> None:
    try:
        cfg.address  # noqa: B018 - gunicorn parses it each time
    except (RuntimeError, ValueError) as exc:
        raise DeploymentError(f"bind: {exc}") from exc


def bind(new: Deployment, current: Deployment, log: Any, resolved: Mapping[str, str]) -> Deployment:
    """Bind the addresses that have no listener yet; those that have one stay as they are. Listeners without
    an address (USR2's arbiter may have some) stay until ``bind`` changes. ``resolved`` as of `check`.

    Raises DeploymentError, with nothing bound.
    """
    cfg = new.cfg
    kept = pair(cfg.address, current.listeners, resolved)
    changed = cfg.address != current.cfg.address
    if current.given or not (changed or set(cfg.address) - kept.keys()):
        return new
    others = [] if changed else [held for held in current.listeners if held not in kept.values()]
    with _whatever_is_wrong():
        try:
            bound = listeners.bind(cfg, log, kept=kept, resolved=resolved)
        except listeners.BindError as exc:
            raise DeploymentError(str(exc)) from exc
    return replace(new, listeners=bound + others)


def reset_environment(cfg: Any) -> None:
    """Undo what ``raw_env`` has set."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)
