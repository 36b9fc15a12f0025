"""What the arbiter looks at by itself, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter.inspection import RECENT, Inspection
from multicore_server.fleet import events as ev
from multicore_server.fleet.fleet import Fleet
from multicore_server.fleet.policy import Options
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.machine import cgroup, memory
from multicore_server.settings.quantities import size
from multicore_server.settings.table import Settings

PID = 4711
Look = Callable[[float], list[ev.Observation]]


class Clock:
    """Wall-clock time in one place, so naive."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1)  # noqa: DTZ001

    def __call__(self) -> datetime:
        return self.now

    def set(self, hour: int, minute: int, second: float, day: int = 0) -> None:
        midnight = self.now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        self.now = midnight + timedelta(days=day, hours=hour, minutes=minute, seconds=second)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.set(3, 59, 30)
    return clock


@pytest.fixture
def scoreboard() -> Scoreboard:
    return Scoreboard(4)


@pytest.fixture
def make(clock: Clock, scoreboard: Scoreboard) -> Callable[..., Inspection]:
    """An inspection of one worker that is ready since second 0."""

    def make(timeout: float = 30, **settings: Any) -> Inspection:
        fleet = Fleet(Options(), workers=1, capacity=4)
        fleet.tick(0.0)
        fleet.observe(ev.Forked(0, 1, PID), 0.0)
        fleet.observe(ev.BecameReady(PID), 0.0)
        made = Inspection(fleet, scoreboard, clock)
        made.configure(Settings(workers=1, **settings), SimpleNamespace(timeout=timeout))
        return made

    return make


def observed(found: Inspection, now: float) -> list[ev.Observation]:
    return list(found.inspect(now))


# --- cron_restart ---


def test_cron_restarts_once_at_each_of_its_times(make: Callable[..., Inspection], clock: Clock) -> None:
    found = make(timeout=0, cron_restart="0 4 * * *")
    assert observed(found, 10) == []
    clock.set(4, 0, 0)
    assert observed(found, 40) == [ev.Restart("cron")]
    clock.set(4, 0, 1)
    assert observed(found, 41) == []
    clock.set(4, 0, 0.5, day=1)
    assert observed(found, 86440) == [ev.Restart("cron")]


def test_cron_times_that_were_slept_through_count_once(make: Callable[..., Inspection], clock: Clock) -> None:
    found = make(timeout=0, cron_restart="* * * * *")
    clock.set(9, 0, 10)
    assert observed(found, 10) == [ev.Restart("cron")]
    assert observed(found, 12) == []


@pytest.mark.parametrize(("hours", "restarts"), [(2, 0), (5, 1), (24 * 400, 1)])
def test_a_clock_that_is_set_back_far_counts_anew(
    make: Callable[..., Inspection], clock: Clock, hours: int, restarts: int
) -> None:
    """It was years ahead when the server started, say."""
    found = make(timeout=0, cron_restart="0 * * * *")
    clock.now += timedelta(seconds=30)
    assert observed(found, 10) == [ev.Restart("cron")]
    clock.now -= timedelta(hours=hours)
    assert observed(found, 12) == []
    clock.now += timedelta(hours=1)
    assert observed(found, 14) == [ev.Restart("cron")] * restarts
    assert observed(found, 16) == []


def test_a_clock_that_is_set_back_repeats_nothing(make: Callable[..., Inspection], clock: Clock) -> None:
    found = make(timeout=0, cron_restart="0 4 * * *")
    clock.set(4, 0, 0)
    assert observed(found, 10) == [ev.Restart("cron")]
    clock.set(3, 59, 59)
    assert observed(found, 12) == []
    clock.set(4, 0, 1)
    assert observed(found, 14) == []


# --- heartbeats ---


def test_a_heartbeat_older_than_timeout_is_a_hang(
    make: Callable[..., Inspection], scoreboard: Scoreboard
) -> None:
    found = make(timeout=2)
    assert observed(found, 1.9) == []
    scoreboard.row(0)[Item.HEARTBEAT] = 1.5
    assert observed(found, 3.4) == []
    assert observed(found, 4.0) == [ev.Hung(PID, 2.5)]


def test_a_pause_of_the_arbiter_is_nobodys_silence(
    make: Callable[..., Inspection], scoreboard: Scoreboard
) -> None:
    found = make(timeout=2)
    scoreboard.row(0)[Item.HEARTBEAT] = 1.0
    found.forgive(61.0)
    assert observed(found, 61.0) == []
    assert observed(found, 62.9) == []
    assert observed(found, 63.5) == [ev.Hung(PID, 2.5)], (
        "a worker that really hangs is found one timeout later"
    )


def test_timeout_0_is_none(make: Callable[..., Inspection]) -> None:
    assert observed(make(timeout=0), 1e6) == []


def test_it_looks_as_often_as_the_shortest_limit_asks_for(make: Callable[..., Inspection]) -> None:
    found = make(timeout=2)
    observed(found, 10.0)
    assert found.due == 10.5
    found = make(memory_check_interval=0.1)
    observed(found, 10.0)
    assert found.due == 10.1


# --- memory ---


@pytest.fixture
def weigh(
    make: Callable[..., Inspection], scoreboard: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[ev.Observation]]:
    """What a worker is found to use, given its resident memory and what it has measured itself."""

    def weigh(
        rss: int, uss: int = 0, *, measured: float = 9.5, beat: float = 9.9, due: float = 0.0, **limits: Any
    ) -> Any:
        found = make(
            **{name: size(value) if isinstance(value, int) else value for name, value in limits.items()}
        )
        monkeypatch.setattr(memory, "rss", lambda pid: rss)
        row = scoreboard.row(0)
        row[Item.HEARTBEAT], row[Item.UNIQUE_MEMORY], row[Item.UNIQUE_MEMORY_AT] = beat, uss, measured
        row[Item.BEAT_DUE] = due
        return observed(found, 10.0)

    return weigh


SOFT = {"max_memory_restart": 100}
BOTH = {"max_memory_restart": 100, "max_memory_kill": 200}
RSS = {"memory_metric": "rss"}


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        pytest.param({"rss": 100, **SOFT, **RSS}, None, id="as much as allowed"),
        pytest.param({"rss": 101, **SOFT, **RSS}, (False, 101, 100), id="above soft"),
        pytest.param({"rss": 201, **BOTH, **RSS}, (True, 201, 200), id="above hard"),
        pytest.param({"rss": 199, **BOTH, **RSS}, (False, 199, 100), id="between"),
        pytest.param({"rss": 300, "max_memory_kill": 200, **RSS}, (True, 300, 200), id="hard alone"),
        pytest.param({"rss": 300, "uss": 90, **BOTH}, None, id="unique below"),
        pytest.param({"rss": 300, "uss": 110, **BOTH}, (False, 110, 100), id="unique above soft"),
        pytest.param({"rss": 300, "uss": 210, **BOTH}, (True, 210, 200), id="unique above hard"),
        pytest.param({"rss": 300, "uss": 210, "measured": 5.0, **BOTH}, None, id="measured long ago"),
        pytest.param({"rss": 300, "uss": 210, "measured": -1.0, **BOTH}, None, id="measured by another"),
        pytest.param({"rss": 300, "beat": 8.0, **BOTH}, (True, 300, 200), id="stale: judged by RSS"),
        pytest.param(
            {"rss": 300, "uss": 110, "beat": 7.5, "due": 12.5, **BOTH}, (False, 110, 100), id="at rest"
        ),
        pytest.param({"rss": 300, "beat": 3.0, "due": 8.0, **BOTH}, (True, 300, 200), id="stale at rest"),
    ],
)
def test_memory(
    weigh: Callable[..., list[ev.Observation]], given: dict[str, Any], verdict: tuple[bool, int, int] | None
) -> None:
    assert weigh(**given) == ([ev.OverMemory(PID, *verdict)] if verdict else [])


def test_a_worker_learns_the_lower_limit(weigh: Callable[..., Any], scoreboard: Scoreboard) -> None:
    weigh(50, **BOTH)
    assert scoreboard.row(0)[Item.MEMORY_LIMIT] == 100


def test_a_process_that_may_not_be_looked_at_is_left_alone(
    weigh: Callable[..., Any], make: Callable[..., Inspection], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise PermissionError

    found = make(max_memory_restart=size(100))
    monkeypatch.setattr(memory, "rss", refuse)
    assert observed(found, 10.0) == []


# --- the kernel's OOM killer ---


@pytest.fixture
def blame(
    make: Callable[..., Inspection], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int | None, float], bool]:
    """Whether a death is the OOM killer's, after so many kills of its own in all."""
    monkeypatch.setattr(cgroup, "oom_kills", lambda: 3)
    found = make()

    def blame(kills: int | None, now: float) -> bool:
        monkeypatch.setattr(cgroup, "oom_kills", lambda: kills)
        return found.oom_killed(now)

    return blame


def test_each_kill_of_the_oom_killer_explains_one_death(blame: Callable[[int | None, float], bool]) -> None:
    """Of two workers that it killed in one go, the second one was told to be killed by somebody."""
    assert [blame(3, 1.0), blame(5, 2.0), blame(5, 2.0), blame(5, 2.0)] == [False, True, True, False]


def test_a_kill_that_is_not_known_is_not_blamed(blame: Callable[[int | None, float], bool]) -> None:
    assert [blame(None, 1.0), blame(4, 2.0)] == [False, True]


def test_a_counter_that_starts_again_is_no_kill(blame: Callable[[int | None, float], bool]) -> None:
    assert [blame(0, 1.0), blame(1, 2.0)] == [False, True]


def test_an_old_kill_of_a_child_of_the_app_is_not_the_death_of_a_worker(
    make: Callable[..., Inspection], monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = [0]
    monkeypatch.setattr(cgroup, "oom_kills", lambda: kills[0])
    found = make()
    observed(found, 10.0)
    kills[0] = 1
    observed(found, 11.0)
    assert not found.oom_killed(11.0 + RECENT)
    kills[0] = 2
    observed(found, 20.0)
    assert found.oom_killed(20.0 + RECENT - 0.1)


def test_a_limit_that_a_reload_takes_away_is_shown_no_longer(
    make: Callable[..., Inspection], scoreboard: Scoreboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "rss", lambda pid: 50)
    found = make(max_memory_restart=size(100))
    observed(found, 10.0)
    assert scoreboard.row(0)[Item.MEMORY_LIMIT] == 100
    found.configure(Settings(workers=1), SimpleNamespace(timeout=30))
    observed(found, 11.0)
    assert scoreboard.row(0)[Item.MEMORY_LIMIT] == 0
    assert found.memory_limit is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_worker_that_writes_anything_for_its_memory_ends_no_inspection(
    make: Callable[..., Inspection], scoreboard: Scoreboard, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """The others are inspected after it."""

    def rss(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(memory, "rss", rss)
    found = make(timeout=0, max_memory_restart=size("1M"))
    row = scoreboard.row(0)
    for item in (Item.RESIDENT_MEMORY, Item.UNIQUE_MEMORY, Item.UNIQUE_MEMORY_AT):
        row[item] = value
    assert observed(found, 10) == []
    row[Item.RESIDENT_MEMORY], row[Item.HEARTBEAT] = 2.0**40, 20.0
    assert observed(found, 20) == []
