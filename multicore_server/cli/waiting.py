"""Decides from successive /status documents when a command is done and what its result is.

Pure. Each class gets the status from before the command, then the statuses after it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from multicore_server.cli.text import event_text
from multicore_server.ipc.report import EventReport, Status, WorkerStatus


class CommandResult(NamedTuple):
    ok: bool
    text: str


class Step(NamedTuple):
    """How far the command is; ``outcome`` when it is done."""

    done: int
    total: int
    outcome: CommandResult | None = None


class Wait(Protocol):
    what: str  # the bar counts

    def check(self, status: Status) -> Step: ...


class Reloading:
    """Waits for the result of the requested reload; a reload that was in progress before does not count."""

    what = "workers replaced"

    def __init__(self, before: Status) -> None:
        self._mark = last_event(before)
        self._ready = ready(before)
        self._wanted = 2 if before["reloading"] else 1

    def check(self, status: Status) -> Step:
        events = events_after(status, self._mark)
        if any(it["kind"] == "reload_queued" for it in events):
            self._wanted = 2
        results = [it for it in events if it["kind"] == "reload"]
        new = ready(status)
        done = sum(new[it] > self._ready.get(it, 0) for it in new)
        outcome = None
        if len(results) >= self._wanted:
            result = results[self._wanted - 1]
            outcome = CommandResult(result["reason"] == "ok", event_text(result))
        return Step(done, max(done, status["configured"]), outcome)


class Restarting:
    """Waits until each instance has a newer worker than before."""

    what = "workers replaced"

    def __init__(self, before: Status, instances: Collection[int] | None) -> None:
        self._mark = last_event(before)
        slots = [it for it in before["workers"] if instances is None or it["instance"] in instances]
        self._needed = {slot["instance"]: _next_generation(slot) for slot in slots}

    def check(self, status: Status) -> Step:
        there = {slot["instance"] for slot in status["workers"]}
        needed = {it: generation for it, generation in self._needed.items() if it in there}
        new = ready(status)
        done = sum(new.get(it, 0) >= generation for it, generation in needed.items())
        return Step(done, len(needed), self._outcome(status, done, len(needed)))

    def _outcome(self, status: Status, done: int, total: int) -> CommandResult | None:
        if done == total:
            return CommandResult(True, f"restarted: {_workers(total)} replaced")
        failed = [it for it in boots_failed(status, self._mark) if it["instance"] in self._needed]
        return CommandResult(False, f"restart failed: {event_text(failed[0])}") if failed else None


class Scaling:
    """Waits until the requested number of workers is ready and the surplus ones have exited."""

    what = "workers ready"

    def __init__(self, before: Status, wanted: int) -> None:
        self._mark = last_event(before)
        self._wanted = wanted

    def check(self, status: Status) -> Step:
        done = len(ready(status))
        return Step(min(done, self._wanted), self._wanted, self._outcome(status, done))

    def _outcome(self, status: Status, done: int) -> CommandResult | None:
        refused = [it for it in events_after(status, self._mark) if it["kind"] == "refused"]
        if refused:
            return CommandResult(False, f"scale failed: {event_text(refused[0])}")
        workers = status["workers"]
        if status["configured"] == len(workers) == self._wanted and all(map(_is_settled, workers)):
            left = "".join(f", instance {it['instance']} is {it['state']}" for it in workers if _rests(it))
            return CommandResult(True, f"scaled: {_workers(done)} ready{left}")
        failed = boots_failed(status, self._mark)
        return CommandResult(False, f"scale incomplete: {event_text(failed[0])}") if failed else None


# --- reading a status ---


def last_event(status: Status) -> int:
    """Return the number of the newest event."""
    return max((it["id"] for it in status["events"]), default=0)


def events_after(status: Status, mark: int) -> list[EventReport]:
    """Return the events after the one with this number."""
    return [it for it in status["events"] if it["id"] > mark]


def boots_failed(status: Status, mark: int) -> list[EventReport]:
    return [it for it in events_after(status, mark) if it["kind"] == "boot"]


def ready(status: Status) -> dict[int, int]:
    """Return the generation of each instance's ready worker."""
    return {
        slot["instance"]: process["generation"]
        for slot in status["workers"]
        for process in slot["processes"]
        if process["state"] == "ready"
    }


def _next_generation(slot: WorkerStatus) -> int:
    """Return the generation that a restart leads to: one that is starting already counts."""
    states = {process["generation"]: process["state"] for process in slot["processes"]}
    starting = [generation for generation, state in states.items() if state == "starting"]
    return max(starting) if starting else max(states, default=0) + 1


def _rests(slot: WorkerStatus) -> bool:
    """Return whether the slot stays without a worker until somebody asks for one."""
    return slot["state"] in ("errored", "stopped")


def _is_settled(slot: WorkerStatus) -> bool:
    return slot["state"] == "ready" or _rests(slot)


def _workers(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"
