"""Merges the app's own metrics over all processes.

Pure: it imports only the standard library. It does the same as prometheus_client's MultiProcessCollector,
with one difference. Gauges with the modes ``all`` and ``liveall`` have the label ``worker``, an instance
number, in place of ``pid``, and only the values of the slot's worker are shown. Processes that an app forks
or starts, and the arbiter that preloads it, have no instance number. Their gauges with these two modes are
not shown; all their other metrics count. When a worker exits, its counters, histograms, summaries and gauges
without a live mode still count. The next worker with the same row continues them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import NamedTuple

from multicore_server.ipc.report import Report, serving
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT
from multicore_server.metrics.app import plan as app_plan
from multicore_server.metrics.app.identity import is_held, lock_of
from multicore_server.metrics.app.keys import Series
from multicore_server.metrics.app.plan import Member, Variant
from multicore_server.metrics.app.sources import Part, Source, Sources
from multicore_server.metrics.family import Family

_log = logging.getLogger("gunicorn.error")


class Owner(NamedTuple):
    """The owner of an identifier.

    ``worker`` is the instance number as text. ``alive`` says whether the process lives. ``shown`` says
    whether it is the process whose gauges are shown for its slot.
    """

    worker: str
    alive: bool
    shown: bool


def owners(report: Report | None, identifier: Callable[[int], str]) -> dict[str, Owner]:
    """The owners of all rows of all slots, as the arbiter's report has them; ``identifier`` is the
    directory's. The one that is shown is the slot's worker. None before the first report."""
    found = {}
    for slot in [] if report is None else report["slots"]:
        worker = serving(slot["processes"])
        living = {process["row"] for process in slot["processes"]}
        first = slot["instance"] * ROWS_PER_SLOT
        for row in range(first, first + ROWS_PER_SLOT):
            found[identifier(row)] = Owner(
                str(slot["instance"]), row in living, worker is not None and row == worker["row"]
            )
    return found


class AppMetrics:
    """The metrics in a directory. ``reserved`` has the names of samples that the app's metrics cannot use.

    After a `collect`, ``left_out`` is the number of files that could not be read, and ``collisions`` is the
    number of metrics whose name is already in use.
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
        """Return all families, sorted by name, with the current values.

        No content of the directory makes it raise.
        """
        sources = self._sources.read()
        workers = self._workers(owners)
        alive = [self._is_alive(source, owners) for source in sources]
        context = ([source.version for source in sources], alive, workers)
        if context != self._context:
            self._context = context
            self._make_plan([it for it, lives in zip(sources, alive, strict=True) if lives], workers)
        made = [make() for make in self._plan]
        return [family for family in made if family.samples]

    def _workers(self, owners: Mapping[str, Owner]) -> dict[str, str]:
        """Return the worker of each identifier that is shown.

        A worker without a process keeps the last one.
        """
        shown = {owner.worker: identifier for identifier, owner in owners.items() if owner.shown}
        known = {owner.worker for owner in owners.values()}
        before = {worker: last for worker, last in self._last_shown.items() if worker in known}
        self._last_shown = before | shown
        return {identifier: worker for worker, identifier in self._last_shown.items()}

    def _is_alive(self, source: Source, owners: Mapping[str, Owner]) -> bool:
        """Return whether the values of a source count; for live gauges only if the process lives.

        A child of a worker lives while its lock is held. A file without a lock belongs to another process and
        counts while it exists, as in prometheus_client.
        """
        if not source.mode.startswith("live"):
            return True
        owner = owners.get(source.identifier)
        return owner.alive if owner else is_held(lock_of(self._directory, source.identifier))

    def _make_plan(self, sources: list[Source], workers: Mapping[str, str]) -> None:
        members: dict[str, dict[Variant, list[Member]]] = {}
        # If a reload changed the type of a metric, the type in the living workers comes first.
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
    # If the arbiter preloads the app, it makes gauges but may not set them. Their 0 must not count as a
    # minimum.
    return {
        name: Part(part.help, [_nonzero(source, it) for it in part.layers])
        for name, part in source.parts.items()
    }


def _nonzero(source: Source, places: dict[Series, int]) -> dict[Series, int]:
    return {series: index for series, index in places.items() if source.cells[index] != 0.0}
