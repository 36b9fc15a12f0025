"""What operators command through the command socket, carried out by the arbiter: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from multicore_server.fleet import events as ev
from multicore_server.machine.cpu import usable_cpus

if TYPE_CHECKING:
    from multicore_server.arbiter.arbiter import Arbiter


class RefusedError(Exception):
    """A command that cannot be carried out: one line."""


def carry_out(arbiter: Arbiter, message: Mapping[str, Any]) -> tuple[bool, str]:
    """Begin what a message asks for; whether it is begun, and a line on it. What comes of it, events tell."""
    command = COMMANDS.get(message.get("command", ""))
    try:
        if command is None:
            raise RefusedError("there is no such command")
        if arbiter.fleet.shutdown is not None and command is not _stop:
            raise RefusedError("the server is stopping")
        return True, command(arbiter, message)
    except RefusedError as exc:
        return False, str(exc)


def _reload(arbiter: Arbiter, _: Mapping[str, Any]) -> str:
    arbiter.observe(ev.Reload())
    return "reloading"


def _restart(arbiter: Arbiter, message: Mapping[str, Any]) -> str:
    wanted = message["instances"]
    known = {slot.instance for slot in arbiter.fleet.slots.active()}
    unknown = sorted(set(wanted or ()) - known)
    if unknown:
        there = ", ".join(map(str, sorted(known)))
        raise RefusedError(f"there is no instance {unknown[0]}; there are {there}")
    arbiter.observe(ev.Restart(instances=None if wanted is None else frozenset(wanted)))
    return "restarting all instances" if wanted is None else f"restarting {', '.join(map(str, wanted))}"


def _scale(arbiter: Arbiter, message: Mapping[str, Any]) -> str:
    wanted = _number(arbiter.fleet.workers, message["workers"])
    if not 1 <= wanted <= arbiter.fleet.capacity:
        raise RefusedError(
            f"{wanted} workers: from 1 to {arbiter.fleet.capacity} can be run without a restart"
        )
    before = arbiter.fleet.workers
    arbiter.observe(ev.Scale(wanted))
    return f"scaling from {before} to {wanted}"


def _number(workers: int, wanted: int | str) -> int:
    if isinstance(wanted, int):
        return wanted
    return usable_cpus() if wanted == "max" else workers + int(wanted)


def _stop(arbiter: Arbiter, message: Mapping[str, Any]) -> str:
    arbiter.end(graceful=message["graceful"])
    return "stopping"


def _reset(arbiter: Arbiter, _: Mapping[str, Any]) -> str:
    arbiter.observe(ev.Reset())
    return "the counts of unstable exits start from 0"


COMMANDS: dict[str, Callable[[Arbiter, Mapping[str, Any]], str]] = {
    "reload": _reload,
    "restart": _restart,
    "scale": _scale,
    "stop": _stop,
    "reset": _reset,
}
