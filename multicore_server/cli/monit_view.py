"""Draws what `monit` shows with rich. Pure: it turns a scene and a size into something that rich prints."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import terminal_size

from rich.console import Group
from rich.table import Table
from rich.text import Text

from multicore_server.cli.figures import QUEUED, Rates, Reading, answered, quantiles, rates
from multicore_server.cli.health import LEAST_ERRORS, MANY_ERRORS, Answered, Level, health
from multicore_server.cli.in_progress import asked, running
from multicore_server.cli.listing import HEALTH, LEVELS, state_of
from multicore_server.cli.text import (
    clock,
    duration,
    errors,
    event_text,
    left,
    memory,
    milliseconds,
    percent,
    plain,
    rate,
)
from multicore_server.ipc.report import MemoryStatus, Status, WorkerStatus

KEYS = "q quit   r reload   R restart selected   + - scale   i requests   up/down select"
HEAD = 3  # lines above the workers
FOOT = 2  # and below the events
LEAST_EVENTS = 4  # lines of events that stay where there are many workers
# Title, and from which width of the terminal on it is there.
COLUMNS = (
    ("id", 0), ("pid", 60), ("status", 0), ("up", 74), ("restarts", 68), ("cpu", 24), ("memory", 36),
    ("req/s", 46), ("5xx/s", 54), ("499/s", 132), ("p50", 108), ("p99", 80), ("in progress", 92),
    ("conns", 98), ("queue", 116), ("lag", 124),
)  # fmt: skip
ERRORS_FOR = 10.0  # seconds over which the share of errors is taken
LAG = (0.05, 0.25)  # seconds: yellow, red (as the alert)


@dataclass
class Scene:
    """What the screen shows: the last two readings, the selected instance, and the answer to the last key."""

    now: Reading
    before: Reading | None = None
    selected: int | None = None
    note: str = ""
    trouble: str = ""
    shows_requests: bool = False  # in place of the events
    past: deque[Reading] = field(default_factory=deque)  # the last `ERRORS_FOR`, oldest first

    def __post_init__(self) -> None:
        self._keep_selected()

    def update(self, reading: Reading) -> None:
        self.before, self.now, self.trouble = self.now, reading, ""
        self.past.append(self.before)
        while len(self.past) > 1 and reading.at - self.past[1].at >= ERRORS_FOR:
            self.past.popleft()
        self._keep_selected()

    def select(self, step: int) -> None:
        """Select the instance above or below."""
        there = self._instances()
        if self.selected is not None and there:
            place = there.index(self.selected) + step
            self.selected = there[min(max(place, 0), len(there) - 1)]

    def _keep_selected(self) -> None:
        """If the selected instance is gone, select the nearest one."""
        there, wanted = self._instances(), self.selected or 0
        self.selected = min(there, key=lambda it: abs(it - wanted), default=None)

    def _instances(self) -> list[int]:
        return [worker["instance"] for worker in self.now.status["workers"]]


def draw(scene: Scene, size: terminal_size) -> Group:
    """Draw as many lines as the screen has: workers first, then events or requests."""
    workers = _visible(scene, size.lines - HEAD - FOOT - LEAST_EVENTS - 1)
    left = size.lines - HEAD - FOOT - 1 - len(workers)
    return Group(
        *_head(scene),
        _table(scene, workers, size.columns),
        *(_requests(scene, left) if scene.shows_requests else _events(scene, left)),
        _line(scene.trouble, "bold red") if scene.trouble else _line(scene.note, "yellow"),
        _line(KEYS, "dim"),
    )


def _visible(scene: Scene, room: int) -> list[WorkerStatus]:
    """Return the workers that fit on the screen, around the selected one."""
    workers = scene.now.status["workers"]
    place = next((at for at, it in enumerate(workers) if it["instance"] == scene.selected), 0)
    first = max(0, min(place - room // 2, len(workers) - room))
    return workers[first : first + max(1, room)]


def _line(text: str, style: str = "") -> Text:
    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")


# --- the server ---


def _head(scene: Scene) -> list[Text]:
    status = scene.now.status
    state = "stopping" if status["stopping"] else "reloading" if status["reloading"] else ""
    its = health(status, answered(scene.past[0] if scene.past else None, scene.now))
    first = _line(f"{status['name']}  pid {status['arbiter']['pid']}  ", f"bold {HEALTH[its.level]}")
    first.append(plain(" ".join(status["addresses"])), "cyan")
    first.append(f"  {state}", "bold yellow")
    return [first, _line(_totals(scene)), _line("; ".join(its.reasons), f"bold {HEALTH[its.level]}")]


def _totals(scene: Scene) -> str:
    status, found = scene.now.status, rates(scene.before, scene.now).values()
    ends = answered(scene.before, scene.now)
    (waited,) = quantiles([QUEUED], scene.before, scene.now, "queue")
    p50, p99 = map(milliseconds, quantiles((0.5, 0.99), scene.before, scene.now))
    return (
        f"{status['ready']}/{status['configured']} ready  up {duration(status['arbiter']['uptime'])}  "
        f"cpu {percent(_sum(it.cpu for it in found))}  {rate(_sum(it.requests for it in found))} req/s  "
        f"5xx {errors(ends)}  "
        f"p50 {p50}  p99 {p99}  queue {milliseconds(waited)}  "
        f"{sum(it['in_hand'] for it in status['workers'])} in progress  "
        f"{sum(it['connections'] for it in status['workers'])} conns  "
        f"499 {left(ends)}"
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values, None if none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


# --- its workers ---


def _table(scene: Scene, workers: list[WorkerStatus], width: int) -> Table:
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold")
    shown = [place for place, (_, least) in enumerate(COLUMNS) if width >= least]
    for place in shown:
        justify = "left" if COLUMNS[place][0] == "status" else "right"
        table.add_column(COLUMNS[place][0], justify=justify, no_wrap=True)  # type: ignore[arg-type]
    found = rates(scene.before, scene.now)
    for worker in workers:
        cells = _cells(worker, found.get(worker["instance"], Rates()), scene.now.status)
        style = "reverse" if worker["instance"] == scene.selected else ""
        table.add_row(*(cells[place] for place in shown), style=style)
    return table


def _cells(worker: WorkerStatus, its: Rates, status: Status) -> list[Text]:
    state = state_of(worker, status)
    lag = worker["loop_lag"]
    slow = "red" if lag >= LAG[1] else "yellow" if lag >= LAG[0] else ""
    return [
        Text(str(worker["instance"])),
        Text(str(worker["pid"] or "-")),
        Text(state.text, state.color or ""),
        Text(duration(worker["uptime"])),
        Text(str(sum(worker["restarts"].values()))),
        Text(percent(its.cpu)),
        _memory(worker["memory"], status["settings"].get("memory_metric")),
        Text(rate(its.requests)),
        _errors(its.answered),
        Text(left(its.answered)),
        Text(milliseconds(its.p50)),
        Text(milliseconds(its.p99)),
        Text(str(worker["in_hand"])),
        Text(str(worker["connections"])),
        Text(milliseconds(its.queue)),
        Text(milliseconds(lag), slow),
    ]


def _errors(its: Answered | None) -> Text:
    many = its is not None and its.errors >= LEAST_ERRORS and (its.share or 0) > MANY_ERRORS[1]
    style = HEALTH[Level.RED] if many else HEALTH[Level.AMBER] if its is not None and its.errors else ""
    return Text(errors(its), style)


def _memory(amounts: MemoryStatus, metric: str | None) -> Text:
    """Show memory beside its limit, by the metric that the limit applies to, if it was measured."""
    limit = amounts["limit"]
    used = (amounts["unique"] if metric == "uss" and limit else None) or amounts["resident"]
    if not (used and limit):
        return Text(memory(used))
    share = used / limit
    style = "red" if share >= 0.9 else "yellow" if share >= 0.7 else ""
    return Text(f"{memory(used)}/{memory(limit)} {share:.0%}", style)


# --- what happened ---


def _events(scene: Scene, room: int) -> list[Text]:
    """Return the last events, oldest first, with empty lines if there are too few."""
    events = scene.now.status["events"]
    last = events[max(0, len(events) - max(0, room - 1)) :]
    lines = [_line(f"{clock(it['at'])} {event_text(it)}", LEVELS.get(it["level"], "")) for it in last]
    return _filled(lines, room)


def _requests(scene: Scene, room: int) -> list[Text]:
    """Return the requests in progress, the oldest first."""
    found = running(scene.now.status, None)
    lines = [
        _line(f"{milliseconds(it['seconds']):>7}  {it['instance']:>3}  {asked(it)}  {it['client']}")
        for it in found[: max(0, room - 1)]
    ]
    return _filled(lines or [_line("no request is in progress", "dim")], room)


def _filled(lines: list[Text], room: int) -> list[Text]:
    return [Text(""), *lines, *(Text("") for _ in range(room - 1 - len(lines)))][: max(0, room)]
