"""``multicore-server run``: uvicorn's options, the settings of `settings.TABLE`, and some of gunicorn's."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from gunicorn.config import make_settings
from uvicorn.main import main as uvicorn_command

import multicore_server
from multicore_server.application import Application
from multicore_server.cli.app_name import mistake_in
from multicore_server.cli.uvicorn_help import correct
from multicore_server.settings.gunicorn import DURATIONS
from multicore_server.settings.quantities import boolean, whole_seconds
from multicore_server.settings.table import PREFIX, TABLE, Setting, SettingError
from multicore_server.settings.translation import ADDRESS, DEFAULTS, IDLE, RENAMED, translate
from multicore_server.settings.uvicorn import GUNICORN_HAS

# gunicorn's settings that uvicorn has no option for, by gunicorn's names; the flags are gunicorn's too.
FROM_GUNICORN = {
    "config": "a gunicorn config file, or python:MODULE; none is read unless this names it",
    "proc_name": "the server's name, by which the other commands find it  [default: APP]",
    "timeout": "seconds for which a worker's event loop may be blocked; 0: any time  [default: 30]",
    "graceful_timeout": "seconds that a worker has for the requests in progress when it exits  [default: 30]",
    "max_requests": "number of requests after which a worker is replaced; 0: never  [default: 0]",
    "max_requests_jitter": "a random number up to this one is added to --max-requests  [default: 0]",
    "limit_request_line": "longest request line, in bytes  [default: 64K for the whole head]",
    "limit_request_fields": "largest number of header fields of a request  [default: as above]",
    "limit_request_field_size": "longest header field, in bytes  [default: as above]",
    "check_config": "check the settings and import the app, and exit",
    "preload_app": "import the app once, before the workers are forked",
    "threads": "number of threads of each worker for a WSGI app  [default: 1]",
    "pidfile": "write the server's pid to this file",
    "daemon": "run in the background; the command returns when the server is ready, or says why it is not",
    "user": "run the workers as this user",
    "group": "run the workers as this group",
    "umask": "umask of the workers  [default: 0]",
    "chdir": "directory that the server changes to before it imports the app",
    "pythonpath": "comma-separated directories to import from",
    "accesslog": "file of the access log; -: stdout  [default: -]",
    "access_log_format": "format of a line of the access log, as in gunicorn",
    "errorlog": "file of the error log; -: stderr  [default: -]",
    "capture_output": "write what all processes print to the error log, too",
}
# uvicorn's options -> gunicorn's settings
GUNICORNS_NAMES = {
    **RENAMED,
    **dict.fromkeys(ADDRESS, "bind"),
    "log_level": "loglevel",
    "access_log": "accesslog",
}
EXPLICIT = frozenset({ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT})


class Section(click.Option):
    """An option that --help shows under its own heading."""

    def __init__(
        self, flags: list[str], *, heading: str, allow_from_autoenv: bool = False, **attrs: Any
    ) -> None:
        super().__init__(flags, allow_from_autoenv=allow_from_autoenv, **attrs)
        self.heading = heading


class Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # not generic in older ones
    """Whole seconds, with or without a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return whole_seconds(value)
        except ValueError as exc:
            self.fail(f"{value!r} {exc}; give whole seconds, or 2s, 10m, 24h", param, ctx)


class Run(click.Command):
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = getattr(param, "heading", "Options, as in uvicorn (also UVICORN_*)")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


# -- the options


def _uvicorns() -> Iterator[click.Parameter]:
    for param in uvicorn_command.params:
        own = copy.copy(param)
        correct(own)
        if own.name == "version":
            own.callback = _print_versions
        if RENAMED.get(str(own.name)) in DURATIONS:
            own.type = Seconds()
        if own.name == "workers":
            own = _setting(TABLE["workers"], "-w", allow_from_autoenv=True)
        yield own


def _setting(row: Setting, *more: str, **attrs: Any) -> Section:
    text = f"{row.meaning} ({row.accepted})  [default: {row.default}]"
    heading = "Supervision (also MULTICORE_*, and in the config file)"
    flags = [row.flag, *more]
    if row.parse is boolean:
        flags = [f"{row.flag}/--no-{row.flag[2:]}"]
        attrs |= {"default": None}
        text = f"{row.meaning}  [default: {row.default}]"
    else:
        attrs |= {"type": str, "metavar": "VALUE"}
    return Section([*flags, row.name], help=text, heading=heading, **attrs)


def _gunicorns(taken: set[str]) -> Iterator[Section]:
    settings = make_settings()
    for name, text in FROM_GUNICORN.items():
        setting = settings[name]
        flags = [flag for flag in setting.cli if flag not in taken]
        attrs: dict[str, Any] = {"type": setting.type or str, "metavar": setting.meta or "VALUE"}
        if name in DURATIONS:
            attrs["type"] = Seconds()
        if setting.action == "store_true":
            attrs = {"is_flag": True, "default": None}
        yield Section([*flags, name], help=text, heading="As in gunicorn", **attrs)


def _params() -> list[click.Parameter]:
    uvicorns = list(_uvicorns())
    taken = {flag for param in uvicorns for flag in (*param.opts, *param.secondary_opts)}
    ours = [_setting(row) for row in TABLE.values() if row.flag not in taken]
    taken |= {flag for param in ours for flag in param.opts}
    return [*uvicorns, *ours, *_gunicorns(taken)]


def _print_versions(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in ("uvicorn", "gunicorn")]
        python = f"{platform.python_implementation()} {platform.python_version()}"
        click.echo(f"multicore-server {multicore_server.__version__} with {', '.join([*versions, python])}")
        ctx.exit()


# -- what it does


def _serve(**_: Any) -> None:
    make_application(click.get_current_context()).run()


def make_application(ctx: click.Context) -> Application:
    """What the options say, loaded. Raises click.UsageError; ends the process for a bad config file."""
    given = {name: value for name, value in ctx.params.items() if ctx.get_parameter_source(name) in EXPLICIT}
    _refuse_contradictions(given)
    uvicorns = {str(param.name) for param in uvicorn_command.params}
    # What the workers read from the environment by themselves is left to them.
    options = {name: given[name] for name in uvicorns & given.keys() if _is_for_here(ctx, name)}
    options = {name: value for name, value in options.items() if not _is_outranked(ctx, name)}
    try:
        translated = translate(options, _flag)
    except SettingError as exc:
        raise click.UsageError(str(exc)) from None
    gunicorns = {name: given[name] for name in FROM_GUNICORN if name in given}
    _prepare(ctx)
    if ctx.params["app"]:
        _check_app(ctx.params["app"], given)
    everything = translated.gunicorn | gunicorns | _ours(given)
    app = Application(ctx.params["app"], everything, defaults=DEFAULTS, uvicorn=translated.uvicorn)
    app.remarks = [f"{_flag(name)} has no effect: {why}" for name, why in IDLE.items() if name in options]
    return app


def _is_for_here(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE or name in GUNICORN_HAS


def _is_outranked(ctx: click.Context, name: str) -> bool:
    """Return whether a UVICORN_* variable sets what a MULTICORE_* variable sets in gunicorn's settings."""
    variable = PREFIX + GUNICORNS_NAMES.get(name, "").upper()
    return ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT and variable in os.environ


def _refuse_contradictions(given: dict[str, Any]) -> None:
    ctx = click.get_current_context()
    for uvicorns, gunicorns in RENAMED.items():
        both = uvicorns != gunicorns and gunicorns in given and uvicorns in given
        if both and ctx.get_parameter_source(uvicorns) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{_flag(uvicorns)} and {_flag(gunicorns)} are the same; give one of them")
    if given.get("reload") and given.get("workers", "1") != "1":
        raise click.UsageError(
            f"--reload runs one worker, and --workers says {given['workers']}; give one of them"
        )


def _ours(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the table that flags (or UVICORN_WORKERS) give."""
    found = {name: value for name, value in given.items() if name in TABLE}
    if given.get("reload"):
        found["workers"] = "1"
    elif "workers" in found and _weaker(click.get_current_context()):
        del found["workers"]
    return found


def _weaker(ctx: click.Context) -> bool:
    from_environment = ctx.get_parameter_source("workers") is ParameterSource.ENVIRONMENT
    return from_environment and TABLE["workers"].environment in os.environ


def _flag(name: str) -> str:
    """--headers is spelt --header."""
    params = {param.name: param for param in click.get_current_context().command.params}
    return max(params[name].opts, key=len) if name in params else name


def _check_app(app: str, given: dict[str, Any]) -> None:
    if "chdir" not in given and "pythonpath" not in given and (said := mistake_in(app)):
        raise click.UsageError(said)


def _prepare(ctx: click.Context) -> None:
    """Load the environment file and set the import path, as uvicorn does."""
    if ctx.params["env_file"] is not None:
        from dotenv import load_dotenv

        load_dotenv(dotenv_path=ctx.params["env_file"])
        forget_later_variables(ctx)
    here = str(Path.cwd())
    if here not in sys.path:  # gunicorn would put it before the --app-dir
        sys.path.insert(0, here)
    if ctx.params["app_dir"]:
        sys.path.insert(0, str(Path(ctx.params["app_dir"]).absolute()))


def forget_later_variables(ctx: click.Context) -> None:
    """Remove UVICORN_* variables that an --env-file set after the command line was read: they do not
    count."""
    for param in uvicorn_command.params:
        if param.name and ctx.get_parameter_source(param.name) not in EXPLICIT:
            os.environ.pop(f"UVICORN_{param.name.upper()}", None)


run = Run(
    "run",
    params=_params(),
    callback=_serve,
    context_settings={"auto_envvar_prefix": "UVICORN", "help_option_names": ["-h", "--help"]},
    short_help="Serve an app on every CPU, with uvicorn's options.",
    help="""Serve APP ("module:attribute") on every CPU.

    Takes every option of the installed uvicorn. No gunicorn.conf.py is read unless --config names it.""",
)
