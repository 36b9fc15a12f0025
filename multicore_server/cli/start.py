"""``multicore-server start``: starts each app as its own server, in the background."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, NamedTuple

import click

from multicore_server.cli import ecosystem, log_places
from multicore_server.cli.app_name import mistake_in
from multicore_server.cli.ecosystem import App, Log
from multicore_server.cli.elsewhere import option_of_pm2
from multicore_server.cli.log_lines import warning_in
from multicore_server.cli.log_reader import LogReader
from multicore_server.cli.servers import LeftError, RunningServer, Trouble, ask_all, running
from multicore_server.cli.text import plain
from multicore_server.ipc.identity import server_name
from multicore_server.ipc.report import Status

PM2S = (".js", ".cjs", ".mjs", ".json", ".yml", ".yaml")  # ecosystem files of PM2
NONE = f"there is no {ecosystem.FILE} here, and no [tool.{ecosystem.SECTION}] in {ecosystem.PROJECT}"
NO_BOOT = 3  # the exit status: the log has the traceback
_HEAD = re.compile(r"(Error|Reason): ")


class Result(NamedTuple):
    """``warnings`` are those of the server's log while it started: they concern the user who waits here."""

    ok: bool
    text: str
    warnings: tuple[str, ...] = ()


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument(
    "arguments", nargs=-1, type=click.UNPROCESSED, metavar="[FILE] [NAME]... | APP [OPTION OF run]..."
)
def start(arguments: tuple[str, ...]) -> None:
    """Start the servers of an ecosystem file, or of an app, in the background.

    FILE is multicore.toml, or pyproject.toml with [tool.multicore_server]; NAMEs are tables in it. Returns
    when each server is ready; if one is not, it says why, and the exit status is 1.
    """
    apps = apps_of(arguments)
    there = by_name(ask_all(running()))
    try:
        with ThreadPoolExecutor(len(apps)) as pool:
            begun = {pool.submit(_start, app, there.get(server_name(app.name))): app for app in apps}
            results = [_print(begun[done], done.result()) for done in as_completed(begun)]
    except KeyboardInterrupt:
        raise LeftError("no longer waiting; `ps` shows what has been started") from None
    if not all(results):
        sys.exit(1)


def _print(app: App, result: Result) -> bool:
    click.echo(plain(f"{app.name}: {result.text}"), err=not result.ok)
    for warning in result.warnings:
        click.echo(plain(f"{app.name}: warning: {warning}"), err=True)
    return result.ok


# --- which apps


def apps_of(arguments: Sequence[str]) -> list[App]:
    """What ``[FILE] [NAME]... | APP [OPTION]...`` means. Raises Trouble, and UsageError for bad options."""
    first, *rest = arguments or ("",)
    if ":" in first and not Path(first).exists():
        return [_from_command_line(first, rest)]
    path, names = _file_and_names(arguments)
    if options := [name for name in names if name.startswith("-")]:
        if line := option_of_pm2(options[0], "run"):
            raise Trouble(line)
        raise Trouble(f"{options[0]}: the options of the apps in {path} stand in it")
    return ecosystem.chosen(ecosystem.read(path), names, path)


def _from_command_line(app: str, options: list[str]) -> App:
    from multicore_server.cli.run import run

    context = click.get_current_context(silent=True)
    params = run.make_context("start", [app, *options], context and context.parent).params
    name = params["proc_name"] or app
    log = None if params["errorlog"] else Log(log_places.default_path(server_name(name)))
    return App(name, app, Path.cwd(), options=tuple(options), log=log, named=True)


def _file_and_names(arguments: Sequence[str]) -> tuple[Path, Sequence[str]]:
    first = arguments[0] if arguments else ""
    if first.endswith(".toml"):
        return Path(first), arguments[1:]
    if first.endswith(PM2S):
        raise Trouble(f"{first} is PM2's; write {ecosystem.FILE}: docs/ecosystem.md has what stands where")
    if path := ecosystem.find(Path.cwd()):
        return path, arguments
    if first:
        raise Trouble(mistake_in(first) or _unknown(first))
    raise Trouble(f"{NONE}; write one, or give an app: start main:app")


def _unknown(name: str) -> str:
    if name in log_places.names():  # it has run
        again = f"give the app again: start main:app --name {name}"
        return f"{name!r} is not running, and a stopped server is forgotten: {NONE}; {again}"
    return f"{name!r} is no app such as main:app, and {NONE}"


# --- what runs already


def by_name(answers: dict[RunningServer, Status | Trouble]) -> dict[str, Status]:
    return {it["name"]: it for it in answers.values() if not isinstance(it, Trouble)}


def _about(status: Status) -> str:
    where, number = " ".join(status["addresses"]), status["configured"]
    return f"pid {status['arbiter']['pid']}, {where}, {number} worker{'s' if number != 1 else ''}"


# --- one app


def _start(app: App, there: Status | None) -> Result:
    if there is not None:
        pid = there["arbiter"]["pid"]
        if there["stopping"]:
            return Result(False, f"is stopping (pid {pid}); start it when it has ended")
        return Result(True, f"runs already (pid {pid}); `reload {app.name}` loads new code")
    try:
        if app.log is not None:
            log_places.make_directory(app.log.file)
            log_places.remember(app.name, app.log.file)
        with tempfile.TemporaryFile() as said, _reading(app.log) as logged:
            status = _launch(app, said)
            said.seek(0)
            text = said.read().decode(errors="replace")
            if status == 0:
                return _ready(app)._replace(warnings=_warnings(logged))
    except OSError as exc:
        return Result(False, f"not started: {exc.filename}: {exc.strerror}")
    more = f"; `logs {app.name}` shows more" if app.log and status == NO_BOOT else ""
    return Result(False, f"not started: {_reason(text)}{more}")


@contextlib.contextmanager
def _reading(log: Log | None) -> Iterator[Iterable[bytes]]:
    """The lines that a log gets meanwhile."""
    if log is None:
        yield ()
        return
    with contextlib.closing(LogReader(log.file)) as reader:
        yield reader.new()


def _warnings(lines: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(filter(None, (warning_in(line.decode(errors="replace")) for line in lines)))


def _launch(app: App, said: IO[bytes]) -> int:
    """Into a file, not a pipe: what the app starts may hold that open for longer. The exit status."""
    # PWD: where that is a link, to the newest release, say, a reload follows it.
    return subprocess.run(  # noqa: S603 - the user's own interpreter and app
        [*app.command(), "--daemon"], cwd=app.cwd, env={**os.environ, "PWD": str(app.cwd), **app.env},
        stdin=subprocess.DEVNULL, stdout=said, stderr=said, check=False,
    ).returncode  # fmt: skip


def _ready(app: App) -> Result:
    status = by_name(ask_all(running())).get(server_name(app.name))
    log = f", log {app.log.file}" if app.log else ""
    return Result(True, f"ready, {_about(status)}{log}" if status else f"ready{log}")


def _reason(text: str) -> str:
    """The last line says it."""
    lines: Iterable[str] = filter(None, map(str.strip, text.splitlines()))
    *_, last = ("it has said nothing", *lines)
    return _HEAD.sub("", last, count=1)
