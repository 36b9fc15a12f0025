"""What a command of the docs says is there: its options, its variables, the names that it gives."""

from __future__ import annotations

import argparse
import configparser
import importlib.util
import re
import signal
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import click
from gunicorn.config import Config
from uvicorn.main import main as uvicorn_command

from multicore_server.cli.main import main
from multicore_server.settings.gunicorn import variables as gunicorns_variables
from multicore_server.settings.table import TABLE
from tests.support.pages import ROOT, commands

OURS = {row.environment: row for row in TABLE.values()}
# Set for an app, not by a user.
TOLD = {"MULTICORE_INSTANCE"}
# Programs whose own documentation says what they take. They ask a server that runs, or change the machine.
FOREIGN = frozenset({
    "apt-get", "cd", "curl", "docker", "eval", "exit", "git", "journalctl", "kubectl", "loginctl", "mkdir",
    "pm2", "prometheus", "pytest", "sleep", "source", "ssh", "systemctl", "systemd-analyze", "useradd",
    "wait", "wrk",
})  # fmt: skip


def check_script(text: str) -> None:
    """Raises AssertionError, or ValueError where it is no shell."""
    for variables, words in commands(text):
        for name, value in variables.items():
            check_variable(name, value)
        if words:
            check_command(words)


def check_variable(name: str, value: str | None = None) -> None:
    """A variable of ours or of uvicorn's has to be one; ``value`` is read as the server reads it."""
    if name.startswith("MULTICORE_"):
        assert name in OURS or name in gunicorns_variables() or name in TOLD, f"there is no variable {name}"
        if value is not None and name in OURS and "$" not in value:
            OURS[name].parse(value)
    elif name.startswith("UVICORN_"):
        names = {param.name for param in uvicorn_command.params}
        assert name.removeprefix("UVICORN_").lower() in names, f"there is no variable {name}"


def check_command(words: list[str]) -> None:
    program, *arguments = words
    name = PurePath(program).name
    if name not in FOREIGN:
        assert name in PROGRAMS, f"how is the command {name!r} checked?"
        PROGRAMS[name](arguments)


# --- programs


def _ours(arguments: list[str]) -> None:
    if arguments:  # without any, the shell's completion is asked for
        _parse(main, arguments)


def _parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """As click reads it, without calling it."""
    try:
        context = command.make_context(str(command.name), list(arguments), parent)
    except click.exceptions.Exit:  # --help, --version
        return
    except click.UsageError as exc:
        if isinstance(exc, click.BadParameter) and "does not exist" in exc.message:
            return  # a file of the reader's
        raise AssertionError(f"{arguments}: {exc.message}") from None
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        verb = command.get_command(context, rest[0])
        assert verb is not None, f"there is no command {rest[0]}"
        _parse(verb, rest[1:], context)


def _uvicorn(arguments: list[str]) -> None:
    _parse(uvicorn_command, arguments)
    if "--loop" in arguments:
        _check_ours(arguments[arguments.index("--loop") + 1], {"multicore_server:prefork"})


def _gunicorn(arguments: list[str]) -> None:
    parsed = _strictly(Config().parser()).parse_args(arguments)
    _check_ours(parsed.worker_class or "", {"multicore_server.Worker"})
    if (app := parsed.args[0] if parsed.args else "").startswith("examples."):
        assert (ROOT / app.partition(":")[0].replace(".", "/")).with_suffix(".py").exists()


def _check_ours(name: str, known: set[str]) -> None:
    assert not name.startswith("multicore_server") or name in known, name


def _strictly(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    def refuse(message: str) -> Any:
        raise AssertionError(message)

    parser.error = refuse  # type: ignore[method-assign]
    parser.allow_abbrev = False
    return parser


def _python(arguments: list[str]) -> None:
    while arguments and arguments[0] in ("-X", "-W"):
        arguments = arguments[2:]
    if arguments[:1] == ["-m"]:
        module, *rest = arguments[1:]
        if module in MODULES:
            MODULES[module](rest)
        else:
            assert module.startswith("tests."), f"how is the module {module!r} checked?"
            assert importlib.util.find_spec(module), f"there is no module {module}"


def _pip(arguments: list[str]) -> None:
    assert arguments[0] in ("install", "uninstall"), arguments
    for name in arguments[1:]:
        if found := re.fullmatch(r"(?:multicore.server|\S*[./])\[(\w+)\]", name):
            assert re.search(rf"^{found[1]} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), name


def _tox(arguments: list[str]) -> None:
    for option, name in pairwise(arguments):
        if option == "-e":
            assert f"testenv:{name}" in _toxs(), f"tox has no {name}"
    for name in re.findall(r"tests[.]\S+", " ".join(arguments)):
        assert importlib.util.find_spec(name), f"there is no module {name}"


@cache
def _toxs() -> frozenset[str]:
    tox = configparser.RawConfigParser()
    tox.read(ROOT / "tox.ini")
    return frozenset(tox.sections())


def _kill(arguments: list[str]) -> None:
    for argument in arguments:
        if argument.startswith("-") and argument != "--":
            assert hasattr(signal, f"SIG{argument[1:]}"), f"there is no signal {argument}"


def _sudo(arguments: list[str]) -> None:
    while arguments and arguments[0] in ("-u", "-g"):
        arguments = arguments[2:]
    check_script(" ".join(arguments))


def _cp(arguments: list[str]) -> None:
    """What is copied is of the repository."""
    for name in arguments[:-1]:
        assert (ROOT / name).is_file(), f"there is no file {name}"


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "multicore-server": _ours,
    "mcs": _ours,
    "gunicorn": _gunicorn,
    "uvicorn": _uvicorn,
    "python": _python,
    "python3": _python,
    "pip": _pip,
    "tox": _tox,
    "kill": _kill,
    "sudo": _sudo,
    "cp": _cp,
}
MODULES: dict[str, Callable[[list[str]], None]] = {
    "multicore_server": _ours,
    "gunicorn": _gunicorn,
    "uvicorn": _uvicorn,
    "pip": _pip,
    "tox": _tox,
    "venv": lambda _: None,
    "build": lambda _: None,
    "twine": lambda _: None,
}
