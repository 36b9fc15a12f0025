"""The fleet by histories: TERM, INT and QUIT, in every state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from multicore_server.fleet import events as ev
from tests.unit.simulation import (
    BROKEN,
    HANGS,
    OPTIONS,
    Plan,
    Simulation,
    hup,
    lines,
    new,
    over_memory,
    resting,
    serving,
)


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
    assert not world.fleet.restarts
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


def test_int_ends_a_boot_without_a_core_file() -> None:
    world = new(1)
    world.plan = HANGS
    world.run(1)
    world.history()
    world.observe(ev.Stop(graceful=False))
    world.run(1)
    assert world.history()[:2] == ["1 close", "1 TERM 0.1"]
    [text] = world.said("gone")
    assert text.endswith(" while it was starting")


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
    assert world.said("reload") == ["reload rolled back: the server is stopping"]


def test_nothing_happens_after_the_end() -> None:
    world = serving(1)
    world.observe(ev.Stop(graceful=True))
    world.run(1)
    for late in (ev.Stop(graceful=False), ev.Reload(), ev.Restart(), ev.Reset(), ev.Scale(3)):
        world.observe(late)
    world.run(100)
    assert world.history()[-1] == "2.5 halt 0"
