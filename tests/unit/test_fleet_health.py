"""The fleet by histories: workers that hang or take too much memory."""

from __future__ import annotations

from multicore_server.fleet import events as ev
from tests.unit.simulation import Plan, lines, over_memory, serving


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
    assert world.fleet.restarts == {"timeout": 1}


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
    assert world.fleet.restarts == {"manual": 1}


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


def test_soft_memory_is_not_damped_after_a_stable_time() -> None:
    world = serving(1)
    for name in ("0.1", "0.2", "0.3"):
        world.end(name, 1)
        world.run(2)
    world.run(60)
    world.history()
    over_memory(world, "0.4")
    assert world.history() == ["68 fork 0.5"]


def test_a_hung_worker_that_is_replaced_meanwhile() -> None:
    world = serving(1)
    world.plans = {"0.1": Plan(abort=None, drain=None)}
    world.observe(ev.Restart())
    world.run(0.5)
    world.observe(ev.Hung(world.pid("0.1"), 30.0))
    world.run(5)
    assert world.history() == lines("""
        2 fork 0.2
        2.5 ABRT 0.1
        3 ready 0.2
        3 TERM 0.1
        4.5 KILL 0.1
        4.5 end 0.1
    """)
    assert world.fleet.restarts == {"timeout": 1}


def test_hard_memory_is_killed_at_once() -> None:
    world = serving()
    over_memory(world, "0.1", hard=True)
    world.run(2)
    assert world.history() == ["2 KILL 0.1", "2 end 0.1", "2 fork 0.2", "3 ready 0.2"]
    assert world.fleet.restarts == {"memory": 1}


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
