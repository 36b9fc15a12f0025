"""An arbiter that was late itself judges nobody."""

from __future__ import annotations

import pytest

from multicore_server.arbiter.lateness import TOLERANCE, Lateness
from multicore_server.fleet import events as ev
from tests.unit.simulation import HANGS, Plan, Simulation, new


def test_the_first_check_is_never_late() -> None:
    assert Lateness().check(1e9) == 0.0


@pytest.mark.parametrize(
    ("wait", "took", "late"),
    [
        (1.0, 1.0, 0.0),
        (1.0, 0.1, 0.0),  # something has arrived
        (1.0, 1.0 + TOLERANCE, 0.0),
        (1.0, 61.0, 60.0),
        (0.0, 5.0, 5.0),  # while it was awake
    ],
)
def test_late_is_what_was_not_expected(wait: float, took: float, late: float) -> None:
    lateness = Lateness()
    lateness.check(100.0, wait)
    assert lateness.check(100.0 + took) == late


def test_a_lateness_is_told_once() -> None:
    lateness = Lateness()
    lateness.check(0.0)
    assert lateness.check(60.0) == 60.0
    assert lateness.check(60.0) == 0.0


# --- what the fleet makes of it ---


def paused(world: Simulation, seconds: float) -> None:
    """The whole container stands still, and the arbiter notices when it goes on."""
    world.now += seconds
    world.observe(ev.Paused(seconds))


def test_a_boot_gets_as_much_more_time_as_the_pause_took() -> None:
    world = new(1, listen_timeout=10.0)
    world.plan = HANGS
    world.run(5)
    paused(world, 60.0)
    world.run(4.9)
    assert not world.said("timeout")
    world.run(0.2)
    assert world.said("timeout")


def test_a_worker_that_drains_gets_its_time_too() -> None:
    world = new(1, graceful_timeout=10.0)
    world.plan = Plan(drain=None)
    world.run(2)
    world.observe(ev.Stop(graceful=True))
    paused(world, 60.0)
    world.run(11)
    assert not world.said("killed")
    world.run(2)
    assert world.said("killed")


@pytest.mark.parametrize("left", [0.05, 0.5])
def test_a_pause_just_before_a_deadline_leaves_time_to_read_what_arrived(left: float) -> None:
    world = new(1, listen_timeout=10.0)
    world.plan = HANGS
    world.run(10.0 - left)
    paused(world, 60.0)
    world.leap(left)
    assert not world.said("timeout")
    world.observe(ev.BecameReady(world.pid("0.1")))
    world.run(60)
    assert world.states() == ["ready"]
    assert not world.said("timeout")


def test_a_boot_that_hangs_is_found_after_a_pause_just_before_its_deadline() -> None:
    world = new(1, listen_timeout=10.0)
    world.plan = HANGS
    world.run(9.9)
    paused(world, 60.0)
    world.run(1.1)
    assert world.said("timeout")


def test_a_worker_that_is_aborted_gets_its_time_to_dump_its_stacks() -> None:
    world = new(1)
    world.plan = Plan(abort=None)
    world.run(2)
    world.observe(ev.Hung(world.pid("0.1"), 30.0))
    paused(world, 60.0)
    world.run(1.9)
    assert not world.said("killed")
    world.run(0.2)
    assert world.said("killed")


def test_a_pause_is_no_part_of_shutdown_delay() -> None:
    world = new(1, shutdown_delay=5.0)
    world.run(2)
    world.observe(ev.Stop(graceful=True))
    world.history()
    world.run(1)
    paused(world, 60.0)
    assert world.history() == []
    world.run(5)
    assert world.history()[0] == "67 close"


def test_a_worker_that_serves_has_no_deadline_to_move() -> None:
    world = new(1)
    world.run(2)
    paused(world, 60.0)
    world.run(60)
    assert world.history()[1:] == ["0 fork 0.1", "1 ready 0.1"]
