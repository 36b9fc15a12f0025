"""Merges the app's own metrics over all processes.

Pure: it imports only the standard library. It does the same as prometheus_client's MultiProcessCollector,
with one difference. Gauges with the modes ``all`` and ``liveall`` have the label ``worker``, an instance
number, in place of ``pid``, and only the values of the slot's worker are shown. Processes that an app forks
or starts, and the arbiter that preloads it, have no instance number. Their gauges with these two modes are
not shown; all their other metrics count. When a worker exits, its counters, histograms, summaries and gauges
without a live mode still count. The next worker with the same row continues them.

A deployment can change the type of a metric or the mode of a gauge. The files of the rows then have both
variants, and only one can have the name: the one that the living workers make.
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
from multicore_server.metrics.app.plan import Candidate, Member, Variant
from multicore_server.metrics.app.sources import Part, Source, Sources
from multicore_server.metrics.family import Family

ROUNDING = 0.001  # seconds: the report has whole milliseconds

Parts = Mapping[str, Part]

_log = logging.getLogger("gunicorn.error")


class Owner(NamedTuple):
    """The owner of an identifier.

    ``worker`` is the instance number as text. ``alive`` says whether the process lives. ``shown`` says
    whether it is the process whose gauges are shown for its slot. ``started`` is in seconds since the epoch,
    0 without a process.
    """

    worker: str
    alive: bool
    shown: bool
    started: float = 0.0


def owners(report: Report | None, identifier: Callable[[int], str]) -> dict[str, Owner]:
    """The owners of all rows of all slots, as the arbiter's report has them; ``identifier`` is the
    directory's. The one that is shown is the slot's worker. None before the first report."""
    found = {}
    for slot in [] if report is None else report["slots"]:
        worker = serving(slot["processes"])
        started = {process["row"]: process["started"] for process in slot["processes"]}
        first = slot["instance"] * ROWS_PER_SLOT
        for row in range(first, first + ROWS_PER_SLOT):
            found[identifier(row)] = Owner(
                str(slot["instance"]),
                row in started,
                worker is not None and row == worker["row"],
                started.get(row, 0.0),
            )
    return found


class Standing(NamedTuple):
    """What a candidate has to say for itself if another one needs its name.

    ``current``: a living worker makes it. ``made_at`` is when the last process that made it began, in seconds
    since the epoch.
    """

    current: bool
    made_at: float


class AppMetrics:
    """The metrics in a directory. ``reserved`` has the names of samples that the app's metrics cannot use.

    After a `collect`, ``left_out`` is the number of files that could not be read, and ``collisions`` is the
    number of metrics that the living workers make and whose name is already in use.
    """

    def __init__(self, directory: Path, reserved: Container[str] = ()) -> None:
        self._directory = directory
        self._reserved = reserved
        self._sources = Sources(directory)
        self._context: object = None
        self._candidates: list[Candidate] = []
        self._contested: list[Candidate] = []
        self._standings: list[Standing] | None = None
        self._plan: list[Callable[[], Family]] = []
        self._last_shown: dict[str, tuple[str, Owner]] = {}
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
        shown = {identifier: owner.worker for identifier, owner in workers.items()}
        parts = [_parts(source) for source in sources]
        context = ([source.version for source in sources], alive, shown, parts)
        if context != self._context:
            self._context = context
            found = zip(sources, parts, alive, strict=True)
            living = [(source, part) for source, part, lives in found if lives]
            self._candidates = _candidates(living, shown)
            self._contested = app_plan.contested(self._candidates, self._reserved)
            self._standings = None
        standings = [_standing(it, workers) for it in self._contested]
        if standings != self._standings:
            self._standings = standings
            self._make_plan(standings)
        made = [make() for make in self._plan]
        return [family for family in made if family.samples]

    def _workers(self, owners: Mapping[str, Owner]) -> dict[str, Owner]:
        """Return the owner of each identifier that is shown.

        A worker without a process keeps the last one.
        """
        shown = {owner.worker: (identifier, owner) for identifier, owner in owners.items() if owner.shown}
        known = {owner.worker for owner in owners.values()}
        before = {worker: last for worker, last in self._last_shown.items() if worker in known}
        self._last_shown = before | shown
        return dict(self._last_shown.values())

    def _is_alive(self, source: Source, owners: Mapping[str, Owner]) -> bool:
        """Return whether the values of a source count; for live gauges only if the process lives.

        A child of a worker lives while its lock is held. A file without a lock belongs to another process and
        counts while it exists, as in prometheus_client.
        """
        if not source.mode.startswith("live"):
            return True
        owner = owners.get(source.identifier)
        return owner.alive if owner else is_held(lock_of(self._directory, source.identifier))

    def _make_plan(self, standings: list[Standing]) -> None:
        """The variant that the living workers make comes first, then the one that was made last."""
        ranked = sorted(
            zip(self._contested, standings, strict=True),
            key=lambda it: (not it[1].current, -it[1].made_at, it[0].name, it[0].variant),
        )
        first = [candidate for candidate, _ in ranked]
        free = [it for it in self._candidates if it not in first]
        served, refused = app_plan.assign([*first, *free], self._reserved)
        self._plan = [it.family() for it in sorted(served, key=lambda it: it.name)]
        current = [candidate for candidate, standing in ranked if standing.current]
        self.collisions = 0
        for candidate, owner in refused:
            if candidate in current:
                self._refuse(candidate, owner)

    def _refuse(self, candidate: Candidate, owner: str) -> None:
        self.collisions += 1
        known = (candidate.name, candidate.variant)
        if known not in self._reported:
            self._reported.add(known)
            _log.warning("the app's %s is not shown: %s has that name", candidate, owner)


def _candidates(sources: list[tuple[Source, Parts]], workers: Mapping[str, str]) -> list[Candidate]:
    found: dict[tuple[str, Variant], Candidate] = {}
    # The HELP text is the one of a living worker.
    for source, parts in sorted(sources, key=lambda it: it[0].identifier not in workers):
        if source.mode not in ("all", "liveall") or source.identifier in workers:
            variant = Variant(source.kind, source.mode)
            for name, part in parts.items():
                candidate = found.setdefault((name, variant), Candidate(name, variant, []))
                candidate.members.append(Member(source, part, workers.get(source.identifier)))
    return list(found.values())


def _standing(candidate: Candidate, workers: Mapping[str, Owner]) -> Standing:
    current = not workers or any(_is_current(member, workers) for member in candidate.members)
    return Standing(current, candidate.made_at())


def _is_current(member: Member, workers: Mapping[str, Owner]) -> bool:
    """Return whether the values are of a living worker, of a child that it has forked, or of the arbiter.

    The row's file also has what former owners made.
    """
    identifier = member.source.identifier
    if identifier.endswith("arbiter"):
        return True
    owner = workers.get(identifier) or workers.get(identifier.rpartition("-")[0])
    return owner is not None and member.made_at() >= owner.started - ROUNDING


def _parts(source: Source) -> Parts:
    """Return what counts of a file now.

    If the arbiter preloads the app, it makes gauges but may not set them, or sets them later, in a hook.
    Until then their 0 must not count as a minimum or a maximum.
    """
    if source.mode.removeprefix("live") not in ("min", "max") or not source.identifier.endswith("arbiter"):
        return source.parts
    return {
        name: Part(part.help, [_nonzero(source, it) for it in part.layers])
        for name, part in source.parts.items()
    }


def _nonzero(source: Source, places: dict[Series, int]) -> dict[Series, int]:
    return {series: index for series, index in places.items() if source.cells[index] != 0.0}
