"""Writes metric families as text, in the two formats that Prometheus reads, and picks the client's format.

Pure: the standard library alone. See https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/. Names and label names are legal when they arrive here;
label values and HELP texts may contain anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from multicore_server.metrics.family import Family, Sample


class Format(NamedTuple):
    content_type: str
    write: Callable[[Iterable[Family]], bytes]


def text(families: Iterable[Family]) -> bytes:
    """Prometheus' text format 0.0.4."""
    return _encoded(_text_lines(families))


def openmetrics(families: Iterable[Family]) -> bytes:
    """OpenMetrics 1.0, without the samples that it forbids: strict clients refuse everything for one of
    them."""
    return _encoded(_openmetrics_lines(families))


TEXT = Format("text/plain; version=0.0.4; charset=utf-8", text)
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", openmetrics)


def _encoded(lines: Iterable[str]) -> bytes:
    # An app's label may hold half a surrogate pair: one bad character is better than no metrics.
    return "".join(lines).encode("utf-8", "replace")


def _text_lines(families: Iterable[Family]) -> Iterator[str]:
    for family in families:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        kind = "untyped" if family.kind == "unknown" else family.kind
        yield f"# HELP {name} {_escaped(family.help)}\n# TYPE {name} {kind}\n"
        yield from _sample_lines(family.name, family.samples)


def _openmetrics_lines(families: Iterable[Family]) -> Iterator[str]:
    for family in families:
        name = family.name
        help_text = _escaped(family.help).replace('"', r"\"")
        yield f"# HELP {name} {help_text}\n# TYPE {name} {family.kind}\n"
        if family.unit:
            yield f"# UNIT {name} {family.unit}\n"
        yield from _sample_lines(name, _ALLOWED.get(family.kind, iter)(family.samples))
    yield "# EOF\n"


def _escaped(help_text: str) -> str:
    return help_text.replace("\\", r"\\").replace("\n", r"\n")


def _counts(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Counters, sums and counts are neither negative nor NaN."""
    return (sample for sample in samples if sample.value >= 0)


def _of_histogram(samples: Iterable[Sample]) -> Iterable[Sample]:
    """A sum is as above, and there is none beside a negative bucket; a count needs a sum."""
    summed = {labels for suffix, labels, value in samples if suffix == "_sum" and value >= 0}
    summed -= {_without_bound(it.labels) for it in samples if '{le="-' in it.labels or ',le="-' in it.labels}
    return (it for it in samples if it.suffix == "_bucket" or it.labels in summed)


def _without_bound(labels: str) -> str:
    """A bucket's labels without ``le``, which is the last one."""
    others = labels.rpartition("le=")[0].rstrip("{,")
    return others and f"{others}}}"


# What OpenMetrics allows, by the family's kind.
_ALLOWED: dict[str, Callable[[Iterable[Sample]], Iterable[Sample]]] = {
    "counter": _counts,
    "summary": _counts,
    "histogram": _of_histogram,
}


def _sample_lines(name: str, samples: Iterable[Sample]) -> list[str]:
    # Up to a million repr() is what Go writes. This is the hot line: half a microsecond.
    return [
        f"{name}{suffix}{labels} {value!r}\n"
        if 0.0 <= value < 1e6
        else f"{name}{suffix}{labels} {number(value)}\n"
        for suffix, labels, value in samples
    ]


def number(value: float) -> str:
    """A number as Go and all of Prometheus' client libraries write it: ``1e+06``, ``+Inf``, ``NaN``."""
    if 1e6 <= value < 1e16:  # where Go uses an exponent and repr() does not yet
        whole, _, fraction = repr(value).partition(".")
        digits = (whole + fraction).rstrip("0")
        point = "." if len(digits) > 1 else ""
        return f"{digits[0]}{point}{digits[1:]}e+{len(whole) - 1:02}"
    return _NOT_FINITE.get(repr(value)) or repr(value)


_NOT_FINITE = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}


# --- what a client accepts (RFC 9110, 12.4 and 12.5) ---


class Range(NamedTuple):
    """One element of an Accept header: a media range, a content coding."""

    name: str
    parameters: dict[str, str]
    quality: float


def choose(accept: str | None) -> Format:
    """The format for an Accept header. Whoever leaves it open or wants neither of them gets text."""
    ranges = list(_ranges(accept or "*/*"))
    plain, _ = _quality(ranges, "text/plain", "0.0.4")
    modern, named = _quality(ranges, "application/openmetrics-text", "1.0.0")
    return OPENMETRICS if modern > plain or (modern == plain > 0 and named) else TEXT


def _quality(ranges: list[Range], media_type: str, version: str) -> tuple[float, bool]:
    """How much a type is wanted, by the most specific range that matches; whether that names it in full."""
    wildcard = media_type.partition("/")[0] + "/*"
    for name in (media_type, wildcard, "*/*"):
        found = [it for it in ranges if it.name == name and it.parameters.get("version", version) == version]
        if found:
            best = max(found, key=lambda it: ("version" in it.parameters, it.quality))
            return best.quality, name == media_type
    return 0.0, False


def wants_gzip(accept_encoding: str | None) -> bool:
    """Whether gzip may be used, and is not wanted less than no compression."""
    wanted = {it.name: it.quality for it in _ranges(accept_encoding or "")}
    gzip = wanted.get("gzip", wanted.get("x-gzip", wanted.get("*", 0.0)))
    return gzip > 0 and gzip >= wanted.get("identity", 0.0)


def _ranges(header: str) -> Iterator[Range]:
    for element in header.split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        pairs = dict(_pair(parameter) for parameter in parameters)
        if name:
            yield Range(name, pairs, _weight(pairs.pop("q", "1")))


def _pair(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name.strip(), value.strip().strip('"')


def _weight(text: str) -> float:
    """A q-value; 0 for what is none."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
