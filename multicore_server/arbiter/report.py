"""Describes the fleet and the settings for operators: parts of the report, see ipc/report.py.

Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from typing import cast, get_args

from multicore_server.fleet.fleet import Fleet
from multicore_server.fleet.slots import Process, Slot, State
from multicore_server.ipc.names import Reason, ReloadResult
from multicore_server.ipc.report import FleetReport, ProcessReport, ProcessState, SlotReport
from multicore_server.settings.quantities import Jitter, Size
from multicore_server.settings.table import Settings


def fleet_report(fleet: Fleet, epoch: float) -> FleetReport:
    """What the fleet is and does; ``epoch`` is when its monotonic clock was 0."""
    return {
        "configured": fleet.workers,
        "capacity": fleet.capacity,
        "stopping": fleet.stopping,
        "reloading": fleet.reloading,
        "restarts": {reason: fleet.restarts.get(reason, 0) for reason in get_args(Reason)},
        "reloads": {result: fleet.reload_results.get(result, 0) for result in get_args(ReloadResult)},
        "slots": [_slot(slot, epoch) for _, slot in sorted(fleet.slots.items())],
    }


def in_words(fleet: Fleet) -> str:
    """The same in a line, for people."""
    states = Counter(slot.state for slot in fleet.slots.values())
    parts = [f"{states[State.READY]} of {fleet.workers} workers ready"]
    at_rest = (State.BACKOFF, State.ERRORED, State.STOPPED)
    parts += [f"{states[state]} {state.value}" for state in at_rest if states[state]]
    parts += ["stopping"] * fleet.stopping + ["reloading"] * fleet.reloading
    return ", ".join(parts)


def _slot(slot: Slot, epoch: float) -> SlotReport:
    return {
        "instance": slot.instance,
        "state": slot.state.value,
        "since": _wall_clock(_since(slot), epoch),
        "unstable": slot.history.unstable,
        "next_restart": None if slot.not_before is None else _wall_clock(slot.not_before, epoch),
        "wanted": slot.wanted,
        "restarts": dict(slot.endings),
        "processes": [_process(process, epoch) for process in slot.processes if process.pid],
    }


def _since(slot: Slot) -> float:
    """When the slot came to be in its state."""
    current = slot.serving or slot.starting
    if current is None and slot.rest is None and slot.processes:
        current = slot.processes[-1]
    return slot.since if current is None else current.since


def _process(process: Process, epoch: float) -> ProcessReport:
    return {
        "generation": process.generation,
        "pid": process.pid,
        "row": process.row,
        "state": cast("ProcessState", process.state.value),  # the others are of slots alone
        "started": _wall_clock(process.started, epoch),
        "ready_at": None if process.ready_at is None else _wall_clock(process.ready_at, epoch),
    }


def _wall_clock(moment: float, epoch: float) -> float:
    return round(moment + epoch, 3)


def shown(settings: Settings) -> dict[str, str]:
    """The settings in force, as a user would write them."""
    return {row.name: _text(getattr(settings, row.name)) for row in fields(settings)}


def _text(value: object) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, (Size, Jitter)):
        return f"{value.amount:g}%" if value.percent else f"{value.amount:.15g}"
    if isinstance(value, frozenset):
        return ",".join(map(str, sorted(value))) or "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, float) else str(value)
