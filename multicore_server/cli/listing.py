"""Prints the output of `ps`, `show` and `events`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

import click

from multicore_server.cli import table
from multicore_server.cli.all_users import understood, user_of
from multicore_server.cli.figures import Rates, Reading, answered, rates, take_reading
from multicore_server.cli.health import Health, Level, blocked, health
from multicore_server.cli.servers import RunningServer, Trouble
from multicore_server.cli.table import Cell, Column
from multicore_server.cli.text import (
    clock,
    duration,
    errors,
    event_text,
    left,
    memory,
    milliseconds,
    moment,
    percent,
    plain,
    rate,
)
from multicore_server.ipc.report import EventReport, MemoryStatus, Status, WorkerStatus
from multicore_server.settings.table import TABLE

Name = TypeVar("Name", bound=str)
_Shown: TypeAlias = tuple[str, list[list[Cell]]]

BETWEEN = 0.5  # seconds between the two readings
EVENTS = 10  # that `show` shows

COLORS = {"ready": "green", "starting": "cyan", "draining": "cyan", "backoff": "yellow", "errored": "red"}
HEALTH = {Level.OK: "green", Level.AMBER: "yellow", Level.RED: "red"}
LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}

WORKERS = (
    Column("id", right=True), Column("name", drop=5, most=24), Column("pid", drop=3, right=True),
    Column("uptime", drop=4, right=True), Column("restarts", drop=2, right=True), Column("status"),
    Column("cpu", drop=1, right=True), Column("mem", drop=1, right=True), Column("req/s", drop=6, right=True),
    Column("5xx/s", drop=5, right=True), Column("499/s", drop=9, right=True),
    Column("in progress", drop=7, right=True), Column("conns", drop=8, right=True),
)  # fmt: skip


# --- ps ---


def print_workers(servers: list[RunningServer]) -> list[Trouble]:
    """Print a table of the servers' workers. Return the servers that could not be shown, as Trouble."""
    before = _take_readings(servers)
    there = [server for server, it in before.items() if isinstance(it, Reading)]
    if there:
        time.sleep(BETWEEN)
    after = before | _take_readings(there)
    color = table.in_color()
    shown = {
        server: _shown_or_trouble(server, before[server], it, color=color) for server, it in after.items()
    }
    found = [it for it in shown.values() if not isinstance(it, Trouble)]
    title, *body = table.lines(
        WORKERS, [row for _, rows in found for row in rows], room=table.room(), color=color
    )
    for heading, rows in found:
        click.echo(heading)
        click.echo(title)
        for _ in rows:
            click.echo(body.pop(0))
    return [it for it in shown.values() if isinstance(it, Trouble)]


def _shown_or_trouble(
    server: RunningServer, before: Reading | Trouble, now: Reading | Trouble, *, color: bool
) -> _Shown | Trouble:
    """The heading of a server and the rows of its workers."""
    if isinstance(now, Trouble):
        return now
    earlier = before if isinstance(before, Reading) else None
    try:
        with understood(server):
            owner = [] if server.owner is None else [f"user {user_of(server)}"]
            return _heading(now, earlier, *owner, color=color), _rows(now, before)
    except Trouble as exc:
        return exc


def _take_readings(servers: list[RunningServer]) -> dict[RunningServer, Reading | Trouble]:
    """Take all readings at once: a server that hangs delays the others only by its own time limit."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(servers, pool.map(_reading_or_trouble, servers), strict=True))


def _reading_or_trouble(server: RunningServer) -> Reading | Trouble:
    try:
        with understood(server):
            return take_reading(server)
    except Trouble as exc:
        return exc


def _heading(now: Reading, before: Reading | None, *pieces: str, color: bool) -> str:
    status = now.status
    its = health(status, answered(before, now))
    pieces = (
        *pieces,
        status["name"],
        f"pid {status['arbiter']['pid']}",
        " ".join(status["addresses"]),
        f"{status['ready']} of {status['configured']} ready",
        f"up {duration(status['arbiter']['uptime'])}",
        *(["reloading"] if status["reloading"] else []),
        *its.reasons,
    )
    text = plain("  ".join(pieces))
    return click.style(text, fg=HEALTH[its.level] if its.level else "cyan", bold=True) if color else text


def _rows(now: Reading, before: Reading | Trouble) -> list[list[Cell]]:
    found = rates(before if isinstance(before, Reading) else None, now)
    status = now.status
    return [_row(status, worker, found.get(worker["instance"], Rates())) for worker in status["workers"]]


def state_of(worker: WorkerStatus, status: Status) -> Cell:
    """Return the state of a worker, or that it is blocked."""
    level = blocked(worker, status)
    if level:
        return Cell(f"blocked {duration(worker['blocked'])}", HEALTH[level])
    return Cell(plain(worker["state"]), COLORS.get(worker["state"]))


def _row(status: Status, worker: WorkerStatus, its: Rates) -> list[Cell]:
    texts = (
        worker["instance"], status["name"], worker["pid"] or "-", duration(worker["uptime"]),
        sum(worker["restarts"].values()), worker["state"], percent(its.cpu),
        memory(worker["memory"]["resident"]), rate(its.requests), errors(its.answered),
        left(its.answered), worker["in_hand"], worker["connections"],
    )  # fmt: skip
    cells = [Cell(plain(text)) for text in texts]
    cells[5] = state_of(worker, status)
    return cells


# --- show ---


def print_server(server: RunningServer) -> None:
    """Print one server in detail. Raises Trouble."""
    before = take_reading(server)
    time.sleep(BETWEEN)
    now = take_reading(server)
    color = table.in_color()
    its = health(now.status, answered(before, now))
    for title, lines in _sections(now, rates(before, now), its, color=color):
        click.echo(click.style(title, bold=True) if color else title)
        for line in lines:
            click.echo(f"  {line}")


def _sections(
    now: Reading, found: Mapping[int, Rates], its: Health, *, color: bool
) -> Iterator[tuple[str, list[str]]]:
    status = now.status
    about = _pairs({"health": f"{its.level.name.lower()}: {its}" if its.level else "ok", **_about(status)})
    if color:
        about[0] = click.style(about[0], fg=HEALTH[its.level])
    yield plain(status["name"]), about
    for worker in status["workers"]:
        state = state_of(worker, status)
        shown = click.style(state.text, fg=state.color) if color else state.text
        rated = found.get(worker["instance"], Rates())
        yield f"instance {worker['instance']}: {shown}", _pairs(_about_worker(worker, rated))
    yield "settings", _pairs(_in_force(status["settings"]))
    yield "last events", [event_line(event, color=color) for event in status["events"][-EVENTS:]]


def _about(status: Status) -> dict[str, str]:
    arbiter = status["arbiter"]
    return {
        "pid": f"{arbiter['pid']}, monitor {status['monitor']['pid']}",
        "up": f"{duration(arbiter['uptime'])}, since {moment(arbiter['started'])}",
        "host": status["host"],
        "addresses": " ".join(status["addresses"]),
        "workers": f"{status['ready']} of {status['configured']} ready, room for {status['capacity']}",
        "state": "stopping" if status["stopping"] else "reloading" if status["reloading"] else "serving",
        "restarts": _counts(status["restarts"]),
        "reloads": _counts(status["reloads"]),
        "versions": f"multicore_server {status['version']}, gunicorn {arbiter['gunicorn']}, "
        f"uvicorn {arbiter['uvicorn']}, Python {arbiter['python']}",
    }


def _about_worker(worker: WorkerStatus, its: Rates) -> dict[str, str]:
    requests = worker["requests"]
    about = {
        "pid": f"{worker['pid'] or '-'}, generation {worker['generation'] or '-'}",
        "up": f"{duration(worker['uptime'])}, {worker['state']} since {moment(worker['since'])}",
        "restarts": f"{_counts(worker['restarts'])}; {worker['unstable']} unstable",
        "cpu": f"{percent(its.cpu)}, {worker['cpu_seconds']:.1f} s in all",
        "memory": _memory(worker["memory"]),
        "requests": f"{rate(its.requests)}/s, {worker['in_hand']} in progress, {requests['total']} in all",
        "errors": f"5xx/s {errors(its.answered)}, 499/s {left(its.answered)}; {_errors_in_all(worker)}",
        "queue": f"p95 {milliseconds(its.queue)}",
        "connections": f"{worker['connections']}, {worker['websockets']} WebSockets, "
        f"{worker['connections_accepted']} accepted in all",
        "loop lag": milliseconds(worker["loop_lag"]),
    }
    if worker["wanted"]:
        about["wanted"] = f"about to be replaced ({worker['wanted']})"
    if worker["next_restart"]:
        about["next start"] = moment(worker["next_restart"])
    return about


def _errors_in_all(worker: WorkerStatus) -> str:
    codes = worker["requests"].get("codes", {})  # servers of older versions do not say it
    return f"{codes.get('5xx', 0)} and {codes.get('499', 0)} in all"


def _memory(amounts: MemoryStatus) -> str:
    unique = f", {memory(amounts['unique'])} of its own" if amounts["unique"] else ""
    return f"{memory(amounts['resident'])}{unique}, limit {memory(amounts['limit'])}"


def _in_force(settings: Mapping[str, str]) -> dict[str, str]:
    sizes = {name for name, row in TABLE.items() if row.accepted.startswith("bytes")}
    return {
        name: memory(int(value)) if name in sizes and value.isdecimal() else value
        for name, value in settings.items()
    }


def _counts(counts: Mapping[Name, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "none"


def _pairs(pairs: Mapping[str, str]) -> list[str]:
    width = max(map(len, pairs), default=0)
    return [f"{plain(name):{width}}  {plain(text)}" for name, text in pairs.items()]


# --- events ---


def event_line(event: EventReport, *, color: bool | None = None) -> str:
    """Return an event as a line without control characters. ``color`` None: as stdout supports it."""
    color = table.in_color() if color is None else color
    text = f"{plain(event['level']):8} {event_text(event)}"
    shown = LEVELS.get(event["level"])
    return f"{clock(event['at'])}  {click.style(text, fg=shown) if color and shown else text}"
