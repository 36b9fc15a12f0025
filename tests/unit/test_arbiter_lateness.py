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


def test_a_worker_that_serves_has_no_deadline_to_move() -> None:
    world = new(1)
    world.run(2)
    paused(world, 60.0)
    world.run(60)
    assert world.history()[1:] == ["0 fork 0.1", "1 ready 0.1"]
