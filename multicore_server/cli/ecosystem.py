"""Reads the ecosystem file: it has a table for each app, with the name of its server.

Reading it starts nothing and imports no app. One line reports each mistake, with the file and the table.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from shutil import which
from typing import Any

import click

from multicore_server.cli import log_places
from multicore_server.cli.prefork import option_words
from multicore_server.cli.servers import Trouble

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE, PROJECT = "multicore.toml", "pyproject.toml"
SECTION = "multicore_server"  # of [tool] in pyproject.toml

OURS = ("app", "cwd", "python", "env", "log")  # keys that are no option of `run`
LOG = {"size": "10M", "keep": "5"}  # and `file`: what a log is, unless its table says it
# Options of `run` that `start` gives, or that start nothing.
NOT_HERE = {
    "daemon": "`start` runs every server in the background",
    "proc_name": "the name of the table is the server's",
    "check_config": "`start` starts",
    "version": "`start` starts",
    "chdir": "give cwd",
}
PM2S = {
    "error_file": "log", "instances": "workers", "interpreter": "python", "kill_timeout": "graceful_timeout",
    "out_file": "log", "pid_file": "pidfile", "script": "app", "watch": "reload",
}  # fmt: skip
_NAME = re.compile(r"(?=.*[^\d])[A-Za-z0-9_][A-Za-z0-9_.:@+-]*")


@dataclass(frozen=True)
class Log:
    file: Path
    size: str = LOG["size"]
    keep: str = LOG["keep"]

    def options(self) -> list[str]:
        """For `run`: everything that the processes say goes there."""
        rotation = ["--log-max-size", self.size, "--log-keep", self.keep]
        return ["--error-logfile", str(self.file), "--capture-output", *rotation]


@dataclass(frozen=True)
class App:
    """A server to be started: ``options`` are those of `run`. ``log`` is where its output goes, None: as the
    options say; ``log_given``: its table says so. ``named``: its options have the name."""

    name: str
    app: str
    cwd: Path
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    log: Log | None = None
    log_given: bool = False
    named: bool = False

    def command(self, *, logs: bool = True) -> list[str]:
        """Its `run`, in the foreground."""
        name = ["--name", self.name] if self.name != self.app and not self.named else []
        log = self.log.options() if self.log and logs else []
        return [self.python, "-m", "multicore_server", "run", self.app, *name, *self.options, *log]


class Mistake(Trouble):
    """In a table."""


# --- the file


def find(directory: Path) -> Path | None:
    """The ecosystem file of a directory."""
    if (path := directory / FILE).is_file():
        return path
    path = directory / PROJECT
    return path if path.is_file() and SECTION in _loaded(path).get("tool", {}) else None


def read(path: Path) -> dict[str, App]:
    """The apps, by name. Raises Trouble."""
    from multicore_server.cli.run import run  # takes its time: uvicorn and gunicorn

    options = _options(run.params)
    return {name: _app(path, name, table, options) for name, table in _tables(path).items()}


def names(path: Path) -> list[str]:
    """Of the apps. Raises Trouble."""
    return list(_tables(path))


def _tables(path: Path) -> dict[str, Any]:
    document = _loaded(path)
    if path.name == PROJECT:
        document = document.get("tool", {}).get(SECTION, {})
    if not document:
        raise Trouble(f'{path} has no app; give a table for each: [shop], and app = "shop.main:app"')
    return document


def _loaded(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = tomllib.loads(path.read_bytes().decode())
    except OSError as exc:
        raise Trouble(f"{path} cannot be read: {exc.strerror}") from None
    except ValueError as exc:  # of TOML, of UTF-8
        raise Trouble(f"{path} is not TOML: {exc}") from None
    return document


def chosen(apps: Mapping[str, App], names: Iterable[str], path: Path) -> list[App]:
    """Those with these names; all of them where there is none. Raises Trouble."""
    for name in names:
        if name not in apps:
            raise Trouble(f"{path} has no app {name!r}; there are {', '.join(apps)}")
    return [apps[name] for name in dict.fromkeys(names)] or list(apps.values())


# --- a table


def _app(path: Path, name: str, table: Any, options: Mapping[str, click.Option]) -> App:
    try:
        return _made(path.parent.absolute(), name, table, options)
    except Mistake as exc:
        raise Trouble(f"{path}: [{name}] {exc.message}") from None


def _made(directory: Path, name: str, table: Any, options: Mapping[str, click.Option]) -> App:
    if not isinstance(table, dict):
        raise Mistake("is no table; each app is one: [shop]")
    if not _NAME.fullmatch(name) or name == "all":
        raise Mistake("cannot be a name: give letters, digits and _.:@+-, and not digits alone, nor all")
    given = {key.replace("-", "_"): value for key, value in table.items()}
    ours = {key: given.pop(key) for key in OURS if key in given}
    found = {key: _option(key, options) for key in given}
    if "app" not in ours:
        raise Mistake('has no app; give app = "module:attribute"')
    cwd = _path(directory, "cwd", ours.get("cwd", "."))
    if not cwd.is_dir():
        raise Mistake(f"cwd: {cwd} is no directory")
    words = [word for key, value in given.items() for word in _words(key, found[key], value)]
    has_log = "errorlog" in {option.name for option in found.values()}
    return App(
        name,
        _text("app", ours["app"]),
        cwd,
        _python(cwd, ours.get("python", sys.executable)),
        _env(ours.get("env", {})),
        tuple(words),
        _log(cwd, ours.get("log", not has_log), log_places.default_path(name)),
        log_given="log" in ours,
    )


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise Mistake(f"{key}: {value!r} is not a text")
    return value


def _path(directory: Path, key: str, value: Any) -> Path:
    return directory / os.path.expanduser(_text(key, value))  # noqa: PTH111 - that raises for ~nobody


def _python(cwd: Path, value: Any) -> str:
    """An interpreter, the directory of a virtual environment, or a command on PATH."""
    path = _path(cwd, "python", value)
    if path.is_dir():
        path /= "bin/python"
    elif "/" not in value and (found := which(value)):
        path = Path(found)
    if not os.access(path, os.X_OK):
        raise Mistake(f"python: {path} is no interpreter")
    return str(path)  # not resolved: the link is what makes it one of a virtual environment


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Mistake('env: give a table, such as env = { DEBUG = "1" }')
    for name in value:
        if not name or "=" in name or "\0" in name:
            raise Mistake(f"env: {name!r} cannot be the name of a variable")
    return {name: _scalar(f"env: {name}", each) for name, each in value.items()}


def _log(cwd: Path, value: Any, default: Path) -> Log | None:
    if isinstance(value, bool):
        return Log(default) if value else None
    if isinstance(value, str):
        return Log(_path(cwd, "log", value))
    if not isinstance(value, dict):
        raise Mistake("log: give a file, or a table with file, size and keep")
    if strange := sorted(value.keys() - {"file", *LOG}):
        raise Mistake(f"log: {strange[0]!r} is unknown; there are file, {', '.join(LOG)}")
    file = _path(cwd, "log: file", value["file"]) if "file" in value else default
    return Log(file, *(_scalar(f"log: {key}", value.get(key, usual)) for key, usual in LOG.items()))


# --- options of `run`


def _options(params: Iterable[click.Parameter]) -> dict[str, click.Option]:
    """By all of their names: gunicorn's or uvicorn's own, and those of the flags."""
    options = [param for param in params if isinstance(param, click.Option)]
    flags = {flag[2:].replace("-", "_"): it for it in options for flag in it.opts if flag.startswith("--")}
    return flags | {str(it.name): it for it in options}


def _option(key: str, options: Mapping[str, click.Option]) -> click.Option:
    option = options.get(key)
    if option is None:
        near = [PM2S[key]] if key in PM2S else get_close_matches(key, (*options, *OURS), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise Mistake(f"{key!r} is no option of `run`, nor one of {', '.join(OURS)}{hint}")
    if why := NOT_HERE.get(str(option.name)):
        raise Mistake(f"{key!r} cannot be given here: {why}")
    return option


def _words(key: str, option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        if not isinstance(value, bool):
            raise Mistake(f"{key}: {value!r} is neither true nor false")
        return option_words(option, value)
    several = value if isinstance(value, list) and option.multiple else [value]
    return [word for each in several for word in option_words(option, _scalar(key, each))]


def _scalar(key: str, value: Any) -> str:
    """As it is on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)) and "\0" not in str(value):
        return str(value)
    raise Mistake(f"{key}: {value!r} is not a text or a number")
