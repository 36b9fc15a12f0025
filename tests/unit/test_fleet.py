"""The fleet by histories: what happened to whom and when, replayed by a simulated operating system.

A worker's name is instance.generation. By default it boots in 1 s and drains in 0.5 s. `try` is a fork with
the configuration of a reload that is not yet committed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from multicore_server.fleet import events as ev
from multicore_server.fleet.slots import Process, State
from multicore_server.ipc.identity import identity
from tests.unit.simulation import BROKEN, HANGS, Plan, lines, new, serving


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


def test_first_boots_that_fail_alike_say_why_once() -> None:
    world = new()
    world.plan = BROKEN
    world.run(1)
    how = "exited with code 1 before it was ready"
    assert [text.partition(";")[0] for text in world.said("boot")] == [
        f"{how}: no module named app",
        f"{how}, for the same reason",
    ]


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
    (text,) = world.said("boot")
    assert text == (
        "exited with code 1 before it was ready: no module named app; "
        "waiting for the other workers' first boot"
    )


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


def test_a_first_boot_that_hangs_is_the_reason() -> None:
    world = new()
    world.plan = HANGS
    world.run(20)
    late = "not ready within 10 s (listen_timeout)"
    assert world.halted == ev.Halt(3, f"no worker could boot: {late}")
    assert f"before it was ready: {late}; " in world.said("boot")[0]


def test_a_boot_may_take_any_time() -> None:
    world = new(1, listen_timeout=0.0)
    world.plan = Plan(boot=3600.0)
    world.run(3601)
    assert world.history() == lines("""
        0 scaled 1
        0 fork 0.1
        3600 ready 0.1
    """)


def test_a_worker_that_is_ready_too_late_is_not_taken_for_one() -> None:
    world = serving()
    world.plans = {"0.2": replace(HANGS, abort=0.5)}
    world.observe(ev.Restart(instances=frozenset({0})))
    world.run(10.2)
    world.observe(ev.BecameReady(world.pid("0.2")))  # crosses SIGABRT
    world.run(1)
    assert world.history() == ["2 fork 0.2", "12 ABRT 0.2", "12.5 end 0.2"]
    assert world.ready() == ["0.1", "1.1"]


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
        "errored after 4 unstable exits (max_restarts) until HUP, reset or restart"
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
    assert not world.fleet.restarts


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
    assert identity(2, 3, 4711) == "instance=2 gen=3 pid=4711"
    assert str(ev.Event("reload", "reload done")) == "reload done"


def test_a_worker_that_the_kernel_killed_for_memory() -> None:
    world = serving(1)
    pid = world.pid("0.1")
    del world.alive[pid]
    world.observe(ev.Exited(pid, signal="SIGKILL", oom=True))
    (text,) = world.said("exited")
    assert text.startswith("was killed by SIGKILL (out of memory) after")
    assert world.fleet.restarts == {"oom": 1}


def test_connections_go_to_the_rows_of_ready_workers() -> None:
    world = serving(2)
    world.observe(ev.Restart())
    assert world.fleet.serving_rows() == {0, 4}
    world.run(9)
    assert world.fleet.serving_rows() == {1, 5}
