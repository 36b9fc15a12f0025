"""``uvicorn app:app --loop multicore_server:prefork``: uvicorn's command line with our server.

uvicorn asks for its loop after it has read its options and before it binds anything. At this moment,
``multicore-server run`` replaces the process.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from multicore_server.hosts import PREFORK

INSTEAD = (
    "--loop multicore_server:prefork works on uvicorn's own command line, in its one process (not with "
    "--workers, WEB_CONCURRENCY or --reload); run instead: multicore-server run APP, with the same options"
)
STARTUP_FAILURE = 3
PASSWORD = "ssl_keyfile_password"  # noqa: S105 - the option's name


def prefork() -> NoReturn:
    """A loop factory that makes no loop: the process becomes ``multicore-server run``, with the same pid.

    Raises RuntimeError if the caller is not uvicorn's command. In one of its child processes, it ends
    uvicorn.
    """
    if _in_child_of_uvicorn():
        _end_uvicorn()
    ctx = click.get_current_context(silent=True)
    if ctx is None or not _is_uvicorns(ctx) or threading.current_thread() is not threading.main_thread():
        raise RuntimeError(INSTEAD)
    become(ctx)


def become(ctx: click.Context) -> NoReturn:
    arguments = command(ctx)
    _hand_over_environment(ctx)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 - our own command, by this interpreter


def _is_uvicorns(ctx: click.Context) -> bool:
    from uvicorn.main import main

    return ctx.command is main


# -- uvicorn's children


def _in_child_of_uvicorn() -> bool:
    """Detect only uvicorn's own children: a program's multiprocessing children may call uvicorn as well."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if (frame.f_code.co_name, frame.f_globals.get("__name__")) == (
            "subprocess_started",
            "uvicorn._subprocess",
        ):
            return True
    return False


def _end_uvicorn() -> NoReturn:
    """End uvicorn. Its reloader, and the supervisor of older versions, would continue without children, or
    would start new ones again and again."""
    import multiprocessing
    import signal

    logging.getLogger("uvicorn.error").error(INSTEAD)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid == os.getppid():
        os.kill(parent.pid, signal.SIGTERM)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.exit(STARTUP_FAILURE)


# -- the command that takes over


def command(ctx: click.Context) -> list[str]:
    """Return what to execute: this interpreter with its flags, and the options as click has resolved them."""
    options = [word for param in ctx.command.params for word in _words(param, ctx)]
    return [sys.executable, *interpreter_flags(sys.orig_argv), "-m", "multicore_server", "run", *options]


def _words(param: click.Parameter, ctx: click.Context) -> Iterator[str]:
    value: Any = ctx.params.get(str(param.name))
    if isinstance(param, click.Argument):
        yield str(value)
    elif isinstance(param, click.Option) and _is_said(param, value, ctx):
        for each in value if param.multiple else [value]:
            yield from option_words(param, each)


def _is_said(param: click.Option, value: object, ctx: click.Context) -> bool:
    """Return whether an option must be repeated: it was given, and the environment does not give it again."""
    if param.name in _dropped(ctx) or param.name == PASSWORD:  # anyone may read a command line
        return False
    source = ctx.get_parameter_source(str(param.name))
    if source is ParameterSource.ENVIRONMENT:
        return bool(_from_environment(param, ctx) != value)
    return source is ParameterSource.COMMANDLINE


def _from_environment(param: click.Option, ctx: click.Context) -> Any:
    try:
        return param.process_value(ctx, param.value_from_envvar(ctx))
    except click.ClickException:  # changed since
        return None


def option_words(param: click.Option, value: Any) -> list[str]:
    """An option with this value, on a command line."""
    flag = max(param.opts, key=len)
    if param.is_flag:
        return [flag] if value else list(param.secondary_opts[:1])
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def _dropped(ctx: click.Context) -> set[str]:
    """Return what must not take effect again: this factory, and the environment file, which has been read."""
    return {"env_file"} | ({"loop"} if ctx.params.get("loop") in PREFORK else set())


def _hand_over_environment(ctx: click.Context) -> None:
    """Keep only those of uvicorn's variables that click has seen."""
    if ctx.params.get(PASSWORD) is not None:
        os.environ[f"UVICORN_{PASSWORD.upper()}"] = ctx.params[PASSWORD]
    for param in ctx.command.params:
        name = str(param.name)
        later = ctx.get_parameter_source(name) in (ParameterSource.DEFAULT, None)
        if name in _dropped(ctx) or later:
            os.environ.pop(f"UVICORN_{name.upper()}", None)


def interpreter_flags(argv: list[str]) -> list[str]:
    """Return the flags between the interpreter and its script or ``-m`` in ``sys.orig_argv``."""
    flags: list[str] = []
    words = iter(argv[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "--"):
            break
        if word.startswith("--"):
            flags.append(word)
            if word == "--check-hash-based-pycs":
                flags.append(next(words))
            continue
        kept, ends, wants = _short_flags(word)
        flags += [f"-{kept}"] if kept else []
        if ends:
            break
        if wants:
            flags.append(next(words))
    return flags


def _short_flags(word: str) -> tuple[str, bool, bool]:
    """Return the flags of a word such as ``-Bm``; whether ``-c`` or ``-m`` ends them; whether a value
    follows."""
    for place, letter in enumerate(word[1:], 1):
        if letter in "cm":
            return word[1:place], True, False
        if letter in "WX":
            return word[1:], False, place == len(word) - 1
    return word[1:], False, False
