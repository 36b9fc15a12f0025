"""What workers are made from: an application, its configuration, settings and listeners.

A reload makes a new deployment beside the one in force and commits it, or drops it without a trace.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from multicore_server import hooks, listeners
from multicore_server.cpu import usable_cpus
from multicore_server.engine import uvicorn_environment
from multicore_server.fleet import Options
from multicore_server.policy import RestartPolicy
from multicore_server.settings import SettingError, Settings, resolve


class DeploymentError(Exception):
    """A configuration that cannot be used: one line."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """``app`` is gunicorn's application object, ``cfg`` its configuration."""

    app: Any
    cfg: Any
    settings: Settings
    listeners: list[Any]


def resolve_settings(app: Any) -> Settings:
    """Validate the settings of a loaded application and make gunicorn's configuration agree with them.

    Raises SettingError.
    """
    cfg = app.cfg
    settings = resolve(cfg, getattr(app, "multicore_options", None), cpus=usable_cpus)
    uvicorn_environment()
    cfg.set("workers", settings.workers)
    _keep_threads_out(cfg)
    return settings


def _keep_threads_out(cfg: Any) -> None:
    """gunicorn's control socket runs a thread where forks happen: only for a user who names it."""
    name = "control_socket"
    if name in cfg.settings and cfg.settings[name].get() == cfg.settings[name].default:
        cfg.set("control_socket_disable", True)


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
        lifetime=lifetime,
    )


def load_afresh(current: Deployment, log: Any) -> Deployment:
    """Load the configuration as it is now and bind the addresses that are new; nothing else changes yet.

    Raises DeploymentError.
    """
    app = copy.copy(current.app)
    if not current.cfg.preload_app:
        app.callable = None
    with _as_at_start(current.cfg), _restored_if_it_fails():
        _load_configuration(app)
        app.cfg.env_orig = current.cfg.env_orig
        with set_environment(app.cfg.env):
            settings = _settings(app)
    hooks.rescue(app.cfg, log)
    kept = dict(zip(current.cfg.address, current.listeners, strict=False))
    inherited = len(kept) != len(current.listeners) or app.cfg.address == current.cfg.address
    try:
        bound = current.listeners if inherited else listeners.bind(app.cfg, log, kept=kept)
    except listeners.BindError as exc:
        raise DeploymentError(str(exc)) from exc
    return Deployment(app, app.cfg, settings, bound)


def _load_configuration(app: Any) -> None:
    """gunicorn's own loading prints what is wrong and ends the process; here it becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            app.do_load_config()
    except SystemExit:
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        raise DeploymentError(lines[-1] if lines else "the configuration cannot be loaded") from None


def _settings(app: Any) -> Settings:
    try:
        return resolve_settings(app)
    except SettingError as exc:
        raise DeploymentError(str(exc)) from exc


def reset_environment(cfg: Any) -> None:
    """Undo what ``raw_env`` has set."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


@contextlib.contextmanager
def set_environment(env: dict[str, str]) -> Iterator[None]:
    """Set variables for a while."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _as_at_start(cfg: Any) -> Iterator[None]:
    """The environment without ``raw_env``, as gunicorn loads a configuration."""
    reset_environment(cfg)
    try:
        yield
    finally:
        os.environ.update(cfg.env)


@contextlib.contextmanager
def _restored_if_it_fails() -> Iterator[None]:
    """A broken configuration leaves neither its half-executed module nor its directory behind."""
    directory, path, module = os.getcwd(), list(sys.path), sys.modules.get("__config__")
    try:
        yield
    except DeploymentError:
        os.chdir(directory)
        sys.path[:] = path
        if module is not None:
            sys.modules["__config__"] = module
        raise
