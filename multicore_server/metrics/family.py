"""A metric family: what collectors produce and what the writers of a format read.

Pure: the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram", "summary", "unknown"]


class Sample(NamedTuple):
    """``labels`` is written out, ``{worker="0"}``, or empty: written once for many scrapes."""

    suffix: str  # "_total" of counters, "_bucket", "_sum", "_count", or none
    labels: str
    value: float


class Family(NamedTuple):
    """``name`` has no ``_total``, as in OpenMetrics; ``unit`` is the name's last part, or none."""

    name: str
    kind: Kind
    help: str
    samples: list[Sample]
    unit: str = ""


def labels(pairs: Iterable[tuple[str, str]]) -> str:
    """Labels as both formats write them, ``{a="1",b="2"}``."""
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
