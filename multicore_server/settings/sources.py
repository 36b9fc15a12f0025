"""Reads each setting from its strongest source: flag, environment, config file, default."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from multicore_server.settings.table import PREFIX, TABLE, Setting, SettingError, Settings

DEFAULT = "the default"  # a source
BOOT_TIME = 60.0  # seconds that a boot may take at least, unless listen_timeout says otherwise


class Given(NamedTuple):
    """A value as its source has it, and the name of the source for messages."""

    value: object
    source: str

    def of(self, name: str) -> str:
        """Return the start of a message about this value."""
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

    ``cfg`` is the ``gunicorn.config.Config`` as it was loaded. Resolve before anything is written back to it.
    ``options`` has the given flags of ``multicore-server run`` or the given keywords of ``run()``, by setting
    name. ``cpus`` counts the usable CPUs. ``environ`` and ``argv`` default to those of this process. Raises
    SettingError for the first value that cannot be used.
    """
    given = given_values(cfg, options, environ=environ, argv=argv)
    values = {name: _read(row, given[name]) for name, row in TABLE.items()}
    values["workers"] = _count(values["workers"], cpus)
    if values["listen_timeout"] is None:
        values["listen_timeout"] = _boot_time(cfg.timeout)
    settings = Settings(**values)
    _check_together(settings, given)
    return settings


def bad_values(given: Mapping[str, Given]) -> list[str]:
    """What `resolve` says of every value that cannot be used by itself."""
    return [line for name, row in TABLE.items() if (line := _why_not(row, given[name]))]


def _why_not(row: Setting, given: Given) -> str:
    try:
        _read(row, given)
    except SettingError as exc:
        return str(exc)
    return ""


def given_values(
    cfg: Any,
    options: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    argv: Sequence[str] | None = None,
) -> Mapping[str, Given]:
    """Return the value of each setting from its strongest source, as for `resolve`."""
    environ = environment(cfg, environ)
    chosen, variables, file = _options(options or {}), _variables(environ), in_config_file(cfg, TABLE)
    defaults = {row.name: Given(row.default, DEFAULT) for row in TABLE.values()}
    # gunicorn has its own sources of this setting. Each of them keeps its rank.
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
    return ChainMap({"workers": next(filter(None, workers))}, chosen, variables, file, defaults)


def environment(cfg: Any, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in force: gunicorn's ``--env`` overrides the process's own variables."""
    return {**(os.environ if environ is None else environ), **cfg.env}


def unknown_environment(
    environ: Mapping[str, str], settings: Settings, gunicorns: Mapping[str, str], *, run: bool
) -> list[str]:
    """Return one warning line for each MULTICORE_ variable that is not read. Most of these are misspelt.

    ``gunicorns`` has the variables of gunicorn's own settings; ``run`` reads them.
    """
    known = {settings.instance_var, *(row.environment for row in TABLE.values()), *(gunicorns if run else ())}
    strange = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    return [_why_not_read(name, gunicorns) for name in strange]


def _why_not_read(name: str, gunicorns: Mapping[str, str]) -> str:
    if name in gunicorns:
        return f"only multicore-server run reads {name}; it is ignored here: use gunicorn's own option"
    from gunicorn.config import make_settings  # here alone: for a mistake, at a start

    setting, of_gunicorn = name.removeprefix(PREFIX).lower(), make_settings()
    if setting in of_gunicorn:
        return f"{name} is not read: set {setting} in the config file"
    flag = f"--{setting.replace('_', '-')}"
    variables = (f"{PREFIX}{it.name.upper()}" for it in of_gunicorn.values() if flag in (it.cli or ()))
    meant = next((f": did you mean {variable}?" for variable in variables if variable in gunicorns), None)
    return f"{name} is not a setting and is ignored{meant or _hint(name, 'environment')}"


def _read(row: Setting, given: Given) -> Any:
    try:
        return row.parse(given.value)
    except ValueError as error:
        raise SettingError(f"{given.of(row.name)} {error}; give {row.accepted}") from None


def _count(workers: int, cpus: Callable[[], int]) -> int:
    return workers if workers > 0 else max(1, cpus() + workers)


def _boot_time(timeout: float) -> float:
    """Return the time for a boot. A user who raises ``timeout`` usually has a slow boot and means the boot
    too."""
    return max(BOOT_TIME, timeout) if timeout else 0.0


def _check_together(settings: Settings, given: Mapping[str, Given]) -> None:
    """Raise SettingError for values that are valid alone and conflict with each other."""

    def refuse(name: str, verb: str, other: str, advice: str) -> None:
        raise SettingError(f"{given[name].of(name)} {verb} {given[other].of(other)}; give {advice}")

    hard, soft = settings.max_memory_kill, settings.max_memory_restart
    if hard and soft and hard.below(soft):
        refuse("max_memory_kill", "is below", "max_memory_restart", "at least as much")
    if settings.exp_backoff_restart_delay > settings.max_restart_delay:
        bare = str(given["exp_backoff_restart_delay"].value).replace(".", "", 1).isdigit()
        advice = "at most as much" + ("; a bare number is seconds, not PM2's milliseconds" if bare else "")
        refuse("exp_backoff_restart_delay", "is above", "max_restart_delay", advice)
    if settings.instance_var in {row.environment for row in TABLE.values()}:
        raise SettingError(f"{given['instance_var'].of('instance_var')} is a setting; give another name")


def _hint(name: str, form: Literal["environment", "name"]) -> str:
    from difflib import get_close_matches  # here alone: for a mistake, at a start

    # The prefix is removed first, because it makes any two variables look similar.
    nearest = get_close_matches(name.removeprefix(PREFIX).lower(), TABLE, n=1)
    return "".join(f": did you mean {getattr(TABLE[found], form)}?" for found in nearest)


def _options(options: Mapping[str, Any]) -> dict[str, Given]:
    for name, value in options.items():
        if name not in TABLE:
            said = f"{name}: {value!r} (from run's options)"
            raise SettingError(f"{said} is not a setting{_hint(name, 'name')}")
    return {name: Given(value, f"from run's options, {TABLE[name].flag}") for name, value in options.items()}


def _variables(environ: Mapping[str, str]) -> dict[str, Given]:
    found = [row for row in TABLE.values() if row.environment in environ]
    return {row.name: _variable(environ, row.environment) for row in found}


def _variable(environ: Mapping[str, str], name: str) -> Given:
    return Given(environ[name], f"from the environment, {name}")


def in_config_file(cfg: Any, names: Iterable[str]) -> dict[str, Given]:
    """Return the values of these names in gunicorn's config file. gunicorn itself drops names that it does
    not know."""
    path, found = config_file(cfg)
    return {name: Given(found[name], f"from the config file, {path}") for name in names if name in found}


def config_file(cfg: Any) -> tuple[str, dict[str, Any]]:
    """Return the config file's path, or python:MODULE, and its contents by name."""
    location = cfg.settings["config"].get() or ""
    if location.startswith("python:"):
        module = sys.modules.get(location.removeprefix("python:"))
    else:
        module = sys.modules.get("__config__")
        implicit = location == cfg.settings["config"].default
        location = getattr(module, "__file__", None) or location
        # The module is left over from before a HUP: the file was removed meanwhile and not replaced.
        if implicit and not Path(location).exists():
            return location, {}
    return location, vars(module) if module else {}


def _workers_flag(cfg: Any, arguments: Sequence[str], source: str) -> Given | None:
    """Return ``-w`` from arguments. Parse them again, because in cfg ``-w 1`` looks like the default.

    If an application embeds gunicorn, the arguments are the application's. Then they do not parse, or their
    value differs from cfg, and the result is None.
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
    """Return the value that an embedding application set in cfg. A 1 there looks like gunicorn's default.

    gunicorn's default is the value of WEB_CONCURRENCY at the import of gunicorn. The application did not
    choose it, so it does not count here.
    """
    workers = cfg.settings["workers"]
    return Given(workers.get(), "from the application") if workers.get() != workers.default else None


def _web_concurrency(environ: Mapping[str, str]) -> Given | None:
    return _variable(environ, "WEB_CONCURRENCY") if environ.get("WEB_CONCURRENCY") else None
