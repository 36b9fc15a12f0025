"""The fleet by histories: what happened to whom and when, replayed by a simulated operating system.

A worker's name is instance.generation. By default it boots in 1 s and drains in 0.5 s. `try` is a fork with
the configuration of a reload that is not yet committed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from multicore_server import events as ev
from multicore_server.fleet import Options
from multicore_server.policy import RestartPolicy
from multicore_server.slots import MOVES, Process, State
from tests.unit.simulation import BROKEN, HANGS, MIB, Plan, Simulation, lines

OPTIONS = Options(policy=RestartPolicy(), listen_timeout=10.0, graceful_timeout=5.0)


def starting(workers: int = 2, **settings: object) -> Simulation:
    """A fleet whose first workers are booting; 0 s."""
    names = {name: settings.pop(name) for name in list(settings) if hasattr(OPTIONS.policy, name)}
    policy = replace(OPTIONS.policy, **names)  # type: ignore[arg-type]
    world = Simulation(workers, replace(OPTIONS, policy=policy, **settings))  # type: ignore[arg-type]
    world.history()
    return world


def serving(workers: int = 2, **settings: object) -> Simulation:
    """A fleet that has become ready at 1 s; 2 s."""
    world = starting(workers, **settings)
    world.run(2.0)
    assert len(world.ready()) == workers
    world.history()
    return world


def over_memory(world: Simulation, name: str, *, hard: bool = False) -> None:
    world.observe(ev.OverMemory(world.pid(name), hard, 300 * MIB, 200 * MIB))


def prepared(world: Simulation, workers: int = 2, **settings: object) -> ev.ReloadPrepared:
    return ev.ReloadPrepared(replace(world.fleet.options, **settings), workers)  # type: ignore[arg-type]


def hup(world: Simulation, workers: int = 2, **settings: object) -> None:
    """HUP with a configuration that loads at once."""
    world.prepares = prepared(world, workers, **settings)
    world.observe(ev.Reload())


# --- the start -------------------------------------------------------------------------------------------


def test_start() -> None:
    world = Simulation(2, OPTIONS)
    world.run(10.0)
    assert world.history() == lines("""
        0 scaled 2
        0 fork 0.1
        0 fork 1.1
        1 ready 0.1
        1 ready 1.1
    """)
    assert world.states() == ["ready", "ready"]
    assert str(world.events[-1]) == "instance=1 gen=1 pid=102 ready after 1.00 s"


def test_no_boot_works_at_the_first_start() -> None:
    world = starting()
    world.plan = BROKEN
    world.plans["1.1"] = Plan(boot=0.7, fails=2, words="later words")
    world.fleet.slots.clear()
    world = Simulation(0, OPTIONS)
    world.plan = BROKEN
    world.plans["1.1"] = Plan(boot=0.7, fails=2, words="later words")
    world.observe(ev.Scale(2))
    world.run(1.0)
    assert world.history()[1:] == lines("""
        0 scaled 2
        0 fork 0.1
        0 fork 1.1
        0.5 end 0.1
        0.7 end 1.1
        0.7 close
        0.7 halt 3
    """)
    assert world.halted == ev.Halt(3, "no worker could boot: no module named app")
