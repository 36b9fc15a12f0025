"""The fleet by histories: a number of workers that memory may have no room for. One shows how many have."""

from __future__ import annotations

import pytest

from multicore_server.fleet import events as ev
from tests.unit.simulation import OPTIONS, Plan, Simulation, serving

MOST = 8


def small(workers: int = MOST) -> Simulation:
    """A fleet whose first worker is to show how many of these have room; it has not begun."""
    return Simulation(workers, OPTIONS, tries=True)


def fitted(room: int = 3) -> Simulation:
    world = small()
    world.run(2)
    world.observe(ev.Fit(room))
    world.run(2)
    return world


def reload(world: Simulation, workers: int = MOST, *, tries: bool = True) -> None:
    world.prepares = ev.ReloadPrepared(OPTIONS, workers, tries)
    world.observe(ev.Reload())
    world.run(9)


def test_one_begins_and_the_others_follow_as_far_as_there_is_room() -> None:
    world = small()
    world.run(2)
    assert (world.ready(), world.fleet.trying) == (["0.1"], True)
    world.observe(ev.Fit(3))
    world.run(2)
    assert (world.ready(), world.fleet.trying) == (["0.1", "1.1", "2.1"], False)


def test_a_reload_without_a_change_starts_no_others() -> None:
    world = fitted()
    for _ in range(2):
        reload(world)
        assert (world.fleet.workers, world.fleet.trying) == (3, False)
    assert world.ready() == ["0.3", "1.3", "2.3"]


def test_a_reload_before_the_first_one_is_ready_starts_no_others() -> None:
    world = small()
    world.plans = {"0.1": Plan(boot=5.0)}
    world.run(1)
    reload(world)
    assert (world.fleet.workers, world.fleet.trying) == (1, True)
    world.observe(ev.Fit(3))
    world.run(2)
    assert world.fleet.workers == len(world.ready()) == 3


@pytest.mark.parametrize(("before", "meanwhile"), [(2, 2), (5, 5), (0, 1)])
def test_a_reload_to_such_a_number_goes_on_with_those_that_run(before: int, meanwhile: int) -> None:
    """None runs after WINCH."""
    world = serving(before)
    reload(world)
    assert (world.fleet.workers, world.fleet.trying) == (meanwhile, True)
    world.observe(ev.Fit(3))
    world.run(2)
    assert world.fleet.workers == len(world.ready()) == 3


def test_a_reload_to_fewer_than_run() -> None:
    world = serving(5)
    reload(world, 4)
    assert (world.fleet.workers, world.fleet.trying) == (4, True)


def test_the_same_number_given_by_the_user_is_a_change() -> None:
    world = fitted()
    reload(world, tries=False)
    assert (world.fleet.workers, world.fleet.trying) == (MOST, False)


def test_an_operators_number_stands() -> None:
    world = small()
    world.run(2)
    world.observe(ev.Scale(2))
    world.observe(ev.Fit(3))
    world.run(2)
    reload(world)
    assert (world.fleet.workers, world.fleet.trying) == (2, False)


def test_what_has_room_is_no_operators_number() -> None:
    """The configuration of a reload that goes on meanwhile has another one."""
    world = small()
    world.run(2)
    world.prepares = ev.ReloadPrepared(OPTIONS, 2)
    world.observe(ev.Reload())
    world.observe(ev.Fit(3))
    world.run(9)
    assert world.fleet.workers == len(world.ready()) == 2


def test_after_none_were_wanted_one_shows_it_again() -> None:
    world = fitted()
    world.observe(ev.Scale(0))
    world.run(9)
    reload(world)
    assert (world.fleet.workers, world.fleet.trying) == (1, True)


def test_a_fleet_that_ends_starts_no_others() -> None:
    world = small()
    world.run(2)
    world.observe(ev.Stop(graceful=True))
    world.observe(ev.Fit(3))
    world.run(9)
    assert world.halted == ev.Halt(0, None)
