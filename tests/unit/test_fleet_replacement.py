"""The fleet by histories: planned replacements. The replacement comes first, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from multicore_server.fleet import events as ev
from tests.unit.simulation import BROKEN, HANGS, Plan, Simulation, hup, lines, new, over_memory, serving

ASKS: dict[str, Callable[[Simulation], None]] = {
    "memory": lambda world: over_memory(world, "0.1"),
    "max_requests": lambda world: world.observe(ev.AskedToRetire(world.pid("0.1"), "max_requests")),
    "cron": lambda world: world.observe(ev.Restart("cron", frozenset({0}))),
    "manual": lambda world: world.observe(ev.Restart(instances=frozenset({0}))),
    "lifetime": lambda world: world.run(29.0),
}
PERSISTENT = ["memory", "max_requests", "lifetime"]


def asked(reason: str, **settings: Any) -> Simulation:
    """A fleet whose instance 0 is wanted replaced; its drain takes 3 s. 31 s."""
    lives = iter([30.0, 1000.0, 1000.0, 1000.0])
    world = serving(lifetime=lambda _: next(lives) if reason == "lifetime" else None, **settings)
    world.plans["0.1"] = Plan(drain=3.0)
    if reason != "lifetime":
        world.run(29.0)
    return world


@pytest.mark.parametrize("reason", ASKS)
def test_the_replacement_comes_first(reason: str) -> None:
    world = asked(reason)
    ASKS[reason](world)
    world.run(9)
    assert world.history() == lines("""
        31 fork 0.2
        32 ready 0.2
        32 TERM 0.1
        35 end 0.1
    """)
    assert world.fleet.restarts == {reason: 1}
    assert f"started to replace pid=101 ({reason})" in world.said("started")
    assert world.said("draining") == [f"draining ({reason})"]


@pytest.mark.parametrize("reason", PERSISTENT)
def test_a_failed_replacement_is_tried_again_if_the_cause_goes_on(reason: str) -> None:
    world = asked(reason)
    world.plans |= {"0.2": BROKEN, "0.3": BROKEN}
    ASKS[reason](world)
    world.run(9)
    assert world.history() == lines("""
        31 fork 0.2
        31.5 end 0.2
        31.5 fork 0.3
        32 end 0.3
        32.1 fork 0.4
        33.1 ready 0.4
        33.1 TERM 0.1
        36.1 end 0.1
    """)


@pytest.mark.parametrize("reason", sorted(ASKS.keys() - set(PERSISTENT)))
def test_a_failed_replacement_that_was_asked_for_once_is_dropped(reason: str) -> None:
    world = asked(reason)
    world.plans["0.2"] = BROKEN
    ASKS[reason](world)
    world.run(60)
    assert world.history() == ["31 fork 0.2", "31.5 end 0.2"]
    assert world.ready() == ["0.1", "1.1"]
    assert world.said("boot")[-1].endswith("the old worker keeps serving")


@pytest.mark.parametrize("reason", PERSISTENT)
def test_a_replacement_that_never_boots_is_given_up(reason: str) -> None:
    world = asked(reason, max_restarts=3)
    world.plans |= {f"0.{generation}": BROKEN for generation in range(2, 9)}
    ASKS[reason](world)
    world.run(9)
    assert [line for line in world.history() if "fork" in line] == [
        "31 fork 0.2",
        "31.5 fork 0.3",
        "32.1 fork 0.4",
    ]
    if reason != "lifetime":  # asked again and again
        ASKS[reason](world)
    world.run(9)
    assert world.history() == []
    assert world.ready() == ["0.1", "1.1"]


def test_the_old_workers_stable_time_does_not_grant_more_attempts() -> None:
    """It becomes stable (backoff_reset, 30 s) while its replacement fails again and again."""
    world = serving(1, max_restarts=16)
    world.plans = {f"0.{generation}": BROKEN for generation in range(2, 99)}
    over_memory(world, "0.1")
    world.run(28)
    assert world.said("boot")[-1].partition("next attempt")[1]
    world.run(200)
    assert len([line for line in world.history() if "fork" in line]) == 16
    assert world.ready() == ["0.1"]


def test_a_worker_whose_replacement_was_given_up_can_be_restarted_by_hand() -> None:
    world = asked("memory", max_restarts=1)
    world.plans["0.2"] = BROKEN
    over_memory(world, "0.1")
    world.run(9)
    world.observe(ev.Restart())
    world.run(9)
    assert world.ready() == ["0.3", "1.2"]


def test_a_lasting_reason_outlives_one_that_asks_once() -> None:
    world = serving(1)
    world.plans = {"0.2": BROKEN}
    world.observe(ev.Restart("cron"))
    world.observe(ev.AskedToRetire(world.pid("0.1"), "max_requests"))
    world.run(5)
    assert world.ready() == ["0.3"]


def test_a_restart_does_not_outrank_a_lasting_reason() -> None:
    world = serving(1)
    world.plans = {"0.2": BROKEN}
    over_memory(world, "0.1")
    world.observe(ev.Restart("cron"))
    world.run(5)
    assert world.ready() == ["0.3"]


def test_old_failures_do_not_count_after_a_stable_time() -> None:
    world = serving(1, max_restarts=2)
    world.plans = {"0.2": BROKEN, "0.4": BROKEN}
    world.end("0.1", 1)
    world.run(60)
    assert world.ready() == ["0.3"]
    world.observe(ev.AskedToRetire(world.pid("0.3"), "max_requests"))
    world.run(5)
    assert world.ready() == ["0.5"]


def test_a_given_up_replacement_leaves_the_slot_clean_for_the_next_reload() -> None:
    world = serving(2, max_restarts=3)
    world.plans = {f"1.{generation}": BROKEN for generation in (2, 3, 4, 5)}
    over_memory(world, "1.1")
    world.run(10)
    assert world.ready() == ["0.1", "1.1"]
    hup(world, 2, max_restarts=3)
    world.run(5)
    assert world.ready() == ["0.2", "1.6"]


def test_a_replacement_that_hangs_costs_nothing() -> None:
    world = serving(1)
    world.plans = {"0.2": replace(HANGS, abort=None)}
    world.observe(ev.Restart())
    world.run(60)
    assert world.history() == ["2 fork 0.2", "12 ABRT 0.2", "14 KILL 0.2", "14 end 0.2"]
    assert world.ready() == ["0.1"]


def test_a_worker_that_crashes_while_its_replacement_boots() -> None:
    world = serving(1)
    world.observe(ev.Restart())
    world.run(0.5)
    world.end("0.1", 1)
    world.run(5)
    assert world.history() == ["2 fork 0.2", "2.5 end 0.1", "3 ready 0.2"]
    assert world.said("exited")[-1].endswith("its replacement is starting")


def test_a_restart_goes_one_by_one() -> None:
    world = serving(3)
    world.observe(ev.Restart("cron"))
    world.run(9)
    assert [line for line in world.history() if "end" not in line] == lines("""
        2 fork 0.2
        3 ready 0.2
        3 fork 1.2
        3 TERM 0.1
        4 ready 1.2
        4 fork 2.2
        4 TERM 1.1
        5 ready 2.2
        5 TERM 2.1
    """)


def test_a_restart_revives_the_stopped_and_the_errored() -> None:
    world = serving(3, stop_exit_codes=frozenset({7}), max_restarts=1)
    world.plans = {"1.2": BROKEN}
    world.end("0.1", 7)
    world.end("1.1", 1)
    world.run(1)
    assert world.states() == ["stopped", "errored", "ready"]
    world.observe(ev.Restart(instances=frozenset({0, 1})))
    world.run(2)
    assert world.ready() == ["0.2", "1.3", "2.1"]


def test_a_reset_revives_the_errored_and_ends_waits() -> None:
    world = serving(3, stop_exit_codes=frozenset({7}), max_restarts=2, exp_backoff_restart_delay=9.0)
    world.plans = {"1.2": BROKEN, "1.3": BROKEN, "2.2": BROKEN}
    for name, code in [("0.1", 7), ("1.1", 1)]:
        world.end(name, code)
    world.run(12)
    world.end("2.1", 1)
    world.run(1)
    assert world.states() == ["stopped", "errored", "backoff"]
    world.observe(ev.Reset())
    world.run(1)
    assert world.states() == ["stopped", "ready", "ready"]


def test_reset_forgets_the_crashes() -> None:
    world = serving(1)
    world.end("0.1", 1)
    world.run(1.5)
    world.observe(ev.Reset())
    world.history()
    world.end("0.2", 1)
    assert world.history() == ["3.5 end 0.2", "3.5 fork 0.3"]


def test_a_worker_that_was_told_to_end_is_replaced_at_once() -> None:
    world = serving()
    world.observe(ev.AskedToRetire(world.pid("0.1"), "manual", draining=True))
    world.run(0.3)
    world.end("0.1", 0)
    world.run(2)
    assert world.history() == ["2 fork 0.2", "2.3 end 0.1", "3 ready 0.2"]
    assert world.fleet.restarts == {"manual": 1}
    assert not world.said("exited")


def test_a_worker_that_was_told_to_end_while_it_boots() -> None:
    world = new()
    world.run(0.5)
    world.observe(ev.AskedToRetire(world.pid("0.1"), "reload", draining=True))
    world.end("0.1", 0)
    world.run(2)
    assert world.history()[3:] == ["0.5 fork 0.2", "0.5 end 0.1", "1 ready 1.1", "1.5 ready 0.2"]
    assert not world.said("boot")


def test_a_drain_is_bounded() -> None:
    world = serving()
    world.plans = {"0.1": Plan(drain=None)}
    world.observe(ev.AskedToRetire(world.pid("0.1"), "manual", draining=True))
    world.run(10)
    assert world.history() == ["2 fork 0.2", "3 ready 0.2", "9 KILL 0.1", "9 end 0.1"]


def test_lifetimes_have_their_jitter() -> None:
    world = new(lifetime=lambda chance: 10 + 10 * chance)
    world.chance = 0.5
    world.run(0.9)
    world.run(19)
    assert [line for line in world.history() if "2" in line.split(".")[-1] and "ready" in line] == lines("""
        17 ready 0.2
        18 ready 1.2
    """)


def test_four_rows_are_never_shared() -> None:
    world = serving(1, graceful_timeout=20.0)
    world.plan = Plan(drain=None)
    for _ in range(3):
        world.observe(ev.Restart())
        world.run(2)
    world.observe(ev.Restart())
    world.run(1)
    assert world.ready() == ["0.4"]
    assert sorted(process.row for process in world.fleet.processes()) == [0, 1, 2, 3]
    world.end("0.2", 0)  # makes room
    world.run(0.5)
    assert sorted(process.row for process in world.fleet.processes()) == [0, 1, 2, 3]
    world.run(1)
    assert world.ready() == ["0.5"]


def test_a_vacant_slot_without_a_row_waits_for_the_next_that_ends() -> None:
    world = serving(1, graceful_timeout=20.0)
    for _ in range(4):
        world.plan = Plan(drain=None)
        worker = world.ready()[0]
        world.observe(ev.AskedToRetire(world.pid(worker), "manual", draining=True))
        world.run(1.5)
    assert world.states() == ["draining"]
    world.end("0.3", 0)
    world.run(2)
    assert world.ready() == ["0.5"]


def test_a_worker_that_starts_is_what_a_restart_leads_to() -> None:
    world = new(1)
    world.run(0.5)
    world.observe(ev.Restart())
    world.run(5)
    assert world.history()[1:] == ["0 fork 0.1", "1 ready 0.1"]


def test_a_worker_that_starts_is_not_replaced_when_it_asks() -> None:
    world = new(1)
    world.run(0.5)
    world.observe(ev.AskedToRetire(world.pid("0.1"), "max_requests"))
    world.run(5)
    assert world.history()[1:] == ["0 fork 0.1", "1 ready 0.1"]
