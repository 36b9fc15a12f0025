"""The states of a slot: every move of the table happens, no other does, and docs/design.md draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from multicore_server.fleet import events as ev
from multicore_server.fleet.slots import SLOT_MOVES, Process, Slot, State
from tests.unit.simulation import BROKEN, HANGS, Plan, Simulation, new, serving

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
Move = tuple[State | None, State | None]
STOPPING = {"stop_exit_codes": frozenset({7})}


def diagram() -> str:
    """The table as a state diagram, in mermaid."""

    def name(state: State | None) -> str:
        return "[*]" if state is None else str(state)

    moves = [
        f"    {name(before)} --> {name(after)}: {why}"
        for before, afters in SLOT_MOVES.items()
        for after, why in afters.items()
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", *moves, "```"])


def test_the_docs_draw_the_table() -> None:
    assert diagram() in DESIGN.read_text()


# --- each move of the table, in a history as short as can be ---


def moves(world: Simulation) -> set[Move]:
    world.run(1)
    return world.moves


def booted() -> Simulation:
    return serving(1)


def stopped_while_booting() -> Simulation:
    world = new(1)
    world.run(0.5)
    world.observe(ev.Stop(graceful=True))
    return world


def boot_failed(**settings: object) -> Callable[[], Simulation]:
    def history() -> Simulation:
        world = new(2, **settings)
        world.plans = {"0.1": Plan(boot=0.1, fails=7)}
        world.run(0.2)
        return world

    return history


def exited(code: int, **settings: object) -> Callable[[], Simulation]:
    def history() -> Simulation:
        world = serving(2, **settings)
        world.end("1.1", code)
        return world

    return history


def restarted(code: int, **settings: object) -> Callable[[], Simulation]:
    def history() -> Simulation:
        world = exited(code, **settings)()
        world.observe(ev.Restart())
        return world

    return history


def scaled_down(code: int, **settings: object) -> Callable[[], Simulation]:
    """A slot that rests is forgotten at once."""

    def history() -> Simulation:
        world = exited(code, **settings)()
        world.observe(ev.Scale(1))
        return world

    return history


def stopped() -> Simulation:
    world = serving(1)
    world.observe(ev.Stop(graceful=True))
    return world


def gone_while_it_is_scaled_down(world: Simulation) -> Simulation:
    """The arbiter hears of both in one turn of its loop."""
    pid = world.pid("1.1")
    world.fleet.observe(ev.Scale(1), world.now)
    world.end("1.1", 0)
    assert world.fleet.find(pid) is None
    return world


def gone_while_booting() -> Simulation:
    world = new(2)
    world.run(0.5)
    return gone_while_it_is_scaled_down(world)


def room_again() -> Simulation:
    world = serving(1)
    for _ in range(4):
        world.plan = Plan(drain=None)
        worker = world.ready()[0]
        world.observe(ev.AskedToRetire(world.pid(worker), "manual", draining=True))
        world.run(1.1)
    world.run(9)
    return world


def drained() -> Simulation:
    world = serving(2)
    world.observe(ev.Scale(1))
    return world


BACKOFF = {"restart_delay": 0.5}
ERRORED = {"max_restarts": 1, "min_uptime": 9.0}
HISTORIES: dict[Move, Callable[[], Simulation]] = {
    (None, State.STARTING): booted,
    (State.STARTING, State.READY): booted,
    (State.STARTING, State.DRAINING): stopped_while_booting,
    (State.STARTING, State.BACKOFF): boot_failed(),
    (State.STARTING, State.STOPPED): boot_failed(**STOPPING),
    (State.STARTING, State.ERRORED): boot_failed(max_restarts=1),
    (State.STARTING, None): gone_while_booting,
    (State.READY, State.STARTING): exited(1),
    (State.READY, State.DRAINING): stopped,
    (State.READY, State.BACKOFF): exited(1, **BACKOFF),
    (State.READY, State.STOPPED): exited(7, **STOPPING),
    (State.READY, State.ERRORED): exited(1, **ERRORED),
    (State.READY, None): lambda: gone_while_it_is_scaled_down(serving(2)),
    (State.DRAINING, State.STARTING): room_again,
    (State.DRAINING, None): drained,
    (State.BACKOFF, State.STARTING): exited(1, **BACKOFF),
    (State.BACKOFF, None): scaled_down(1, **BACKOFF),
    (State.STOPPED, State.STARTING): restarted(7, **STOPPING),
    (State.STOPPED, None): scaled_down(7, **STOPPING),
    (State.ERRORED, State.STARTING): restarted(1, **ERRORED),
    (State.ERRORED, None): scaled_down(1, **ERRORED),
}


def test_every_move_has_its_history() -> None:
    assert HISTORIES.keys() == {(before, after) for before in SLOT_MOVES for after in SLOT_MOVES[before]}


@pytest.mark.parametrize("move", HISTORIES, ids=lambda move: f"{move[0]} to {move[1]}")
def test_a_slot_moves(move: Move) -> None:
    assert move in moves(HISTORIES[move]())


# --- and no other ---


@pytest.mark.parametrize("rest", [State.STARTING, State.READY, State.DRAINING])
def test_a_slot_rests_in_backoff_stopped_or_errored_only(rest: State) -> None:
    with pytest.raises(ValueError, match="cannot rest"):
        Slot(0).hold(rest)


def test_a_slot_that_has_a_worker_does_not_rest() -> None:
    slot = Slot(0)
    slot.add_process(0.0, 0, 0)
    with pytest.raises(ValueError, match="a starting slot cannot rest as errored"):
        slot.hold(State.ERRORED)


def test_a_process_only_moves_onward() -> None:
    process = Process(0, 1, 0, 0.0)
    process.move(State.DRAINING, 1.0)
    with pytest.raises(ValueError, match="a draining process cannot become ready"):
        process.move(State.READY, 2.0)


@pytest.mark.parametrize("order", [ev.Restart(), ev.Reset()])
def test_a_server_that_stops_revives_nobody(order: ev.Observation) -> None:
    world = serving(2, max_restarts=1, min_uptime=9.0)
    world.end("0.1", 1)
    world.plans = {"1.1": HANGS}
    world.observe(ev.Stop(graceful=True))
    world.observe(order)
    assert [str(slot.state) for slot in world.fleet.slots.values()] == ["errored", "draining"]


def test_broken_boots_are_not_forgotten_by_a_replacement() -> None:
    world = serving(1, max_restarts=2)
    world.plan = BROKEN
    world.end("0.1", 1)
    world.run(9)
    assert world.fleet.slots[0].state is State.ERRORED
