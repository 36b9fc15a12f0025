"""Plans how the metrics files become families. A new plan is made only when the keys change.

Pure: it imports only the standard library. For each file of a family, the plan has an ``itemgetter`` that
returns its values in the family's order. So a scrape only adds or compares tuples.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any, NamedTuple

from multicore_server.metrics.app.keys import SUFFIXES, Labels, Series, written
from multicore_server.metrics.app.sources import INFINITY, MINUS_INFINITY, ZERO, Part, Source
from multicore_server.metrics.family import Family, Kind, Sample


class Variant(NamedTuple):
    """The kind and mode of a metric. Two metrics with the same name can differ in them."""

    kind: Kind
    mode: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.mode})" if self.mode else self.kind


class Layer(NamedTuple):
    """The places of a family's values in a file, each series once."""

    source: Source
    places: dict[Series, int]

    def take(
        self, columns: Iterable[Series], missing: int, offset: int = 0
    ) -> Callable[[], tuple[float, ...]]:
        """Return a function that returns the values of ``columns``, in their order, and two zeros."""
        indices = [self.places[it] + offset if it in self.places else missing for it in columns]
        get = operator.itemgetter(*indices, ZERO, ZERO)  # with a single index it would not return a tuple
        return lambda: get(self.source.cells)


class Member(NamedTuple):
    """A file's part of a family.

    ``worker`` is the instance number shown for gauges with the modes all and liveall.
    """

    source: Source
    part: Part
    worker: str | None

    def layers(self) -> list[Layer]:
        return [Layer(self.source, places) for places in self.part.layers]

    def made_at(self) -> float:
        """When the last process that made one of these values began; for mostrecent gauges, when the last one
        was set. In seconds since the epoch, 0 if the values have no time stamp."""
        cells = self.source.cells
        stamps = (cells[index + 1] for places in self.part.layers for index in places.values())
        return max(stamps, default=0.0)


Rows = list[Callable[[], tuple[float, ...]]]
Compute = Callable[[], Iterable[Sample]]


class Candidate(NamedTuple):
    """A metric as one variant, with its members. It is served if all its sample names are free."""

    name: str
    variant: Variant
    members: list[Member]

    @property
    def names(self) -> set[str]:
        """The names that it needs."""
        return {self.name, *(self.name + suffix for suffix in SUFFIXES[self.variant.kind])}

    def made_at(self) -> float:
        return max(member.made_at() for member in self.members)

    def family(self) -> Callable[[], Family]:
        """Return a function that makes the family at each scrape from the current values of the sources."""
        name, kind, mode = self.name, *self.variant
        compute = COMPUTE[mode.removeprefix("live") or kind](self.members)
        help_text = self.members[0].part.help
        return lambda: Family(name, kind, help_text, list(compute()))

    def __str__(self) -> str:
        return f"{self.variant} {self.name}"


def contested(candidates: Sequence[Candidate], reserved: Container[str]) -> list[Candidate]:
    """Return those that need a name which another one needs too, or which is reserved."""
    uses = Counter(name for candidate in candidates for name in candidate.names)
    return [it for it in candidates if any(uses[name] > 1 or name in reserved for name in it.names)]


def assign(
    candidates: Iterable[Candidate], reserved: Container[str]
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Give each name to the first candidate that needs it. Return the candidates that have all their names,
    and the others, each with the owner of one of them."""
    taken: dict[str, str] = {}
    served, refused = [], []
    for candidate in candidates:
        names = candidate.names
        owner = next((taken[it] for it in sorted(names) if it in taken), "")
        if any(it in reserved for it in names):
            owner = "the server"
        if owner:
            refused.append((candidate, owner))
        else:
            taken.update(dict.fromkeys(names, f"the app's {candidate}"))
            served.append(candidate)
    return served, refused


def _columns(layers: Iterable[Layer]) -> list[Series]:
    return list(dict.fromkeys(series for layer in layers for series in layer.places))


def _texts(columns: Iterable[Series]) -> tuple[list[str], list[str]]:
    """Return the suffixes, and the labels as text."""
    return [it.suffix for it in columns], [written(it.labels, bound=it.bound) for it in columns]


def _reduced(operation: Callable[[Any, Any], Any], rows: Rows) -> Sequence[float]:
    return reduce(lambda total, row: list(map(operation, total, row)), [row() for row in rows])


def _over_all(operation: Callable[[Any, Any], Any], missing: int) -> Callable[[list[Member]], Compute]:
    def plan(members: list[Member]) -> Compute:
        layers = _layers(members)
        columns = _columns(layers)
        rows = [layer.take(columns, missing) for layer in layers]
        suffixes, texts = _texts(columns)
        return lambda: map(Sample, suffixes, texts, _reduced(operation, rows))

    return plan


def _layers(members: list[Member]) -> list[Layer]:
    return [layer for member in members for layer in member.layers()]


def _histogram(members: list[Member]) -> Compute:
    """Add up the buckets. A file counts each observation in one bucket; the output has cumulative buckets.

    The last cumulative bucket is the count.
    """
    layers = _layers(members)
    columns: list[Series] = []
    runs: list[tuple[int, int]] = []
    for series in _by_labels(_columns(layers)).values():
        buckets = sorted((it for it in series if it.bound is not None), key=lambda it: it.bound or 0.0)
        if not buckets or buckets[-1].bound != float("inf"):  # its process is still making it, or was killed
            continue
        runs.append((len(columns), len(columns) + len(buckets)))
        count = Series("_count", buckets[0].labels, None)
        columns += [*buckets, count, *(it for it in series if it.suffix == "_sum")]
    rows = [layer.take(columns, ZERO) for layer in layers]
    suffixes, texts = _texts(columns)

    def compute() -> Iterable[Sample]:
        values = list(_reduced(operator.add, rows))
        for start, end in runs:
            values[start:end] = accumulate(values[start:end])
            values[end] = values[end - 1]
        return map(Sample, suffixes, texts, values)

    return compute


def _by_labels(columns: Iterable[Series]) -> dict[Labels, list[Series]]:
    found: dict[Labels, list[Series]] = {}
    for series in columns:
        found.setdefault(series.labels, []).append(series)
    return found


def _most_recent(members: list[Member]) -> Compute:
    layers = _layers(members)
    columns = _columns(layers)
    rows = [layer.take(columns, ZERO) for layer in layers]
    stamps = [layer.take(columns, ZERO, 1) for layer in layers]
    suffixes, texts = _texts(columns)

    def compute() -> Iterator[Sample]:
        values = zip(*(row() for row in rows), strict=True)
        times = zip(*(row() for row in stamps), strict=True)
        for suffix, text, candidates, set_at in zip(suffixes, texts, values, times, strict=False):
            latest = max(set_at)
            if latest > 0:  # otherwise the gauge was never set
                yield Sample(suffix, text, candidates[set_at.index(latest)])

    return compute


def _by_worker(members: list[Member]) -> Compute:
    plans = [_of_worker(member) for member in sorted(members, key=lambda member: int(member.worker or 0))]
    return lambda: [sample for plan in plans for sample in plan()]


def _of_worker(member: Member) -> Compute:
    # If two values have the same labels, the later one is in use.
    places = {series: index for layer in member.layers() for series, index in layer.places.items()}
    row = Layer(member.source, places).take(places, ZERO)
    texts = [written(series.labels, member.worker) for series in places]
    return lambda: map(Sample, [""] * len(texts), texts, row())


COMPUTE: dict[str, Callable[[list[Member]], Compute]] = {
    "counter": _over_all(operator.add, ZERO),
    "summary": _over_all(operator.add, ZERO),
    "histogram": _histogram,
    "sum": _over_all(operator.add, ZERO),
    "min": _over_all(min, INFINITY),
    "max": _over_all(max, MINUS_INFINITY),
    "mostrecent": _most_recent,
    "all": _by_worker,
}
