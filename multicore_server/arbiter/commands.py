"""Carries out the operators' commands from the command socket: one table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from multicore_server.arbiter.context import ArbiterContext
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


class RefusedError(Exception):
    """A command that cannot be carried out: one line."""


class Commands:
    """``end`` begins to end the server, gracefully or not."""

    def __init__(self, context: ArbiterContext, end: Callable[[bool], None]) -> None:
        self._log = context.log
        self._fleet = context.fleet
        self._observe = context.observe
        self._monotonic = context.system.monotonic
        self._end = end

    def carry_out(self, command: Command) -> Answer:
        """Begin what a command asks for. Events tell what comes of it."""
        try:
            self._check_deadline(command)
            if self._fleet.stopping and not isinstance(command, StopCommand):
                raise RefusedError("the server is stopping")
            answer = COMMANDS[type(command)](self, command)
            self._log.info("Handling command: %s", answer.text)  # as gunicorn says it of a signal
        except RefusedError as exc:
            self._log.info("Refusing command: %s", exc)
            answer = Answer(command.id, False, str(exc))
        return answer

    def _check_deadline(self, command: Command) -> None:
        """This process was stopped, say, or busy with a slow hook."""
        if command.deadline is not None and self._monotonic() > command.deadline:
            name = type(command).__name__.removesuffix("Command").lower()
            raise RefusedError(f"{name} comes too late, nobody waits for it any more")

    def _reload(self, command: ReloadCommand) -> Answer:
        self._observe(ev.Reload())
        return Answer(command.id, True, "reloading")

    def _restart(self, command: RestartCommand) -> Answer:
        wanted = command.instances
        if wanted is None:
            self._observe(ev.Restart())
            return Answer(command.id, True, "restarting all instances")
        known = {slot.instance for slot in self._fleet.slots.active()}
        unknown = sorted(set(wanted) - known)
        if unknown:
            there = ", ".join(map(str, sorted(known)))
            raise RefusedError(f"there is no instance {unknown[0]}; there are {there}")
        self._observe(ev.Restart(instances=frozenset(wanted)))
        return Answer(command.id, True, f"restarting {', '.join(map(str, wanted))}")

    def _scale(self, command: ScaleCommand) -> Answer:
        before, capacity = self._fleet.workers, self._fleet.capacity
        wanted = _number(before, command.workers)
        if not 1 <= wanted <= capacity:
            raise RefusedError(f"{wanted} workers: 1 to {capacity} are possible without a restart")
        self._observe(ev.Scale(wanted))
        return Answer(command.id, True, f"scaling from {before} to {wanted}", wanted)

    def _stop(self, command: StopCommand) -> Answer:
        self._end(command.graceful)
        return Answer(command.id, True, "stopping")

    def _reset(self, command: ResetCommand) -> Answer:
        self._observe(ev.Reset())
        return Answer(command.id, True, "the counts of unstable exits start from 0")


def _number(workers: int, wanted: int | str) -> int:
    if isinstance(wanted, int):
        return wanted
    if wanted == "max":
        return usable_cpus()
    # The monitor has checked it; but it is less privileged than we are, and may have been taken over.
    if not re.fullmatch(r"[+-]\d{1,6}", wanted, re.ASCII):
        raise RefusedError("workers: give a number, a change such as +2, or max")
    return workers + int(wanted)


# Any: each function takes the class of commands that it stands beside.
COMMANDS: dict[type[Command], Callable[[Commands, Any], Answer]] = {
    ReloadCommand: Commands._reload,
    RestartCommand: Commands._restart,
    ScaleCommand: Commands._scale,
    StopCommand: Commands._stop,
    ResetCommand: Commands._reset,
}
