"""What `ps`, `show` and `events` print."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import click

from multicore_server.cli import table
from multicore_server.cli.figures import Rates, Reading, rates, take_reading
from multicore_server.cli.servers import RunningServer, Trouble
from multicore_server.cli.table import Cell, Column
from multicore_server.cli.text import (
    clock,
    duration,
    event_text,
    memory,
    milliseconds,
    moment,
    percent,
    plain,
    rate,
)
from multicore_server.ipc.report import EventReport, MemoryStatus, Status, WorkerStatus

Name = TypeVar("Name", bound=str)

BETWEEN = 0.5  # seconds between the two readings
EVENTS = 10  # that `show` shows

COLORS = {"ready": "green", "starting": "cyan", "draining": "cyan", "backoff": "yellow", "errored": "red"}
LEVELS = {"warning": "yellow", "error": "red", "critical": "red"}

WORKERS = (
    Column("id", right=True), Column("name", drop=5, most=24), Column("pid", drop=3, right=True),
    Column("uptime", drop=4, right=True), Column("restarts", drop=2, right=True), Column("status"),
    Column("cpu", drop=1, right=True), Column("mem", drop=1, right=True), Column("req/s", drop=6, right=True),
    Column("in hand", drop=7, right=True), Column("conns", drop=8, right=True),
)  # fmt: skip


# --- ps ---


def print_workers(servers: list[RunningServer]) -> list[Trouble]:
    """Print a table of the servers' workers. Returns what keeps servers from being in it."""
    before = _take_readings(servers)
    there = [server for server, it in before.items() if isinstance(it, Reading)]
    if there:
        time.sleep(BETWEEN)
    after = before | _take_readings(there)
    seen = {server: it for server, it in after.items() if isinstance(it, Reading)}
    rows = {server: _rows(it, before[server]) for server, it in seen.items()}
    color = table.in_color()
    every = [row for group in rows.values() for row in group]
    title, *body = table.lines(WORKERS, every, room=table.room(), color=color)
    for server, group in rows.items():
        click.echo(_heading(seen[server].status, color=color))
        click.echo(title)
        for _ in group:
            click.echo(body.pop(0))
    return [it for it in after.values() if isinstance(it, Trouble)]


def _take_readings(servers: list[RunningServer]) -> dict[RunningServer, Reading | Trouble]:
    """All at once: one server that hangs delays the others by its own time limit, and no more."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(servers, pool.map(_reading_or_trouble, servers), strict=True))


def _reading_or_trouble(server: RunningServer) -> Reading | Trouble:
    try:
        return take_reading(server)
    except Trouble as exc:
        return exc


def _heading(status: Status, *, color: bool) -> str:
    pieces = [
        plain(status["name"]),
        f"pid {status['arbiter']['pid']}",
        " ".join(map(plain, status["addresses"])),
        f"{status['ready']} of {status['configured']} ready",
        f"up {duration(status['arbiter']['uptime'])}",
        *(["reloading"] if status["reloading"] else []),
        *(["stopping"] if status["stopping"] else []),
    ]
    text = "  ".join(pieces)
    return click.style(text, fg="cyan", bold=True) if color else text


def _rows(now: Reading, before: Reading | Trouble) -> list[list[Cell]]:
    found = rates(before if isinstance(before, Reading) else None, now)
    name = plain(now.status["name"])
    return [_row(name, worker, found.get(worker["instance"], Rates())) for worker in now.status["workers"]]


def _row(name: str, worker: WorkerStatus, its: Rates) -> list[Cell]:
    texts = (
        worker["instance"], name, worker["pid"] or "-", duration(worker["uptime"]),
        sum(worker["restarts"].values()), worker["state"], percent(its.cpu),
        memory(worker["memory"]["resident"]), rate(its.requests), worker["in_hand"], worker["connections"],
    )  # fmt: skip
    cells = [Cell(str(text)) for text in texts]
    cells[5] = Cell(plain(worker["state"]), COLORS.get(worker["state"]))
    return cells


# --- show ---


def print_server(server: RunningServer) -> None:
    """Print all about one server. Raises Trouble."""
    before = take_reading(server)
    time.sleep(BETWEEN)
    now = take_reading(server)
    color = table.in_color()
    for title, lines in _sections(now, rates(before, now), color=color):
        click.echo(click.style(title, bold=True) if color else title)
        for line in lines:
            click.echo(f"  {line}")


def _sections(now: Reading, found: Mapping[int, Rates], *, color: bool) -> Iterator[tuple[str, list[str]]]:
    status = now.status
    yield plain(status["name"]), _pairs(_about(status))
    for worker in status["workers"]:
        state = plain(worker["state"])
        shown = click.style(state, fg=COLORS.get(state)) if color else state
        its = found.get(worker["instance"], Rates())
        yield f"instance {worker['instance']}: {shown}", _pairs(_about_worker(worker, its))
    yield "settings", _pairs(status["settings"])
    yield "last events", [event_line(event, color=color) for event in status["events"][-EVENTS:]]


def _about(status: Status) -> dict[str, str]:
    arbiter = status["arbiter"]
    return {
        "pid": f"{arbiter['pid']}, monitor {status['monitor']['pid']}",
        "up": f"{duration(arbiter['uptime'])}, since {moment(arbiter['started'])}",
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
        "requests": f"{rate(its.requests)}/s, {worker['in_hand']} in hand, {requests['total']} in all",
        "connections": f"{worker['connections']}, {worker['websockets']} WebSockets, "
        f"{worker['connections_accepted']} accepted in all",
        "loop lag": milliseconds(worker["loop_lag"]),
    }
    if worker["wanted"]:
        about["wanted"] = f"about to be replaced ({worker['wanted']})"
    if worker["next_restart"]:
        about["next start"] = moment(worker["next_restart"])
    return about


def _memory(amounts: MemoryStatus) -> str:
    unique = f", {memory(amounts['unique'])} of its own" if amounts["unique"] else ""
    return f"{memory(amounts['resident'])}{unique}, limit {memory(amounts['limit'])}"


def _counts(counts: Mapping[Name, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "none"


def _pairs(pairs: Mapping[str, str]) -> list[str]:
    width = max(map(len, pairs), default=0)
    return [f"{plain(name):{width}}  {plain(text)}" for name, text in pairs.items()]


# --- events ---


def event_line(event: EventReport, *, color: bool | None = None) -> str:
    """Without any control character; ``color`` None: as stdout can."""
    color = table.in_color() if color is None else color
    text = f"{plain(event['level']):8} {event_text(event)}"
    shown = LEVELS.get(event["level"])
    return f"{clock(event['at'])}  {click.style(text, fg=shown) if color and shown else text}"
