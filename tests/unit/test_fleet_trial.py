"""The fleet by histories: what else happens while a reload is on trial, and what a rollback puts back."""

from __future__ import annotations

from multicore_server.fleet import events as ev
from tests.unit.simulation import BROKEN, HANGS, OPTIONS, Plan, hup, lines, new, over_memory, resting, serving


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


def test_a_rollback_does_not_forgive() -> None:
    world = resting()
    world.plan = BROKEN
    hup(world, 4)
    world.run(10)
    assert world.states() == ["stopped", "errored", "errored", "ready"]
    assert world.fleet.slots[2].generation == 4


def test_a_rollback_puts_back_a_slot_that_waited_for_the_first_worker() -> None:
    world = new()
    world.plans = {"0.1": BROKEN, "0.2": Plan(boot=2, fails=1), "1.2": HANGS}
    world.run(0.7)
    hup(world)
    world.run(1)
    assert world.ready() == ["1.1"]
    world.run(5)
    assert world.ready() == ["0.3", "1.1"]


def test_a_rollback_puts_back_the_wait_for_the_next_attempt() -> None:
    world = serving(1, exp_backoff_restart_delay=9.0)
    world.plans = {"0.2": BROKEN, "0.3": BROKEN}
    over_memory(world, "0.1")
    world.run(2)
    hup(world, 1)
    world.run(20)
    assert [line for line in world.history() if "fork" in line or "try" in line] == lines("""
        2 fork 0.2
        4 try 0.3
        11.5 fork 0.4
    """)


def test_a_soft_memory_limit_waits_for_the_reload() -> None:
    world = serving()
    hup(world)
    over_memory(world, "1.1")
    world.run(5)
    assert world.ready() == ["0.2", "1.2"]
    assert not world.said("memory")


def test_a_reload_that_loads_may_be_the_rescue() -> None:
    world = serving(1, autorestart="false")
    world.observe(ev.Reload())
    world.end("0.1", 1)
    assert world.halted is None
    world.observe(ev.ReloadPrepared(OPTIONS, 1))
    world.run(2)
    assert world.ready() == ["0.2"]


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
        7 TERM 0.1
        7 fork 1.3
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
    assert world.said("exited")[0].endswith("the reload in progress starts it again")


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
        3 TERM 0.1
        3 fork 1.2
        3.5 end 0.1
        3.5 end 1.2
        3.5 fork 1.3
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
        5 TERM 0.1
        5 fork 1.2
        6 ready 1.2
        6 TERM 1.1
    """)


def test_scale_to_none_and_back_during_the_trial() -> None:
    world = serving(1)
    world.plans = {"0.2": HANGS, "0.4": BROKEN}
    hup(world, 1)
    world.run(1)
    world.fleet.observe(ev.Scale(0), world.now)  # no tick between the two
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


def test_scale_during_the_trial_outranks_the_configuration() -> None:
    world = serving(1)
    hup(world, 1)
    world.observe(ev.Scale(3))
    world.observe(ev.Scale(9))  # refused
    world.run(9)
    assert world.ready() == ["0.2", "1.2", "2.2"]


def test_scale_to_none_during_the_trial() -> None:
    world = serving(1)
    hup(world, 1)
    world.observe(ev.Scale(0))
    world.run(9)
    assert world.history()[-3:] == ["2 TERM 0.2", "2.5 end 0.1", "2.5 end 0.2"]
    assert not world.fleet.reloading


def test_a_rollback_leaves_a_worker_that_crashed_meanwhile_in_its_backoff() -> None:
    world = serving(2, restart_delay=5.0)
    world.plans = {"0.2": Plan(boot=2.0, fails=1)}
    hup(world, 2, restart_delay=5.0)
    world.end("1.1", 1)
    world.run(2)
    assert world.states() == ["ready", "backoff"]
    world.history()
    world.run(9)
    assert world.history() == ["7 fork 1.2", "8 ready 1.2"]
