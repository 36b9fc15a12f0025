"""The app's own metrics, merged over the processes that made them.

Pure: the standard library alone. As prometheus_client's MultiProcessCollector, but for this: gauges of the
modes ``all`` and ``liveall`` have the label ``worker``, an instance number, in place of ``pid``, and are
those of the slot's worker alone. Processes that an app forks or starts, and the arbiter that preloads it,
have no such number: their gauges of these two modes are not shown, all else of theirs counts. Of a worker
that is gone counters, histograms, summaries and the gauges of modes that are not live go on to count; the
next one that takes its row goes on with them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from multicore_server.ipc.scoreboard import ROWS_PER_SLOT
from multicore_server.metrics.app import plan as app_plan
from multicore_server.metrics.app.identity import is_held, lock_of
from multicore_server.metrics.app.keys import Series
from multicore_server.metrics.app.plan import Member, Variant
from multicore_server.metrics.app.sources import Part, Source, Sources
from multicore_server.metrics.family import Family

_log = logging.getLogger("gunicorn.error")


class Owner(NamedTuple):
    """Whose an identifier is: the worker's instance number as text, whether the process lives, and whether it
    is the one of its slot that is shown."""

    worker: str
    alive: bool
    shown: bool


def owners(shared_report: Mapping[str, Any], identifier: Callable[[int], str]) -> dict[str, Owner]:
    """The owners of all rows of all slots, as the arbiter's report has them; ``identifier`` is the
    directory's. The one that is shown is the process that is ready, else the newest one."""
    found = {}
    for slot in shared_report.get("slots", ()):
        processes = slot["processes"]
        ready = [process for process in processes if process["state"] == "ready"]
        shown = [process["row"] for process in (ready or processes)[-1:]]
        living = {process["row"] for process in processes}
        first = slot["instance"] * ROWS_PER_SLOT
        for row in range(first, first + ROWS_PER_SLOT):
            found[identifier(row)] = Owner(str(slot["instance"]), row in living, row in shown)
    return found


class AppMetrics:
    """The metrics in a directory. ``reserved``: names of samples that the app's must not have.

    Of the last `collect`: ``left_out`` files could not be read, ``collisions`` metrics have a name that is
    another's.
    """

    def __init__(self, directory: Path, reserved: Container[str] = ()) -> None:
        self._directory = directory
        self._reserved = reserved
        self._sources = Sources(directory)
        self._context: object = None
        self._plan: list[Callable[[], Family]] = []
        self._last_shown: dict[str, str] = {}
        self._reported: set[tuple[str, Variant]] = set()
        self.collisions = 0

    @property
    def left_out(self) -> int:
        return self._sources.left_out

    def collect(self, owners: Mapping[str, Owner]) -> list[Family]:
        """All families, by name, with what the files have now. Never raises for what is in the directory."""
        sources = self._sources.look()
        workers = self._workers(owners)
        alive = [self._is_alive(source, owners) for source in sources]
        context = ([source.version for source in sources], alive, workers)
        if context != self._context:
            self._context = context
            self._make_plan([it for it, lives in zip(sources, alive, strict=True) if lives], workers)
        made = [make() for make in self._plan]
        return [family for family in made if family.samples]

    def _workers(self, owners: Mapping[str, Owner]) -> dict[str, str]:
        """Which identifier is shown for which worker: for one that has no process now, the last one's."""
        shown = {owner.worker: identifier for identifier, owner in owners.items() if owner.shown}
        known = {owner.worker for owner in owners.values()}
        before = {worker: last for worker, last in self._last_shown.items() if worker in known}
        self._last_shown = before | shown
        return {identifier: worker for worker, identifier in self._last_shown.items()}

    def _is_alive(self, source: Source, owners: Mapping[str, Owner]) -> bool:
        """Whether the process lives, if that counts. A worker's child is asked by its lock; what has no
        lock is somebody else's, and counts while the file is there, as with prometheus_client."""
        if not source.mode.startswith("live"):
            return True
        owner = owners.get(source.identifier)
        return owner.alive if owner else is_held(lock_of(self._directory, source.identifier))

    def _make_plan(self, sources: list[Source], workers: Mapping[str, str]) -> None:
        members: dict[str, dict[Variant, list[Member]]] = {}
        # Where a reload has changed what a metric is, what the living workers say comes first.
        for source in sorted(sources, key=lambda it: (it.identifier not in workers, it.kind, it.mode)):
            if source.mode not in ("all", "liveall") or source.identifier in workers:
                for name, part in _parts(source).items():
                    member = Member(source, part, workers.get(source.identifier))
                    members.setdefault(name, {}).setdefault(Variant(source.kind, source.mode), []).append(
                        member
                    )
        self.collisions = 0
        self._plan = list(app_plan.families(members, self._reserved, self._refuse))

    def _refuse(self, name: str, variant: Variant, owner: str) -> None:
        self.collisions += 1
        if (name, variant) not in self._reported:
            self._reported.add((name, variant))
            _log.warning("the app's %s %s is not shown: %s has that name", variant, name, owner)


def _parts(source: Source) -> dict[str, Part]:
    if source.kind != "gauge" or not source.identifier.endswith("arbiter"):
        return source.parts
    # Gauges that were made where the app is preloaded, and not set there: they are no minimum.
    return {
        name: Part(part.help, [_set(source, it) for it in part.layers]) for name, part in source.parts.items()
    }


def _set(source: Source, places: dict[Series, int]) -> dict[Series, int]:
    return {series: index for series, index in places.items() if source.cells[index] != 0.0}
