"""Every setting, defined once: the fields of `Settings` are the table that all the sources read.

A field's name gives the config file's name and the keyword of ``run()`` (``max_memory_restart``), the
environment variable (``MULTICORE_MAX_MEMORY_RESTART``) and the flag (``--max-memory-restart``); its row
gives the default, the parser, what is accepted (for messages and docs) and the meaning.
"""
# ruff: noqa: RUF009 -- setting() is dataclasses.field() with a row attached, and every default is immutable

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from multicore_server import quantities as read
from multicore_server.quantities import Jitter, Size, next_cron

__all__ = [
    "PREFIX", "TABLE", "Jitter", "Setting", "SettingError", "Settings", "Size",
    "environment", "next_cron", "reference", "resolve", "unknown_environment",
]  # fmt: skip

T = TypeVar("T")
PREFIX = "MULTICORE_"


class SettingError(Exception):
    """A value that cannot be used: one line with the setting, its source, the value and what is accepted."""


def setting(default: str, parse: Callable[[object], T], accepted: str, meaning: str) -> T:
    """A field of `Settings` with its row of the table; the default is written as a user would."""
    return field(default=parse(default), metadata=_row(default, parse, accepted, meaning))


def _row(default: str, parse: Callable[[object], T], accepted: str, meaning: str) -> dict[str, Any]:
    return {"default": default, "parse": parse, "accepted": accepted, "meaning": meaning}


_TIME = "seconds, or 500ms, 2s, 10m, 24h"
_SOME_TIME = f"a duration above 0: {_TIME}"
_SIZE = "bytes, 300M, 1.5G or 80%, or none"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the arbiter and its workers run with. Durations are seconds; None is "off".

    From PM2, with the names it gives them: autorestart, min_uptime, max_restarts, restart_delay,
    exp_backoff_restart_delay, stop_exit_codes, max_memory_restart, cron_restart, listen_timeout,
    wait_ready and instance_var. PM2's bare numbers are milliseconds, ours are seconds.
    """

    # No default here: "max" is a number only once the CPUs are counted.
    workers: int = field(
        metadata=_row(
            "max",
            read.worker_count,
            "N, max or 0 (one per usable CPU), or -1 (one fewer)",
            "how many; usable CPUs: those of the affinity mask, within the cgroup's quota rounded up",
        )
    )
    autorestart: Literal["true", "on-failure", "false"] = setting(
        "true", read.restart_rule, "true, on-failure or false", "on-failure: no restart after exit 0"
    )
    min_uptime: float = setting(
        "1s", read.duration, _TIME, "an exit before being ready for this long is unstable"
    )
    max_restarts: int = setting(
        "16",
        read.whole(0),
        "a whole number from 0",
        "unstable exits after which a slot is errored and left; HUP, reset and restart revive it",
    )
    restart_delay: float = setting("0", read.duration, _TIME, "fixed wait before a restart")
    exp_backoff_restart_delay: float = setting(
        "100ms",
        read.duration,
        _TIME,
        "first wait after an unplanned exit that came before backoff_reset, then times 1.5 with jitter; "
        "the very first such exit restarts at once",
    )
    max_restart_delay: float = setting(
        "15s", read.duration, _TIME, "cap of exp_backoff_restart_delay's growth"
    )
    backoff_reset: float = setting(
        "30s", read.duration, _TIME, "ready for this long: unstable exits and backoff start from 0 again"
    )
    stop_exit_codes: frozenset[int] = setting(
        "none",
        read.exit_codes,
        "exit codes from 0 to 255 such as 0,143, or none",
        "exit codes after which a slot stays stopped; a death by signal is never one of them",
    )
    max_memory_restart: Size | None = setting(
        "none", read.optional(read.size), _SIZE, "soft limit: the worker is replaced, replacement first"
    )
    max_memory_kill: Size | None = setting(
        "none", read.optional(read.size), _SIZE, "hard limit: SIGKILL at once, then restart"
    )
    memory_metric: Literal["rss", "uss"] = setting(
        "uss", read.one_of("rss", "uss"), "rss or uss", "what the limits look at: resident or unique memory"
    )
    memory_check_interval: float = setting("1s", read.above_zero, _SOME_TIME, "how often memory is sampled")
    max_lifetime: float | None = setting(
        "none", read.optional(read.above_zero), f"{_SOME_TIME}, or none", "age at which a worker is replaced"
    )
    max_lifetime_jitter: Jitter = setting(
        "10%",
        read.jitter,
        f"0% to 100%, or a duration: {_TIME}",
        "up to this much is added to max_lifetime, at random",
    )
    cron_restart: str | None = setting(
        "none",
        read.optional(read.cron_expression),
        "five cron fields such as 0 4 * * *, or none",
        "a rolling restart at these local times, never all workers at once",
    )
    listen_timeout: float = setting(
        "60s", read.above_zero, _SOME_TIME, "from fork to ready; past it the boot has failed"
    )
    wait_ready: bool = setting(
        "false", read.boolean, "true or false", "a worker is ready only when the app calls cluster.ready()"
    )
    reload_surge: int = setting(
        "1", read.whole(1), "a whole number from 1", "replacements started at once in a rolling reload"
    )
    shutdown_delay: float = setting(
        "0", read.duration, _TIME, "on TERM: answer on for this long while /readyz says 503, then drain"
    )
    scheduling: Literal["least", "shared"] = setting(
        "least",
        read.one_of("least", "shared"),
        "least or shared",
        "least: the least loaded worker gets the connection; shared: whoever accepts first",
    )
    metrics_bind: str = setting(
        "127.0.0.1:9464",
        read.address,
        "host:port, [::1]:port or unix:PATH, or none",
        "where the monitor listens; none: no address, the command socket stays",
    )
    metrics_path: str | None = setting(
        "none",
        read.optional(read.path),
        "a path such as /metrics, or none",
        "also serve the metrics on the app's own port here",
    )
    instance_var: str = setting(
        "MULTICORE_INSTANCE",
        read.variable,
        "a name of letters, digits and _",
        "environment variable with the instance number: from 0, the lowest free, kept by a replacement",
    )
    app_metrics: bool = setting(
        "true", read.boolean, "true or false", "aggregate the app's own prometheus_client metrics"
    )


class Setting(NamedTuple):
    """One row of the table: a setting by name, and how to read and explain it."""

    name: str
    default: str
    parse: Callable[[object], Any]
    accepted: str
    meaning: str

    @property
    def environment(self) -> str:
        """MULTICORE_MAX_MEMORY_RESTART."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """--max-memory-restart."""
        return "--" + self.name.replace("_", "-")


TABLE: dict[str, Setting] = {row.name: Setting(row.name, **row.metadata) for row in fields(Settings)}


class Given(NamedTuple):
    """A value as its source has it, and the words that name the source in a message."""

    value: object
    source: str

    def of(self, name: str) -> str:
        """The start of a message about this value."""
        return f"{name}: {self.value!r} ({self.source})"


def resolve(
    cfg: Any,
    options: Mapping[str, Any] | None = None,
    *,
    cpus: Callable[[], int],
    environ: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> Settings:
    """Read every setting from its strongest source and check it.

    ``cfg`` is the ``gunicorn.config.Config`` as it was loaded: resolve before writing anything back to it.
    ``options`` holds the flags of ``multicore-server run`` or the keywords of ``run()``, by setting name and
    only those that were given. ``cpus`` counts the usable CPUs. ``environ`` and ``argv`` are this process's
    own unless given. Raises SettingError for the first value that cannot be used.
    """
    environ = environment(cfg, environ)
    chosen, variables, file = _options(options or {}), _variables(environ), _config_file(cfg)
    defaults = {row.name: Given(row.default, "the default") for row in TABLE.values()}
    # gunicorn has ways of its own to set this one; each keeps its rank.
    workers = (
        chosen.get("workers"),
        _workers_flag(cfg, sys.argv[1:] if argv is None else argv, "the command line"),
        variables.get("workers"),
        _workers_flag(cfg, cfg.get_cmd_args_from_env(), "GUNICORN_CMD_ARGS"),
        file.get("workers"),
        _workers_of_application(cfg),
        _web_concurrency(environ),
        defaults["workers"],
    )
    given = ChainMap({"workers": next(filter(None, workers))}, chosen, variables, file, defaults)
    values = {name: _read(row, given[name]) for name, row in TABLE.items()}
    settings = Settings(**values | {"workers": _count(values["workers"], cpus)})
    _check_together(settings, given)
    return settings


def environment(cfg: Any, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment that counts: gunicorn's ``--env`` over the process's own."""
    return {**(os.environ if environ is None else environ), **cfg.env}


def unknown_environment(environ: Mapping[str, str], settings: Settings) -> list[str]:
    """One line of warning for each MULTICORE_ variable that no setting reads: most are misspelt."""
    known = {settings.instance_var, *(row.environment for row in TABLE.values())}
    strange = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    return [f"{name} is no setting and is ignored{_hint(name, 'environment')}" for name in strange]


def reference() -> str:
    """The table of settings in Markdown, for the docs."""
    rows = [f"| `{row.name}` | `{row.default}` | {row.accepted} | {row.meaning} |" for row in TABLE.values()]
    return "\n".join(["| setting | default | accepted | meaning |", "| --- | --- | --- | --- |", *rows])


def _read(row: Setting, given: Given) -> Any:
    try:
        return row.parse(given.value)
    except ValueError as error:
        raise SettingError(f"{given.of(row.name)} {error}; give {row.accepted}") from None


def _count(workers: int, cpus: Callable[[], int]) -> int:
    return workers if workers > 0 else max(1, cpus() + workers)


def _check_together(settings: Settings, given: Mapping[str, Given]) -> None:
    """Values that are right alone and wrong together."""

    def refuse(name: str, verb: str, other: str, advice: str) -> None:
        raise SettingError(f"{given[name].of(name)} {verb} {given[other].of(other)}; give {advice}")

    hard, soft = settings.max_memory_kill, settings.max_memory_restart
    if hard and soft and hard.below(soft):
        refuse("max_memory_kill", "is below", "max_memory_restart", "at least as much")
    if settings.exp_backoff_restart_delay > settings.max_restart_delay:
        refuse("exp_backoff_restart_delay", "is above", "max_restart_delay", "at most as much")
    if settings.instance_var in {row.environment for row in TABLE.values()}:
        raise SettingError(f"{given['instance_var'].of('instance_var')} is a setting; give another name")


def _hint(name: str, form: Literal["environment", "name"]) -> str:
    # Without the prefix, which would make any two variables look alike.
    nearest = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), TABLE, n=1)
    return "".join(f": did you mean {getattr(TABLE[found], form)}?" for found in nearest)


# -- sources


def _options(options: Mapping[str, Any]) -> dict[str, Given]:
    for name, value in options.items():
        if name not in TABLE:
            raise SettingError(f"{name}: {value!r} (from run's options) is no setting{_hint(name, 'name')}")
    return {name: Given(value, f"from run's options, {TABLE[name].flag}") for name, value in options.items()}


def _variables(environ: Mapping[str, str]) -> dict[str, Given]:
    found = [row for row in TABLE.values() if row.environment in environ]
    return {row.name: _variable(environ, row.environment) for row in found}


def _variable(environ: Mapping[str, str], name: str) -> Given:
    return Given(environ[name], f"from the environment, {name}")


def _config_file(cfg: Any) -> dict[str, Given]:
    """The settings that gunicorn's config file names, raw: gunicorn itself drops names it does not know."""
    location = cfg.settings["config"].get() or ""
    if location.startswith("python:"):
        module = sys.modules.get(location.removeprefix("python:"))
    else:
        module = sys.modules.get("__config__")
        implicit = location == cfg.settings["config"].default
        location = getattr(module, "__file__", None) or location
        # Left behind by the load before a HUP: the file was removed since, and no other took its place.
        if implicit and not Path(location).exists():
            return {}
    found = vars(module) if module else {}
    return {name: Given(found[name], f"from the config file, {location}") for name in TABLE if name in found}


def _workers_flag(cfg: Any, arguments: Sequence[str], source: str) -> Given | None:
    """``-w`` of arguments that gunicorn has parsed. Parsed again, as ``-w 1`` looks like the default in cfg.

    An embedding application's arguments are its own: they do not parse, or say otherwise than cfg does.
    """
    if not any("w" in argument for argument in arguments):  # building gunicorn's parser takes 5 ms
        return None
    silence = io.StringIO()
    try:
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            parsed, unknown = cfg.parser().parse_known_args(list(arguments))
    except SystemExit:
        return None
    own = unknown or parsed.workers != cfg.workers
    return None if own else Given(parsed.workers, f"from {source}, -w")


def _workers_of_application(cfg: Any) -> Given | None:
    """What an embedding application has put into cfg; its 1 cannot be told from gunicorn's default.

    gunicorn's default is WEB_CONCURRENCY as it was when gunicorn was imported: that is no one's choice.
    """
    workers = cfg.settings["workers"]
    return Given(workers.get(), "from the application") if workers.get() != workers.default else None


def _web_concurrency(environ: Mapping[str, str]) -> Given | None:
    return _variable(environ, "WEB_CONCURRENCY") if environ.get("WEB_CONCURRENCY") else None
