"""The fleet by histories: what happened to whom and when, replayed by a simulated operating system.

A worker's name is instance.generation. By default it boots in 1 s and drains in 0.5 s. `try` is a fork with
the configuration of a reload that is not yet committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from multicore_server import events as ev
from multicore_server.fleet import Options
from multicore_server.policy import RestartPolicy
from multicore_server.slots import Process, State
from tests.unit.simulation import BROKEN, HANGS, MIB, Plan, Simulation, lines

OPTIONS = Options(listen_timeout=10.0, graceful_timeout=5.0)
POLICY = set(RestartPolicy.__dataclass_fields__)


def options(**settings: Any) -> Options:
    policy = {name: settings.pop(name) for name in POLICY & settings.keys()}
    return replace(OPTIONS, policy=RestartPolicy(**policy), **settings)


def new(workers: int = 2, **settings: Any) -> Simulation:
    """A fleet that has not begun; 0 s."""
    return Simulation(workers, options(**settings))


def serving(workers: int = 2, **settings: Any) -> Simulation:
    """A fleet that became ready at 1 s; 2 s."""
    world = new(workers, **settings)
    world.run(2)
    assert world.states() == ["ready"] * workers
    world.history()
    return world


def over_memory(world: Simulation, name: str, *, hard: bool = False) -> None:
    world.observe(ev.OverMemory(world.pid(name), hard, 300 * MIB, 200 * MIB))


def hup(world: Simulation, workers: int = 2, **settings: Any) -> None:
    """HUP, with a configuration that loads at once."""
    world.prepares = ev.ReloadPrepared(options(**settings), workers)
    world.observe(ev.Reload())


# --- starts ----------------------------------------------------------------------------------------------


def test_start() -> None:
    world = new()
    world.run(10)
    assert world.history() == lines("""
        0 scaled 2
        0 fork 0.1
        0 fork 1.1
        1 ready 0.1
        1 ready 1.1
    """)
    assert str(world.events[-1]) == "instance=1 gen=1 pid=102 ready after 1.00 s"


def test_the_first_boot_fails_everywhere() -> None:
    world = new()
    world.plans = {"0.1": BROKEN, "1.1": Plan(boot=0.7, fails=2, words="other words")}
    world.run(10)
    assert world.history() == lines("""
        0 scaled 2
        0 fork 0.1
        0 fork 1.1
        0.5 end 0.1
        0.7 end 1.1
        0.7 close
        0.7 halt 3
    """)
    assert world.halted == ev.Halt(3, "no worker could boot: no module named app")


def test_the_first_boot_fails_without_words() -> None:
    world = new(1)
    world.plan = Plan(boot=0.5, fails="SIGSEGV")
    world.run(1)
    assert world.halted == ev.Halt(3, "no worker could boot: was killed by SIGSEGV")


def test_no_process_can_be_made_at_the_first_start() -> None:
    world = new()
    world.plan = Plan(forks=False)
    world.run(1)
    assert world.halted == ev.Halt(3, "no worker could boot: could not be forked (no memory)")


def test_one_of_two_first_boots_fails() -> None:
    world = new()
    world.plans = {"0.1": BROKEN}
    world.run(10)
    assert world.history()[3:] == lines("""
        0.5 end 0.1
        1 ready 1.1
        1 fork 0.2
        2 ready 0.2
    """)
    assert world.said("boot") == [
        "exited with code 1 before it was ready: no module named app; waiting for the other workers' first boot"
    ]


@pytest.mark.parametrize(
    "settings",
    [{"autorestart": "false"}, {"stop_exit_codes": frozenset({1})}, {"max_restarts": 1}, {"max_restarts": 0}],
)
def test_a_first_boot_that_is_not_to_be_repeated(settings: dict[str, Any]) -> None:
    world = new(**settings)
    world.plans = {"0.1": BROKEN}
    world.run(10)
    assert world.states() == ["errored" if "max_restarts" in settings else "stopped", "ready"]


def test_a_boot_that_hangs() -> None:
    world = serving()
    world.plans = {"0.2": replace(HANGS, abort=None)}
    world.end("0.1", 1)
    world.run(14)
    assert world.history() == lines("""
        2 end 0.1
        2 fork 0.2
        12 ABRT 0.2
        14 KILL 0.2
        14 end 0.2
        14.1 fork 0.3
        15.1 ready 0.3
    """)
    assert world.said("timeout") == ["not ready within 10 s (listen_timeout); aborting it"]


def test_a_worker_that_is_ready_too_late_is_not_taken_for_one() -> None:
    world = serving()
    world.plans = {"0.2": replace(HANGS, abort=0.5)}
    world.observe(ev.Restart(instances=frozenset({0})))
    world.run(10.2)
    world.observe(ev.BecameReady(world.pid("0.2")))  # crosses SIGABRT
    world.run(1)
    assert world.history() == ["2 fork 0.2", "12 ABRT 0.2", "12.5 end 0.2"]
    assert world.ready() == ["0.1", "1.1"]


# --- crashes ---------------------------------------------------------------------------------------------


def test_a_crash_restarts_at_once() -> None:
    world = serving()
    world.end("0.1", "SIGSEGV")
    world.run(2)
    assert world.history() == ["2 end 0.1", "2 fork 0.2", "3 ready 0.2"]
    exited = next(event for event in world.events if event.kind == "exited")
    assert str(exited) == ("instance=0 gen=1 pid=101 was killed by SIGSEGV after 1.0 s; restarting at once")
    assert (exited.level, exited.reason) == ("error", "signal")


def test_a_crash_loop_is_slowed_and_given_up_while_the_rest_serves_on() -> None:
    world = serving(max_restarts=4)
    world.plans = {f"0.{generation}": BROKEN for generation in range(2, 9)}
    world.end("0.1", 1)
    world.run(60)
    assert world.history() == lines("""
        2 end 0.1
        2 fork 0.2
        2.5 end 0.2
        2.6 fork 0.3
        3.1 end 0.3
        3.25 fork 0.4
        3.75 end 0.4
        3.975 fork 0.5
        4.475 end 0.5
    """)
    assert world.states() == ["errored", "ready"]
    assert world.halted is None
    assert world.said("boot")[-1].endswith(
        "errored after 4 unstable exits (max_restarts) and left until HUP, reset or restart"
    )


def test_all_errored() -> None:
    world = serving(max_restarts=2)
    world.plan = BROKEN
    world.end("0.1", 1)
    world.end("1.1", 1)
    world.run(10)
    assert world.halted == ev.Halt(3, "every worker is errored")


def test_all_stopped() -> None:
    world = serving(autorestart="on-failure")
    world.end("0.1", 0)
    world.run(5)
    assert world.states() == ["stopped", "ready"]
    world.end("1.1", 0)
    assert world.halted == ev.Halt(0, "every worker has stopped")


def test_some_stopped_some_errored() -> None:
    world = serving(stop_exit_codes=frozenset({7}), max_restarts=1)
    world.plans = {"0.2": BROKEN}
    world.end("0.1", 1)
    world.end("1.1", 7)
    world.run(1)
    assert world.halted == ev.Halt(3, "every worker is errored")


def test_the_end_waits_for_workers_that_drain() -> None:
    world = serving(1, autorestart="false")
    world.plans = {"0.1": Plan(drain=3.0)}
    world.observe(ev.Restart())
    world.run(1.5)
    world.end("0.2", 1)
    assert world.halted is None
    world.run(5)
    assert world.history()[-2:] == ["6 end 0.1", "6 halt 0"]


def test_a_planned_replacement_of_a_stable_worker_clears_its_slot() -> None:
    world = serving()
    world.end("0.1", 1)
    world.run(1.5)
    world.end("0.2", 1)
    world.run(60)
    world.observe(ev.Restart())
    world.run(10)
    world.history()
    world.end("0.4", 1)  # would be the third early exit
    world.run(0.1)
    assert world.history() == ["73.5 end 0.4", "73.5 fork 0.5"]


def test_a_failed_fork_is_a_failed_boot() -> None:
    world = serving()
    world.plans = {"0.2": Plan(forks=False)}
    world.end("0.1", 1)
    world.run(2)
    assert world.history() == ["2 end 0.1", "2 fork 0.2", "2.1 fork 0.3", "3.1 ready 0.3"]


# --- hangs and memory ------------------------------------------------------------------------------------


def test_a_hung_worker_shows_its_stacks_and_is_killed() -> None:
    world = serving()
    world.plans = {"0.1": Plan(abort=None)}
    for _ in range(3):  # the fleet is told again and again
        world.observe(ev.Hung(world.pid("0.1"), 30.0))
        world.run(0.5)
    world.run(3)
    assert world.history() == lines("""
        2 ABRT 0.1
        4 KILL 0.1
        4 end 0.1
        4 fork 0.2
        5 ready 0.2
    """)
    assert world.fleet.endings.counts == {"timeout": 1}


def test_a_hung_worker_that_ends_at_abort() -> None:
    world = serving()
    world.observe(ev.Hung(world.pid("0.1"), 30.0))
    world.run(2)
    assert world.history() == ["2 ABRT 0.1", "2 end 0.1", "2 fork 0.2", "3 ready 0.2"]


def test_a_worker_that_hangs_while_draining() -> None:
    world = serving(1)
    world.plans = {"0.1": Plan(drain=None, abort=None)}
    world.observe(ev.Restart())
    world.run(2)
    world.observe(ev.Hung(world.pid("0.1"), 30.0))
    world.run(5)
    assert world.history()[-3:] == ["4 ABRT 0.1", "6 KILL 0.1", "6 end 0.1"]
    assert world.fleet.endings.counts == {"manual": 1}


def test_soft_memory_is_replaced_once() -> None:
    world = serving()
    world.run(60)
    for _ in range(5):
        over_memory(world, "0.1")
        world.run(0.1)
    world.run(5)
    assert world.history() == lines("""
        62 fork 0.2
        63 ready 0.2
        63 TERM 0.1
        63.5 end 0.1
    """)
    assert world.said("memory") == ["uses 300 MiB, more than 200 MiB (max_memory_restart); replacing it"]


def test_soft_memory_soon_after_ready_is_damped() -> None:
    world = serving(1)
    waits = []
    for generation in range(1, 7):
        over_memory(world, f"0.{generation}")
        asked = world.now
        world.run(2.5)
        forked = next(line for line in world.history() if "fork" in line)
        waits.append(round(float(forked.split()[0]) - asked, 3))
    assert waits == [0, 0.1, 0.15, 0.225, 0.338, 0.506]


def test_hard_memory_is_killed_at_once() -> None:
    world = serving()
    over_memory(world, "0.1", hard=True)
    world.run(2)
    assert world.history() == ["2 KILL 0.1", "2 end 0.1", "2 fork 0.2", "3 ready 0.2"]
    assert world.fleet.endings.counts == {"memory": 1}


def test_hard_memory_holds_also_for_a_boot_and_a_drain() -> None:
    world = serving(1)
    world.plans = {"0.1": Plan(drain=None)}
    world.observe(ev.Restart())
    over_memory(world, "0.2", hard=True)
    world.run(0.5)
    assert world.history() == ["2 fork 0.2", "2 KILL 0.2", "2 end 0.2"]
    world.observe(ev.Restart())
    world.run(1.2)
    over_memory(world, "0.1", hard=True)
    world.run(1)
    assert world.history()[-2:] == ["3.7 KILL 0.1", "3.7 end 0.1"]


# --- planned replacements --------------------------------------------------------------------------------

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
    assert world.fleet.endings.counts == {reason: 1}
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


@pytest.mark.parametrize("reason", ASKS.keys() - set(PERSISTENT))
def test_a_failed_replacement_that_was_asked_for_once_is_dropped(reason: str) -> None:
    world = asked(reason)
    world.plans["0.2"] = BROKEN
    ASKS[reason](world)
    world.run(60)
    assert world.history() == ["31 fork 0.2", "31.5 end 0.2"]
    assert world.ready() == ["0.1", "1.1"]
    assert world.said("boot")[-1].endswith("the old worker goes on")


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
    assert world.fleet.endings.counts == {"manual": 1}
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
    world.run(2)
    assert world.ready() == ["0.4"]
    assert sorted(process.row for process in world.fleet.processes()) == [0, 1, 2, 3]
    world.end("0.2", 0)  # makes room
    world.run(2)
    assert world.ready() == ["0.5"]
    assert sorted(process.row for process in world.fleet.processes()) == [0, 1, 2, 3]


def test_a_vacant_slot_without_a_row_waits() -> None:
    world = serving(1, graceful_timeout=20.0)
    for _ in range(4):
        world.plan = Plan(drain=None)
        worker = world.ready()[0]
        world.observe(ev.AskedToRetire(world.pid(worker), "manual", draining=True))
        world.run(2)
    assert world.states() == ["draining"]
    world.end("0.3", 0)
    world.run(2)
    assert world.ready() == ["0.5"]


# --- scale -----------------------------------------------------------------------------------------------


def test_scale_up_and_down() -> None:
    world = serving()
    world.observe(ev.Scale(3))
    world.run(2)
    world.observe(ev.Scale(1))
    world.run(1)
    assert world.history() == lines("""
        2 scaled 3
        2 fork 2.1
        3 ready 2.1
        4 scaled 1
        4 TERM 1.1
        4 TERM 2.1
        4.5 end 1.1
        4.5 end 2.1
    """)
    assert list(world.fleet.slots) == [0]
    assert world.said("draining") == ["draining (scaled down)"] * 2
    assert not world.fleet.endings.counts


def test_scale_up_again_while_draining() -> None:
    world = serving()
    world.plans = {"1.1": Plan(drain=4.0)}
    world.observe(ev.Scale(1))
    world.run(1)
    world.observe(ev.Scale(3))
    world.run(5)
    assert world.history() == lines("""
        2 scaled 1
        2 TERM 1.1
        3 scaled 3
        3 fork 1.2
        3 fork 2.1
        4 ready 1.2
        4 ready 2.1
        6 end 1.1
    """)


def test_generations_go_on_after_a_slot_was_away() -> None:
    world = serving()
    world.observe(ev.Scale(1))
    world.run(1)
    world.observe(ev.Scale(2))
    world.run(2)
    assert world.ready() == ["0.1", "1.2"]


def test_a_slot_that_was_errored_comes_back_as_new() -> None:
    world = serving(max_restarts=1)
    world.plans = {"1.1": Plan(drain=None), "1.2": BROKEN}
    world.observe(ev.AskedToRetire(world.pid("1.1"), "manual", draining=True))
    world.run(1)
    assert world.states() == ["ready", "errored"]
    world.observe(ev.Scale(1))
    world.observe(ev.Scale(2))
    world.run(1)
    assert world.states() == ["ready", "ready"]


def test_scale_beyond_the_room_is_refused() -> None:
    world = serving()
    world.observe(ev.Scale(9))
    assert world.history() == []
    assert world.fleet.workers == 2
    assert world.said("refused")[0].startswith("9 workers are more than the 8 that there is room for")


def test_scale_to_none_and_back() -> None:
    world = serving()
    world.observe(ev.Scale(0))
    world.run(9)
    assert world.halted is None
    assert not world.alive
    world.observe(ev.Scale(2))
    world.run(9)
    assert world.ready() == ["0.2", "1.2"]


def test_scale_by_a_negative_number_is_ignored() -> None:
    world = serving()
    world.observe(ev.Scale(-1))
    assert (world.history(), world.fleet.workers) == ([], 2)


def test_scale_down_while_booting() -> None:
    world = new()
    world.plans = {"1.1": HANGS}
    world.run(0.5)
    world.observe(ev.Scale(1))
    world.run(2)
    assert world.history()[3:] == ["0.5 scaled 1", "0.5 TERM 1.1", "1 ready 0.1", "1 end 1.1"]


def test_the_lowest_free_number_is_taken() -> None:
    world = serving(3)
    world.observe(ev.Scale(1))
    world.run(1)
    world.observe(ev.Scale(2))
    world.run(2)
    assert sorted(world.fleet.slots) == [0, 1]


# --- reload ----------------------------------------------------------------------------------------------


def test_reload() -> None:
    world = serving(3)
    hup(world, 3)
    world.run(9)
    assert world.history() == lines("""
        2 prepare
        2 try 0.2
        3 ready 0.2
        3 commit
        3 fork 1.2
        3 TERM 0.1
        3.5 end 0.1
        4 ready 1.2
        4 fork 2.2
        4 TERM 1.1
        4.5 end 1.1
        5 ready 2.2
        5 TERM 2.1
        5.5 end 2.1
    """)
    assert world.said("reload") == ["reload done: 3 workers replaced in 3.0 s"]
    assert world.fleet.endings.counts == {"reload": 3}


def test_reload_by_twos() -> None:
    world = serving(3, reload_surge=2)
    hup(world, 3, reload_surge=2)
    world.run(9)
    assert [line for line in world.history() if "ready" in line or "fork" in line or "try" in line] == lines("""
        2 try 0.2
        2 try 1.2
        3 ready 0.2
        3 ready 1.2
        3 fork 2.2
        4 ready 2.2
    """)


def test_a_broken_app_is_rolled_back() -> None:
    world = serving(3, reload_surge=2)
    world.plans = {"0.2": BROKEN, "1.2": HANGS}
    hup(world, 3)
    world.run(60)
    assert world.history() == lines("""
        2 prepare
        2 try 0.2
        2 try 1.2
        2.5 end 0.2
        2.5 drop
        2.5 TERM 1.2
        3 end 1.2
    """)
    assert world.ready() == ["0.1", "1.1", "2.1"]
    assert world.said("reload") == ["reload rolled back: no module named app; the old workers go on"]


def test_a_reload_whose_app_hangs_is_rolled_back() -> None:
    world = serving(1)
    world.plans = {"0.2": replace(HANGS, abort=None)}
    hup(world, 1)
    world.run(60)
    assert world.history()[2:] == ["12 ABRT 0.2", "14 KILL 0.2", "14 end 0.2", "14 drop"]
    assert world.said("reload")[0].startswith("reload rolled back: was killed by SIGKILL")


def test_a_reload_that_cannot_fork_is_rolled_back() -> None:
    world = serving(reload_surge=2)
    world.plans = {"0.2": Plan(forks=False)}
    hup(world)
    world.run(9)
    assert world.history() == ["2 prepare", "2 try 0.2", "2 try 1.2", "2 drop", "2 TERM 1.2", "2.5 end 1.2"]


def test_a_configuration_that_does_not_load() -> None:
    world = serving()
    world.prepares = ev.ReloadFailed("gunicorn.conf.py, line 3: invalid syntax")
    world.observe(ev.Reload())
    world.run(9)
    assert world.history() == ["2 prepare"]
    text = "reload failed: gunicorn.conf.py, line 3: invalid syntax; everything stays as it was"
    assert world.said("reload") == [text]


def test_hup_after_a_failed_one_works() -> None:
    world = serving(1)
    world.plans = {"0.2": BROKEN}
    hup(world, 1)
    world.run(9)
    hup(world, 1)
    world.run(9)
    assert world.ready() == ["0.3"]


@pytest.mark.parametrize("times", [1, 5])
def test_hup_during_a_reload_means_one_more(times: int) -> None:
    world = serving(1)
    hup(world, 1)
    world.run(0.5)
    for _ in range(times):
        world.observe(ev.Reload())
    world.run(9)
    assert [line for line in world.history() if "TERM" not in line and "end" not in line] == lines("""
        2 prepare
        2 try 0.2
        3 ready 0.2
        3 commit
        3 prepare
        3 try 0.3
        4 ready 0.3
        4 commit
    """)


def test_hup_during_a_reload_that_fails_means_one_more() -> None:
    world = serving(1)
    world.plans = {"0.2": BROKEN}
    hup(world, 1)
    world.observe(ev.Reload())
    world.run(9)
    assert world.ready() == ["0.3"]


def test_hup_while_the_configuration_loads_means_one_more() -> None:
    world = serving(1)
    world.observe(ev.Reload())
    world.observe(ev.Reload())
    world.observe(ev.ReloadFailed("a typo"))
    world.run(1)
    assert world.history() == ["2 prepare", "2 prepare"]


def test_a_reload_scales() -> None:
    world = serving()
    hup(world, 3)
    world.run(5)
    assert world.ready() == ["0.2", "1.2", "2.1"]
    hup(world, 1)
    world.run(5)
    assert world.ready() == ["0.3"]
    assert not world.fleet.reloads.current
    world.history()
    hup(world, 99)
    world.run(5)
    assert world.ready() == ["0.4"]


def test_a_reload_brings_its_settings() -> None:
    world = serving(1)
    hup(world, 1, listen_timeout=3.0)
    world.run(2)
    world.plans = {"0.3": HANGS}
    world.history()
    world.observe(ev.Restart())
    world.run(3)
    assert world.history() == ["4 fork 0.3", "7 ABRT 0.3", "7 end 0.3"]


def test_a_reload_of_no_workers() -> None:
    world = serving()
    world.observe(ev.Scale(0))
    world.run(1)
    world.history()
    hup(world, 2)
    world.run(3)
    assert world.history() == lines("""
        3 prepare
        3 commit
        3 scaled 2
        3 fork 0.2
        3 fork 1.2
        4 ready 0.2
        4 ready 1.2
    """)


def resting() -> Simulation:
    """One stopped, one errored, one in backoff, one ready. 15 s."""
    settings = {"stop_exit_codes": frozenset({7}), "max_restarts": 2, "exp_backoff_restart_delay": 9.0}
    world = serving(4, **settings)
    world.plans = {"1.2": BROKEN, "1.3": BROKEN, "2.2": BROKEN}
    world.end("0.1", 7)
    world.end("1.1", 1)
    world.run(12)
    world.end("2.1", 1)
    world.run(1)
    assert world.states() == ["stopped", "errored", "backoff", "ready"]
    assert world.now == 15.0
    world.history()
    return world


def test_a_reload_revives() -> None:
    world = resting()
    hup(world, 4)
    world.run(5)
    assert world.ready() == ["0.2", "1.4", "2.3", "3.2"]


def test_a_rollback_puts_back_what_it_revived() -> None:
    world = resting()
    world.plan = BROKEN
    hup(world, 4)
    world.run(3)
    assert world.states() == ["stopped", "errored", "backoff", "ready"]
    world.plan = Plan()
    world.history()
    world.run(9)
    assert world.history() == ["23.5 fork 2.4", "24.5 ready 2.4"]


def test_a_crash_during_the_trial_restarts_with_what_is_in_force() -> None:
    world = serving()
    world.plans = {"0.2": Plan(boot=5.0)}
    hup(world)
    world.run(0.5)
    world.end("1.1", 1)
    world.run(9)
    assert [line for line in world.history() if "end" not in line] == lines("""
        2 prepare
        2 try 0.2
        2.5 fork 1.2
        3.5 ready 1.2
        7 ready 0.2
        7 commit
        7 fork 1.3
        7 TERM 0.1
        8 ready 1.3
        8 TERM 1.2
    """)


def test_a_failed_boot_of_the_old_version_gives_the_trial_its_turn() -> None:
    world = serving(1)
    world.plans = {"0.2": Plan(boot=0.5, fails=1)}
    world.end("0.1", 1)
    hup(world, 1)
    world.run(3)
    assert world.history() == lines("""
        2 end 0.1
        2 fork 0.2
        2 prepare
        2.5 end 0.2
        2.5 try 0.3
        3.5 ready 0.3
        3.5 commit
    """)


def test_hup_rescues_a_first_start_that_fails() -> None:
    world = new()
    world.plan = BROKEN
    world.run(0.3)
    hup(world)
    world.plan = Plan()
    world.run(5)
    assert world.ready() == ["0.2", "1.2"]


def test_hup_does_not_rescue_a_first_start_that_still_fails() -> None:
    world = new()
    world.plan = BROKEN
    world.run(0.3)
    hup(world)
    world.run(5)
    assert world.history()[-2:] == ["1 close", "1 halt 3"]


def test_a_worker_that_is_not_to_be_restarted_is_so_by_the_reload() -> None:
    world = serving(stop_exit_codes=frozenset({7}))
    hup(world)
    world.end("1.1", 7)
    world.run(5)
    assert world.ready() == ["0.2", "1.2"]
    assert world.said("exited")[0].endswith("the reload that is under way starts it anew")


def test_a_rollback_keeps_what_was_wanted_before_and_during() -> None:
    world = serving(3)
    world.plans = {"0.2": HANGS}
    hup(world, 3)
    for name in ("0.1", "2.1"):
        world.observe(ev.AskedToRetire(world.pid(name), "max_requests"))
    world.run(20)
    assert world.ready() == ["0.3", "1.1", "2.2"]


def test_a_worker_that_cannot_be_replaced_after_the_commit_goes_on() -> None:
    world = serving(max_restarts=3)
    world.plans = {f"1.{generation}": BROKEN for generation in (2, 3, 4)}
    hup(world, max_restarts=3)
    world.run(30)
    assert world.history()[4:] == lines("""
        3 fork 1.2
        3 TERM 0.1
        3.5 end 1.2
        3.5 fork 1.3
        3.5 end 0.1
        4 end 1.3
        4.1 fork 1.4
        4.6 end 1.4
    """)
    assert world.ready() == ["0.2", "1.1"]
    assert world.said("reload") == [
        "reload incomplete: 1 worker replaced in 2.6 s, but not instance 1 (see above)"
    ]


def test_a_worker_that_crashes_after_the_commit_comes_back_as_new() -> None:
    world = serving(3)
    world.plans = {"1.2": HANGS}
    hup(world, 3)
    world.run(1.5)
    world.end("2.1", 1)
    world.run(5)
    assert "3.5 fork 2.2" in world.history()
    assert world.ready() == ["0.2", "1.1", "2.2"]


def test_scale_up_during_the_trial() -> None:
    world = serving(1)
    world.plans = {"0.2": Plan(boot=3.0)}
    hup(world, 2)
    world.run(1)
    world.observe(ev.Scale(2))
    world.run(9)
    assert [line for line in world.history() if "end" not in line] == lines("""
        2 prepare
        2 try 0.2
        3 scaled 2
        3 fork 1.1
        4 ready 1.1
        5 ready 0.2
        5 commit
        5 fork 1.2
        5 TERM 0.1
        6 ready 1.2
        6 TERM 1.1
    """)


def test_scale_to_none_and_back_during_the_trial() -> None:
    world = serving(1)
    world.plans = {"0.2": HANGS, "0.4": BROKEN}
    hup(world, 1)
    world.run(1)
    world.observe(ev.Scale(0))
    world.observe(ev.Scale(1))
    world.run(9)
    assert [line for line in world.history() if "end" not in line] == lines("""
        2 prepare
        2 try 0.2
        3 scaled 0
        3 scaled 1
        3 fork 0.3
        3 TERM 0.1
        3 TERM 0.2
        4 ready 0.3
        4 try 0.4
        4.5 drop
    """)
    assert world.ready() == ["0.3"]


# --- shutdown --------------------------------------------------------------------------------------------


def test_term_drains() -> None:
    world = serving()
    world.observe(ev.Stop(graceful=True))
    world.run(9)
    assert world.history() == lines("""
        2 close
        2 TERM 0.1
        2 TERM 1.1
        2.5 end 0.1
        2.5 end 1.1
        2.5 halt 0
    """)
    assert world.halted == ev.Halt(0, None)
    assert not world.fleet.endings.counts
    assert world.said("draining") == ["draining (the server is stopping)"] * 2


def test_int_is_quick() -> None:
    world = serving()
    world.plan = Plan(drain=None)
    world.observe(ev.Stop(graceful=False))
    world.run(9)
    assert world.history() == lines("""
        2 close
        2 QUIT 0.1
        2 QUIT 1.1
        4 KILL 0.1
        4 KILL 1.1
        4 end 0.1
        4 end 1.1
        4 halt 0
    """)


def test_int_after_term() -> None:
    world = serving(1)
    world.plan = Plan(drain=None)
    world.observe(ev.Stop(graceful=True))
    world.run(1)
    world.observe(ev.Stop(graceful=False))
    world.observe(ev.Stop(graceful=False))
    world.run(9)
    assert world.history() == lines("""
        2 close
        2 TERM 0.1
        3 QUIT 0.1
        5 KILL 0.1
        5 end 0.1
        5 halt 0
    """)


def test_int_never_prolongs() -> None:
    world = serving(1)
    world.plan = Plan(drain=None)
    world.observe(ev.Stop(graceful=True))
    world.run(6.5)
    world.observe(ev.Stop(graceful=False))
    world.run(9)
    assert world.history()[-3:] == ["9 KILL 0.1", "9 end 0.1", "9 halt 0"]


def test_shutdown_delay_answers_on() -> None:
    world = serving(1, shutdown_delay=10.0)
    world.observe(ev.Stop(graceful=True))
    world.run(20)
    assert world.history() == ["12 close", "12 TERM 0.1", "12.5 end 0.1", "12.5 halt 0"]
    assert world.said("stopping") == ["still answering for 10 s (shutdown_delay)"]


@pytest.mark.parametrize("graceful", [True, False])
def test_a_second_signal_cuts_shutdown_delay_short(graceful: bool) -> None:
    world = serving(1, shutdown_delay=10.0)
    world.observe(ev.Stop(graceful=True))
    world.run(3)
    world.observe(ev.Stop(graceful=graceful))
    world.run(9)
    signal = "TERM" if graceful else "QUIT"
    assert world.history() == ["5 close", f"5 {signal} 0.1", "5.5 end 0.1", "5.5 halt 0"]


def test_shutdown_delay_has_no_point_without_workers() -> None:
    world = serving(1, shutdown_delay=10.0)
    world.observe(ev.Stop(graceful=True))
    world.run(3)
    world.end("0.1", 1)
    assert world.history() == ["5 end 0.1", "5 close", "5 halt 0"]


def test_nothing_planned_begins_during_shutdown_delay() -> None:
    world = serving(shutdown_delay=10.0, lifetime=lambda _: 5.0)
    world.observe(ev.Restart())
    world.observe(ev.Stop(graceful=True))
    world.observe(ev.Reload())
    world.observe(ev.Scale(4))
    world.run(5)
    over_memory(world, "1.1")
    world.run(2)
    assert world.history() == ["2 fork 0.2", "3 ready 0.2", "3 TERM 0.1", "3.5 end 0.1"]


STATES: dict[str, Callable[[], Simulation]] = {}


def state(make: Callable[[], Simulation]) -> Callable[[], Simulation]:
    STATES[make.__name__] = make
    return make


@state
def boot() -> Simulation:
    world = new()
    world.plan = HANGS
    world.run(0.5)
    return world


@state
def first_boot_failed() -> Simulation:
    world = new()
    world.plans = {"0.1": BROKEN, "1.1": HANGS}
    world.run(0.6)
    return world


@state
def backoff() -> Simulation:
    world = serving(1, exp_backoff_restart_delay=9.0)
    world.plan = BROKEN
    world.end("0.1", 1)
    world.run(1)
    assert world.states() == ["backoff"]
    return world


@state
def preparing() -> Simulation:
    world = serving()
    world.observe(ev.Reload())
    world.observe(ev.Reload())
    return world


@state
def trial() -> Simulation:
    world = serving()
    world.plans = {"0.2": HANGS}
    hup(world)
    world.observe(ev.Reload())
    world.run(0.5)
    return world


@state
def rolling() -> Simulation:
    world = serving()
    world.plans = {"1.2": HANGS, "0.1": Plan(drain=4.0)}
    hup(world)
    world.observe(ev.Reload())
    world.run(1.5)
    return world


@state
def replacing() -> Simulation:
    world = serving()
    world.plans = {"0.2": HANGS}
    world.observe(ev.Restart())
    return world


@state
def hanging() -> Simulation:
    world = serving()
    world.plans = {"0.1": Plan(abort=None, drain=None)}
    world.observe(ev.Hung(world.pid("0.1"), 30.0))
    world.run(1)
    return world


@state
def scaled_to_none() -> Simulation:
    world = serving()
    world.observe(ev.Scale(0))
    return world


@state
def errored() -> Simulation:
    world = resting()
    world.history()
    return world


@state
def in_shutdown_delay() -> Simulation:
    world = serving(shutdown_delay=50.0)
    world.observe(ev.Stop(graceful=True))
    world.run(1)
    return world


@state
def unanswered_forks() -> Simulation:
    world = new()
    world.holds_forks = True
    world.run(0)
    return world


@pytest.mark.parametrize("graceful", [True, False], ids=["term", "int"])
@pytest.mark.parametrize("make", STATES.values(), ids=STATES)
def test_a_stop_acts_at_once_in_every_state(make: Callable[[], Simulation], graceful: bool) -> None:
    world = make()
    world.history()
    world.observe(ev.Stop(graceful))
    world.holds_forks = False
    world.answer_forks()
    at_once = world.history()
    assert f"{world.now:g} close" in at_once
    told = {line.split()[-1] for line in at_once if "TERM" in line or "QUIT" in line}
    assert graceful or told == {world.name(pid) for pid in world.alive}
    world.run(5)
    assert world.halted == ev.Halt(0, None)
    assert not [line for line in world.history() if "fork" in line or "try" in line or "prepare" in line]


def test_a_stop_while_the_configuration_loads_drops_it_once() -> None:
    world = preparing()
    world.history()
    world.observe(ev.Stop(graceful=True))
    world.observe(ev.ReloadPrepared(OPTIONS, 2))
    world.run(1)
    assert [line for line in world.history() if "drop" in line] == ["2 drop"]


def test_a_stop_while_a_bad_configuration_loads() -> None:
    world = preparing()
    world.observe(ev.Stop(graceful=True))
    world.observe(ev.ReloadFailed("a typo"))
    world.run(1)
    assert world.halted == ev.Halt(0, None)
    assert world.said("reload")[1:] == ["reload rolled back: the server is stopping; the old workers go on"]


def test_nothing_happens_after_the_end() -> None:
    world = serving(1)
    world.observe(ev.Stop(graceful=True))
    world.run(1)
    for late in (ev.Stop(graceful=False), ev.Reload(), ev.Restart(), ev.Reset(), ev.Scale(3)):
        world.observe(late)
    world.run(100)
    assert world.history()[-1] == "2.5 halt 0"


# --- the rest --------------------------------------------------------------------------------------------


def test_signals_for_a_worker_that_is_gone_by_then_are_not_sent() -> None:
    world = serving(1)
    pid = world.pid("0.1")
    world.fleet.observe(ev.Hung(pid, 30.0), world.now)
    world.fleet.observe(ev.Exited(pid, 1), world.now)
    del world.alive[pid]
    world.settle()
    assert world.history() == ["2 fork 0.2"]


def test_reports_about_strangers_are_ignored() -> None:
    world = serving(1)
    for stray in (
        ev.BecameReady(9),
        ev.AskedToRetire(9, "manual"),
        ev.Exited(9, 1),
        ev.Hung(9, 1.0),
        ev.OverMemory(9, True, 2, 1),
    ):
        world.observe(stray)
    assert world.history() == []


def test_a_fork_that_is_answered_late_gets_its_signal_then() -> None:
    world = serving(1)
    world.holds_forks = True
    world.observe(ev.Scale(2))
    world.observe(ev.Scale(1))
    assert world.history() == ["2 scaled 2", "2 scaled 1"]
    world.answer_forks()
    world.run(1)
    assert world.history() == ["2 fork 1.1", "2 TERM 1.1", "2.5 end 1.1"]


def test_a_fork_that_fails_late() -> None:
    world = serving(1)
    world.holds_forks = True
    world.plans = {"1.1": Plan(forks=False)}
    world.observe(ev.Scale(2))
    world.observe(ev.Scale(1))
    world.answer_forks()
    assert list(world.fleet.slots) == [0]


def test_find() -> None:
    world = serving(2)
    found = world.fleet.find(world.pid("1.1"))
    assert found is not None
    slot, process = found
    assert (slot.instance, process.generation, process.state) == (1, 1, State.READY)
    assert world.fleet.find(9) is None


def test_processes_only_move_onward() -> None:
    process = Process(0, 1, 0, 0.0)
    process.move(State.DRAINING, 1.0)
    with pytest.raises(ValueError, match="a draining process cannot become ready"):
        process.move(State.READY, 2.0)


def test_identity() -> None:
    assert ev.identity(2, 3, 4711) == "instance=2 gen=3 pid=4711"
    assert str(ev.Event("reload", "reload done")) == "reload done"
