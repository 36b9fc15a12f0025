"""``multicore-server logs``: shows what servers have written, and what they write now."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import click

from multicore_server.cli import ecosystem, log_places, table
from multicore_server.cli.arguments import check_possible, complete, number_of, server_and_instances
from multicore_server.cli.log_lines import Speakers, shown
from multicore_server.cli.log_reader import LogReader
from multicore_server.cli.servers import Trouble, UnknownServerError, ask_all, choose, running
from multicore_server.ipc.report import Status
from multicore_server.machine.process import unit_of

LAST = 15  # lines that are shown where nobody says how many
BEFORE = 200  # lines that are read besides: they tell whose the next ones are
POLL = 0.2  # seconds


class Source(NamedTuple):
    """A file of a server, and its status while it runs."""

    label: str
    path: Path
    status: Status | None


@click.command()
@click.argument("arguments", nargs=-1, metavar="[SERVER] [INSTANCE]...", shell_complete=complete)
@click.option("-s", "--server", help="The server's name, port or pid; then every argument is an instance.")
@click.option("-f", "--follow", is_flag=True, help="Also print each new line, until Ctrl-C.")
@click.option("-n", "--lines", metavar="N", help=f"Number of past lines: {LAST}.")
def logs(arguments: tuple[str, ...], server: str | None, follow: bool, lines: str | None) -> None:
    """Print what a server has written: its logs, and what its workers print.

    Without SERVER, it shows all running servers. An exited server is found by its name. With INSTANCEs, it
    shows only the lines that name these workers, by instance or pid. Lines that an app prints name none.
    """
    server, instances = server_and_instances("logs", arguments, server)
    number = number_of("--lines", lines, LAST)
    sources = _sources(server)
    check_possible("logs", instances, [it.status for it in sources if it.status])
    try:
        with contextlib.ExitStack() as stack:
            outputs = [_Output(source, instances, alone=len(sources) == 1) for source in sources]
            for output in outputs:
                stack.callback(output.close)
                output.show_last(number)
                output.show_new(unfinished=not follow)
            while follow:
                time.sleep(POLL)
                for output in outputs:
                    output.show_new()
    except KeyboardInterrupt:
        pass
    except OSError as exc:
        if exc.filename is None:  # the reader has left
            raise
        raise Trouble(f"{exc.filename} cannot be read: {exc.strerror}") from None


# --- which files


def _sources(wanted: str | None) -> list[Source]:
    """Raises Trouble."""
    if wanted is None:
        return _of_all()
    try:
        status = choose(wanted).status()
    except UnknownServerError as unknown:
        return [_of_ended(wanted, unknown)]
    return _of_running(status) or _refuse(status)


def _of_all() -> list[Source]:
    answers = ask_all(running()).values()
    statuses = [it for it in answers if not isinstance(it, Trouble)]
    if not statuses:
        have = ", ".join(log_places.names())
        which = f"name one of these logs: {have}" if have else "there is no log of one that has exited"
        raise Trouble(f"no server of this user is running; {which}")
    found = [source for status in statuses for source in _of_running(status)]
    return found or _refuse(statuses[0])


def _of_running(status: Status) -> list[Source]:
    name, paths = status["name"], [Path(path) for path in status["logs"]]
    return [Source(f"{name} {path.name}" if len(paths) > 1 else name, path, status) for path in paths]


def _refuse(status: Status) -> NoReturn:
    pid = status["arbiter"]["pid"]
    unit = unit_of(pid)
    where = f"systemd's journal has its output: journalctl {unit}" if unit else "see where it was started"
    raise Trouble(f"{status['name']} (pid {pid}) writes to no file; {where}")


def _of_ended(name: str, unknown: Trouble) -> Source:
    path = log_places.default_path(name)
    if (file := ecosystem.find(Path.cwd())) is not None:
        app = ecosystem.read(file).get(name)
        path = app.log.file if app and app.log else path
    if not path.exists():
        raise Trouble(f"{unknown.message}; and there is no log {path}")
    return Source(name, path.resolve(), None)


# --- their lines


class _Output:
    def __init__(self, source: Source, instances: list[int] | None, *, alone: bool) -> None:
        self._source = source
        self._instances = instances
        self._head = "" if alone else f"{source.label} | "
        self._reader = LogReader(source.path)
        self._speakers = Speakers(source.status)
        self._color = table.in_color()
        self._terminal = sys.stdout.isatty()

    def close(self) -> None:
        self._reader.close()

    def show_last(self, number: int) -> None:
        for line, instance in self._last(number):
            self._show(line, instance)

    def show_new(self, *, unfinished: bool = False) -> None:
        for line, instance in self._told(self._reader.new(unfinished=unfinished)):
            self._show(line, instance)
        sys.stdout.flush()

    def _last(self, number: int) -> list[tuple[bytes, int | None]]:
        """Read so many more lines that there are enough of the instances' own."""
        wanted = number + BEFORE
        while True:
            lines = self._reader.last(wanted)
            self._speakers = Speakers(self._source.status)
            found = list(self._told(lines))
            if len(found) >= number or len(lines) < wanted:
                return found[len(found) - min(number, len(found)) :]
            wanted *= 4

    def _told(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, int | None]]:
        """With the instance that each is of."""
        for line in lines:
            instance = self._speakers.of(line.decode(errors="replace"))
            if self._instances is None or instance in self._instances:
                yield line, instance

    def _show(self, line: bytes, instance: int | None) -> None:
        if self._terminal:
            text = line.decode(errors="replace").rstrip("\r\n")
            click.echo(self._head + shown(text, instance if self._color else None))
        else:
            sys.stdout.buffer.write(self._head.encode() + line)
            if self._head and not line.endswith(b"\n"):
                sys.stdout.buffer.write(b"\n")
