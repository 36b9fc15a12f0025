"""Parses and checks the keys in the metrics files, because their content comes from the app and its clients.

Pure: it imports only the standard library. A key is JSON: metric name, sample name, labels and HELP text.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from math import isnan
from typing import NamedTuple

from multicore_server.metrics.exposition import number
from multicore_server.metrics.family import labels

SUFFIXES: dict[str, tuple[str, ...]] = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
KINDS = frozenset(SUFFIXES)
MODES = frozenset(live + mode for live in ("", "live") for mode in ("all", "min", "max", "sum", "mostrecent"))
WORKER = "worker"
MOST_REMEMBERED = 1 << 16

Labels = tuple[tuple[str, str], ...]


class Series(NamedTuple):
    """``labels`` are sorted by name. A histogram's ``le`` is not among them, it is ``bound``."""

    suffix: str
    labels: Labels
    bound: float | None


class Key(NamedTuple):
    family: str
    series: Series
    help: str


@lru_cache(MOST_REMEMBERED)
def read_key(kind: str, text: str) -> Key:
    """Parse a key. Raises ValueError if prometheus_client would not write it."""
    family, sample, pairs, help_text = _parts(text)
    suffix = sample.removeprefix(family)
    if not sample.startswith(family) or suffix not in SUFFIXES[kind]:
        raise ValueError(f"{sample!r} is not part of the {kind} {family!r}")
    bound = None
    if suffix == "_bucket":
        bound = float(pairs.pop("le", "nan"))
        if isnan(bound):
            raise ValueError("a bucket has no bound")
    legal = {_legal(name, "_"): value for name, value in pairs.items()}
    return Key(_legal(family, "_:"), Series(suffix, tuple(sorted(legal.items())), bound), help_text)


def _parts(text: str) -> tuple[str, str, dict[str, str], str]:
    try:
        family, sample, pairs, help_text = json.loads(text)
        texts = (family, sample, help_text, *pairs, *pairs.values())
    except (AttributeError, TypeError, RecursionError) as exc:
        raise ValueError("a key has a wrong structure") from exc
    if not family or not all(isinstance(part, str) for part in texts):
        raise ValueError("a key has a part that is not text")
    if any(name.startswith("__") for name in pairs):
        raise ValueError("a key has a label that is reserved for Prometheus")
    return family, sample, pairs, help_text


def _legal(name: str, extra: str) -> str:
    """Replace characters that the exposition formats do not allow. prometheus_client allows any text."""
    name = re.sub(f"[^a-zA-Z0-9{extra}]", "_", name)
    return f"_{name}" if not name or name[0].isdigit() else name


@lru_cache(MOST_REMEMBERED)
def written(own: Labels, worker: str | None = None, bound: float | None = None) -> str:
    """Return labels as text: the app's own, then the worker or a bucket's upper bound."""
    if worker is None:
        return labels(own if bound is None else (*own, ("le", number(bound))))
    return labels((*_without_worker(own), (WORKER, worker)))


def _without_worker(own: Labels) -> Labels:
    """Rename the app's label ``worker`` to ``exported_worker``, as Prometheus renames conflicting labels."""
    if WORKER not in dict(own):
        return own
    taken = re.compile(f"(exported_)*{WORKER}")
    return tuple((f"exported_{name}" if taken.fullmatch(name) else name, value) for name, value in own)
