"""A plan, carried out: what it found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.clients import Crowd
from tests.chaos.faults import PATIENCE, Faults
from tests.chaos.invariants import broken_promises, requests_lost, tracebacks
from tests.chaos.plan import WORKERS, Plan
from tests.chaos.record import Record, clock
from tests.chaos.running import Running


@dataclass(frozen=True, slots=True)
class Outcome:
    """``broken`` are the promises that were not kept, in words; ``done`` is when which fault was done."""

    plan: Plan
    record: Record
    broken: list[str]
    done: list[str]
    log: str

    def __str__(self) -> str:
        found = [f"BROKEN {line}" for line in self.broken]
        return "\n".join([str(self.plan), *self.done, *found, self.record.summary()])


def carry_out(plan: Plan, directory: Path) -> Outcome:
    """Run the plan on a server in this directory, which is empty."""
    running, record = Running(directory, plan.setup), Record()
    done: list[str] = []
    crowd = Crowd(plan.clients, running.address, record, plan.seed)
    faults = Faults(running, plan, record)
    if not running.temporary_is_small:
        done.append("no small file system can be mounted here: enospc does nothing")
    try:
        running.start()
        running.wait_settled(PATIENCE)
        before = running.descriptors()
        crowd.start()
        try:
            _perform(plan, faults, done)
            _return_to_rest(running, faults)
        except AssertionError as exc:  # what was waited for did not come
            stuck = [str(exc)]
        else:
            stuck = []
        finally:
            crowd.stop()
        broken = stuck or list(broken_promises(running, record, WORKERS, before))
        if stuck:
            broken += [*requests_lost(record), *tracebacks(running.server.log)]
        return Outcome(plan, record, broken, done, running.server.log)
    finally:
        running.end()


def _perform(plan: Plan, faults: Faults, done: list[str]) -> None:
    """Do what is due; ``done`` gets a line for each fault."""
    start = time.monotonic()
    for number, action in enumerate(plan.actions):
        time.sleep(max(0.0, start + action.at - time.monotonic()))
        began = time.monotonic()
        faults.do(action.fault, action.argument)
        took = time.monotonic() - began
        done.append(f"{number:3} {clock(began)} {action.fault} {action.argument}, {took:.1f} s")
    time.sleep(max(0.0, start + plan.seconds - time.monotonic()))


def _return_to_rest(running: Running, faults: Faults) -> None:
    """As many workers as at the start, and nothing under way."""
    while (configured := running.wait_settled(PATIENCE)["configured"]) != WORKERS:
        change = 1 if configured < WORKERS else -1
        faults.scale(change)
        running.wait_configured(configured + change, PATIENCE)
