"""When commands are done: histories of /status, as a server tells them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from multicore_server.cli.waiting import CommandResult, Reloading, Restarting, Scaling, Step
from multicore_server.ipc.names import EventKind, StateName
from multicore_server.ipc.report import EventReport, ProcessReport, ProcessState, Status, WorkerStatus
from tests.support import reports


def process(generation: int, state: ProcessState = "ready") -> ProcessReport:
    return reports.process(0, generation, state)


def slot(instance: int, *processes: ProcessReport, state: StateName = "ready") -> WorkerStatus:
    return reports.worker(instance, *processes, state=state)


def event(number: int, kind: EventKind, text: str, reason: str | None = None, **who: Any) -> EventReport:
    unknown = {"instance": None, "generation": None, "pid": None}
    return reports.event(text, id=number, kind=kind, reason=reason, **{**unknown, **who})


def status(*slots: WorkerStatus, events: Sequence[EventReport] = (), **changes: Any) -> Status:
    return reports.status(*slots, events=list(events), **changes)


OLD = event(7, "reload", "reload done: 2 workers replaced in 1.0 s", "ok")
BEFORE = status(slot(0, process(1)), slot(1, process(1)), events=[OLD])
HALF = status(slot(0, process(1, "draining"), process(2)), slot(1, process(1), process(2, "starting")))
NEW = (slot(0, process(2)), slot(1, process(2)))


# --- reload ---


def test_a_reload_is_done_when_it_says_so() -> None:
    done = event(9, "reload", "reload done: 2 workers replaced in 0.8 s", "ok")
    waits = Reloading(BEFORE)
    assert waits.check(BEFORE) == Step(0, 2)
    assert waits.check(HALF) == Step(1, 2)
    assert waits.check(status(*NEW, events=[OLD])) == Step(2, 2)
    assert waits.check(status(*NEW, events=[OLD, done])) == Step(2, 2, CommandResult(True, done["text"]))


@pytest.mark.parametrize("result", ["rolled_back", "failed"])
def test_a_reload_that_does_not_succeed_has_its_reason(result: str) -> None:
    told = event(9, "reload", "reload rolled back: boom; the old workers keep serving", result)
    step = Reloading(BEFORE).check({**BEFORE, "events": [OLD, told]})
    assert step == Step(0, 2, CommandResult(False, told["text"]))


def test_the_result_of_a_reload_that_was_under_way_is_not_ours() -> None:
    first = event(9, "reload", "reload done: first", "ok")
    second = event(12, "reload", "reload failed: second", "failed")
    again = event(8, "reload_queued", "a reload is in progress; one more follows it")
    for waits, events in (
        (Reloading({**BEFORE, "reloading": True}), [OLD, first]),
        (Reloading(BEFORE), [OLD, again, first]),  # somebody else's, between our look and our command
    ):
        assert waits.check(status(*NEW, events=events)).outcome is None
        assert waits.check(status(*NEW, events=[*events, second])).outcome == CommandResult(
            False, second["text"]
        )


# --- restart ---


def test_a_restart_is_done_when_each_has_a_newer_worker() -> None:
    waits = Restarting(BEFORE, None)
    assert waits.check(BEFORE) == Step(0, 2)
    assert waits.check(HALF) == Step(1, 2)
    assert waits.check(status(*NEW)) == Step(2, 2, CommandResult(True, "restarted: 2 workers replaced"))


def test_a_restart_of_one_instance() -> None:
    waits = Restarting(BEFORE, [1])
    assert waits.check(HALF) == Step(0, 1)
    assert waits.check(status(*NEW)).outcome == CommandResult(True, "restarted: 1 worker replaced")


def test_a_worker_that_is_starting_is_new_enough() -> None:
    waits = Restarting(status(slot(0, process(3, "starting"), state="starting")), None)
    assert waits.check(status(slot(0, process(3)))).outcome == CommandResult(
        True, "restarted: 1 worker replaced"
    )


def test_an_errored_slot_is_revived() -> None:
    waits = Restarting(status(slot(0, state="errored")), [0])
    assert waits.check(status(slot(0, state="errored"))).outcome is None
    assert waits.check(status(slot(0, process(9)))).outcome is not None


def test_a_replacement_that_does_not_boot_ends_the_wait() -> None:
    other = event(8, "boot", "exited with code 3", instance=0)
    ours = event(9, "boot", "exited with code 3: boom", instance=1)
    waits = Restarting(BEFORE, [1])
    assert waits.check({**BEFORE, "events": [OLD, other]}).outcome is None
    expected = CommandResult(False, "restart failed: instance=1 exited with code 3: boom")
    assert waits.check({**BEFORE, "events": [OLD, other, ours]}).outcome == expected


def test_an_instance_that_is_scaled_away_is_not_waited_for() -> None:
    waits = Restarting(BEFORE, None)
    assert waits.check(status(NEW[0])).outcome == CommandResult(True, "restarted: 1 worker replaced")


# --- scale ---


def test_scaling_up() -> None:
    waits = Scaling(BEFORE, 3)
    starting = slot(2, process(1, "starting"), state="starting")
    assert waits.check(BEFORE) == Step(2, 3)
    assert waits.check(status(*NEW, starting)) == Step(2, 3)
    assert waits.check(status(*NEW, slot(2, process(1)))).outcome == CommandResult(
        True, "scaled: 3 workers ready"
    )


def test_scaling_down_waits_for_those_that_drain() -> None:
    waits = Scaling(BEFORE, 1)
    draining = slot(1, process(1, "draining"), state="draining")
    assert waits.check(BEFORE).outcome is None
    assert waits.check(status(NEW[0], draining, configured=1)).outcome is None
    assert waits.check(status(NEW[0])).outcome == CommandResult(True, "scaled: 1 worker ready")


def test_scaling_does_not_wait_for_what_nobody_starts() -> None:
    outcome = Scaling(BEFORE, 3).check(status(*NEW, slot(2, state="errored"))).outcome
    assert outcome == CommandResult(True, "scaled: 2 workers ready, instance 2 is errored")


def test_a_new_worker_that_does_not_boot_ends_the_wait() -> None:
    told = event(9, "boot", "exited with code 3: boom; next start in 1 s", instance=2)
    found = status(*NEW, slot(2, state="backoff"), events=[OLD, told])
    outcome = Scaling(BEFORE, 3).check(found).outcome
    assert outcome == CommandResult(
        False, "scale incomplete: instance=2 exited with code 3: boom; next start in 1 s"
    )
