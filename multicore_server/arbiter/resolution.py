"""Validates the settings of a loaded application, and collects what is said about them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from multicore_server.arbiter.other_systems import adapt
from multicore_server.machine.cpu import usable_cpus
from multicore_server.settings import checks
from multicore_server.settings.doubts import idle, milliseconds, unknown_names
from multicore_server.settings.gunicorn import variables, without_effect
from multicore_server.settings.hooks import adopt
from multicore_server.settings.sources import (
    Given,
    bad_values,
    environment,
    given_values,
    resolve,
    unknown_environment,
)
from multicore_server.settings.table import TABLE, SettingError, Settings
from multicore_server.settings.uvicorn import uvicorn_environment


def resolve_settings(app: Any) -> Settings:
    """Validate the settings of a loaded application and make gunicorn's configuration agree with them.

    Raises SettingError.
    """
    cfg = app.cfg
    options = getattr(app, "multicore_options", None)
    settings = adapt(resolve(cfg, options, cpus=usable_cpus, argv=_arguments(options)))
    cfg.workers_given = _given(app)["workers"]  # before it is written back
    uvicorn_environment()
    checks.check(cfg)
    adopt(cfg)
    cfg.set("workers", settings.workers)
    _keep_threads_out(cfg)
    return settings


def mistakes(app: Any, first: SettingError) -> list[str]:
    """Every value that `resolve_settings` would refuse, after it has raised ``first``."""
    with contextlib.suppress(SettingError):
        return bad_values(_given(app)) or [str(first)]
    return [str(first)]


def log_format(app: Any) -> str:
    """That of a loaded application whose settings are not validated yet: a line about a mistake in another
    one is to have it, too."""
    with contextlib.suppress(SettingError, ValueError):
        return str(TABLE["log_format"].parse(_given(app)["log_format"].value))
    return "text"


def _given(app: Any) -> Mapping[str, Given]:
    options = getattr(app, "multicore_options", None)
    return given_values(app.cfg, options, argv=_arguments(options))


def _arguments(options: object) -> Sequence[str]:
    return sys.argv[1:] if options is None else ()  # with options, the command line is not gunicorn's


def doubts(app: Any, settings: Settings) -> list[str]:
    """One line for each thing in the configuration that can be used, and is perhaps not meant."""
    given, ours = _given(app), getattr(app, "multicore_options", None) is not None
    unread = unknown_environment(environment(app.cfg), settings, variables(), run=ours)
    idle_ones = (*without_effect(app.cfg), *idle(app.cfg, settings, given), *getattr(app, "remarks", ()))
    return [*unread, *milliseconds(given), *unknown_names(app.cfg), *idle_ones]


def _keep_threads_out(cfg: Any) -> None:
    """gunicorn's control socket runs a thread where forks happen: only for a user who names it."""
    name = "control_socket"
    if name in cfg.settings and cfg.settings[name].get() == cfg.settings[name].default:
        cfg.set("control_socket_disable", True)
