"""Warns about settings that work but are perhaps not intended: one line each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import FunctionType
from typing import Any

from multicore_server.settings.gunicorn import is_set, log_configuration, log_files
from multicore_server.settings.hooks import EVENTS
from multicore_server.settings.sources import DEFAULT, Given, config_file
from multicore_server.settings.table import TABLE, Settings

# PM2's settings in milliseconds: from these numbers on, seconds are hardly meant.
MILLISECONDS_IN_PM2 = {
    "min_uptime": 1000,
    "restart_delay": 1000,
    "listen_timeout": 1000,
    "exp_backoff_restart_delay": 10,
    "shutdown_delay": 1000,
}
ALIKE = 0.84  # of difflib's ratio: timeot and timeout, not timeout_str and timeout
PLAIN = (bool, int, float, str, list, tuple, dict, set, frozenset, type(None))


def milliseconds(given: Mapping[str, Given]) -> Iterator[str]:
    """Yield a warning for each number without a unit that looks like PM2's milliseconds."""
    for name, least in MILLISECONDS_IN_PM2.items():
        number = _bare_number(given[name].value)
        if number is not None and number >= least:
            text = "is in seconds; if these are PM2's milliseconds, give"
            yield f"{given[name].of(name)} {text} {number:g}ms, otherwise {number:g}s"


def _bare_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:  # it has a unit
        return None


def idle(cfg: Any, settings: Settings, given: Mapping[str, Given]) -> Iterator[str]:
    """Settings that have no effect beside others."""
    configuration = log_configuration(cfg)
    if settings.log_format != "text" and configuration:
        why = "which has formatters of its own: name multicore_server.logs.JsonFormatter there"
        yield f"log_format = {settings.log_format} has no effect with {configuration}, {why}"
    yield from not_rotated(cfg, settings.log_max_size)
    if is_set(cfg, "max_requests_jitter") and not cfg.max_requests:
        yield f"max_requests_jitter = {cfg.max_requests_jitter} has no effect without max_requests"
    has_host = settings.metrics_bind and not settings.metrics_bind.startswith("unix:")
    needs = {
        "max_lifetime_jitter": ("max_lifetime", settings.max_lifetime),
        "log_keep": ("log_max_size", settings.log_max_size),
        "metrics_hosts": ("a host and a port in metrics_bind", has_host),
    }
    for name, (missing, there) in needs.items():
        if not there and given[name].source != DEFAULT:
            yield f"{given[name].of(name)} has no effect without {missing}"


def idle_threads(cfg: Any) -> str:
    """A line for an app that is not WSGI; or nothing."""
    if cfg.threads <= 1:
        return ""
    return f"threads = {cfg.threads} has no effect: the app is ASGI and has its own concurrency"


def not_rotated(cfg: Any, log_max_size: int | None) -> Iterator[str]:
    """A size of log files where there is none."""
    if log_max_size and not log_files(cfg):
        yield "log_max_size has no effect: neither errorlog nor accesslog is a file"


def unknown_names(cfg: Any) -> Iterator[str]:
    """Yield a warning for each name in the config file that resembles a setting or a hook.

    The config file may have its own variables and functions, so other names get no warning. A name gets none
    either if the file also sets the setting itself.
    """
    path, found = config_file(cfg)
    known: Collection[str] = {*cfg.settings, *TABLE, *EVENTS}
    for name, value in found.items():
        if name in known or name.startswith("_") or not _is_its_own(value, found):
            continue
        from difflib import get_close_matches  # here alone: for a mistake, at a start

        nearest = get_close_matches(name.lower(), known - found.keys(), n=1, cutoff=ALIKE)
        if nearest:
            yield f"{name} (in the config file, {path}) is not a setting: did you mean {nearest[0]}?"


def _is_its_own(value: object, module: Mapping[str, Any]) -> bool:
    """Return whether the config file itself has made it."""
    if isinstance(value, FunctionType):
        return value.__module__ == module.get("__name__")
    return isinstance(value, PLAIN)
