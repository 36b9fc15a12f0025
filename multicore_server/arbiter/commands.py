"""What operators command through the command socket, carried out by the arbiter: one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from multicore_server.fleet import events as ev
from multicore_server.ipc.messages import (
    Answer,
    Command,
    ReloadCommand,
    ResetCommand,
    RestartCommand,
    ScaleCommand,
    StopCommand,
)
from multicore_server.machine.cpu import usable_cpus

if TYPE_CHECKING:
    from multicore_server.arbiter.arbiter import Arbiter


class RefusedError(Exception):
    """A command that cannot be carried out: one line."""


def carry_out(arbiter: Arbiter, command: Command) -> Answer:
    """Begin what a command asks for. Events tell what comes of it."""
    try:
        if arbiter.fleet.stopping and not isinstance(command, StopCommand):
            raise RefusedError("the server is stopping")
        return COMMANDS[type(command)](arbiter, command)
    except RefusedError as exc:
        return Answer(command.id, False, str(exc))


def _reload(arbiter: Arbiter, command: ReloadCommand) -> Answer:
    arbiter.observe(ev.Reload())
    return Answer(command.id, True, "reloading")


def _restart(arbiter: Arbiter, command: RestartCommand) -> Answer:
    wanted = command.instances
    if wanted is None:
        arbiter.observe(ev.Restart())
        return Answer(command.id, True, "restarting all instances")
    known = {slot.instance for slot in arbiter.fleet.slots.active()}
    unknown = sorted(set(wanted) - known)
    if unknown:
        there = ", ".join(map(str, sorted(known)))
        raise RefusedError(f"there is no instance {unknown[0]}; there are {there}")
    arbiter.observe(ev.Restart(instances=frozenset(wanted)))
    return Answer(command.id, True, f"restarting {', '.join(map(str, wanted))}")


def _scale(arbiter: Arbiter, command: ScaleCommand) -> Answer:
    before, capacity = arbiter.fleet.workers, arbiter.fleet.capacity
    wanted = _number(before, command.workers)
    if not 1 <= wanted <= capacity:
        raise RefusedError(f"{wanted} workers: from 1 to {capacity} can be run without a restart")
    arbiter.observe(ev.Scale(wanted))
    return Answer(command.id, True, f"scaling from {before} to {wanted}", wanted)


def _number(workers: int, wanted: int | str) -> int:
    if isinstance(wanted, int):
        return wanted
    if wanted == "max":
        return usable_cpus()
    try:
        return workers + int(wanted)
    except ValueError:
        raise RefusedError("workers: give a number, a change such as +2, or max") from None


def _stop(arbiter: Arbiter, command: StopCommand) -> Answer:
    arbiter.end(graceful=command.graceful)
    return Answer(command.id, True, "stopping")


def _reset(arbiter: Arbiter, command: ResetCommand) -> Answer:
    arbiter.observe(ev.Reset())
    return Answer(command.id, True, "the counts of unstable exits start from 0")


COMMANDS: dict[type[Command], Callable[[Arbiter, Any], Answer]] = {
    ReloadCommand: _reload,
    RestartCommand: _restart,
    ScaleCommand: _scale,
    StopCommand: _stop,
    ResetCommand: _reset,
}
