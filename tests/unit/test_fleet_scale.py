"""The fleet by histories: more workers, fewer, none."""

from __future__ import annotations

from multicore_server.fleet import events as ev
from tests.unit.simulation import BROKEN, HANGS, Plan, lines, new, serving


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
    assert not world.fleet.restarts


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
    assert world.said("refused")[0].startswith("there is no room for 9 workers, only for 8")


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
