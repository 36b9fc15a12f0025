"""Both formats, byte for byte as prometheus_client writes them, whatever labels and HELP texts hold."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import exposition as stock_text
from prometheus_client import parser as text_parser
from prometheus_client import utils
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as stock_openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser

from multicore_server.metrics.exposition import (
    OPENMETRICS,
    TEXT,
    choose,
    number,
    openmetrics,
    text,
    wants_gzip,
)
from multicore_server.metrics.family import Family, Sample, labels

Pairs = tuple[tuple[str, str], ...]
Row = tuple[str, Pairs, float]
Described = tuple[str, Any, str, str, list[Row]]  # name, kind, help, unit, rows

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


# --- the same data for us and for the library


def as_go(written: str) -> str:
    """Old versions of the library, 0.22 among them, write 1e+010."""
    return re.sub(r"e\+0(\d\d)", r"e+\1", written)


def stock_number(value: float) -> str:
    convert: Any = utils.floatToGoString  # has no types
    return as_go(convert(value))


def ours(described: Iterable[Described]) -> list[Family]:
    return [
        Family(
            name, kind, words, [Sample(suffix, labels(pairs), value) for suffix, pairs, value in rows], unit
        )
        for name, kind, words, unit, rows in described
    ]


class Stock:
    """A registry as prometheus_client sees one."""

    def __init__(self, described: Iterable[Described]) -> None:
        self._described = described

    def collect(self) -> Iterator[Metric]:
        for name, kind, words, unit, rows in self._described:
            metric = Metric(name, words, kind, unit)
            for suffix, pairs, value in rows:
                metric.add_sample(name + suffix, dict(pairs), value)
            yield metric


def stock(described: list[Described], module: Any) -> str:
    return as_go(module.generate_latest(Stock(described)).decode())


hostile = st.text(st.sampled_from('\\n"\n\r{},= #\té日😀\x85\u2028\0'), max_size=8)
label_names = st.sampled_from(["a", "b", "code", "worker"])
label_sets = st.dictionaries(label_names, hostile, max_size=3).map(lambda found: tuple(sorted(found.items())))
any_value = st.floats() | st.integers(0, 10**9).map(float)
count_value = st.integers(0, 10**12).map(float)
sum_value = st.floats(min_value=0, allow_infinity=False)


def histogram_rows(pairs: Pairs, cells: list[int], total: float) -> list[Row]:
    def bucket(bound: str, upto: int) -> Row:
        return ("_bucket", tuple(sorted((*pairs, ("le", bound)))), float(sum(cells[:upto])))

    count = float(sum(cells))
    return [
        bucket("0.5", 1),
        bucket("1.0", 2),
        bucket("+Inf", 3),
        ("_count", pairs, count),
        ("_sum", pairs, total),
    ]


cells = st.lists(st.integers(0, 10**6), min_size=3, max_size=3)
one_row = {
    "counter": st.builds(lambda pairs, value: [("_total", pairs, value)], label_sets, count_value),
    "gauge": st.builds(lambda pairs, value: [("", pairs, value)], label_sets, any_value),
    "unknown": st.builds(lambda pairs, value: [("", pairs, value)], label_sets, any_value),
    "summary": st.builds(
        lambda pairs, count, total: [("_count", pairs, count), ("_sum", pairs, total)],
        label_sets,
        count_value,
        sum_value,
    ),
    "histogram": st.builds(histogram_rows, label_sets, cells, sum_value),
}


@st.composite
def registries(draw: st.DrawFn, words: st.SearchStrategy[str] = hostile) -> list[Described]:
    found: list[Described] = []
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(sorted(one_row)))
        unit = draw(st.sampled_from(["", "seconds"]))
        groups = draw(st.lists(one_row[kind], max_size=3, unique_by=lambda rows: rows[-1][1]))
        name = f"m{index}_{unit}" if unit else f"m{index}"
        found.append((name, kind, draw(words), unit, [row for rows in groups for row in rows]))
    return found


# --- against the library


@given(registries())
def test_both_formats_are_the_library_s(described: list[Described]) -> None:
    assert text(ours(described)).decode() == stock(described, stock_text)
    assert openmetrics(ours(described)).decode() == stock(described, stock_openmetrics)


def seen(metrics: Iterable[Metric]) -> list[Row]:
    return [
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for metric in metrics
        for sample in metric.samples
    ]


# The library's own parsers lose their way in a HELP text with quotes; samples are what matters here.
@given(registries(st.sampled_from(["Some words.", "A \\ and\na line."])))
def test_both_formats_are_read_back(described: list[Described]) -> None:
    rows = [
        (name + suffix, pairs, value) for name, _, _, _, rows in described for suffix, pairs, value in rows
    ]
    for read, written in (
        (text_parser.text_string_to_metric_families, text(ours(described))),
        (openmetrics_parser.text_string_to_metric_families, openmetrics(ours(described))),
    ):
        found = seen(read(written.decode()))
        assert [row[:2] for row in found] == [row[:2] for row in rows]
        assert [row[2] for row in found] == pytest.approx([row[2] for row in rows], rel=0, abs=0, nan_ok=True)


@given(st.floats())
def test_numbers_are_the_library_s(value: float) -> None:
    assert number(value) == stock_number(value)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 5.0, 999999.0, 1e6, 52428800.0, 1e16, 1.5e22, math.nan, -math.inf]
)
def test_samples_are_the_library_s(value: float) -> None:
    line = text([Family("m", "gauge", "M.", [Sample("", "", value)])]).splitlines()[-1]
    assert line.decode() == f"m {stock_number(value)}"


# --- by hand

EVERYTHING = [
    Family("hits", "counter", 'Hits: "a\\b"\nand c.', [Sample("_total", '{worker="0"}', 3.0)]),
    Family("age_seconds", "unknown", "Age.", [Sample("", "", 1.5)], "seconds"),
    Family("empty", "gauge", "Nothing yet.", []),
]


def test_text_by_hand() -> None:
    assert text(EVERYTHING).decode() == (
        '# HELP hits_total Hits: "a\\\\b"\\nand c.\n'
        "# TYPE hits_total counter\n"
        'hits_total{worker="0"} 3.0\n'
        "# HELP age_seconds Age.\n"
        "# TYPE age_seconds untyped\n"
        "age_seconds 1.5\n"
        "# HELP empty Nothing yet.\n"
        "# TYPE empty gauge\n"
    )


def test_openmetrics_by_hand() -> None:
    assert openmetrics(EVERYTHING).decode() == (
        '# HELP hits Hits: \\"a\\\\b\\"\\nand c.\n'
        "# TYPE hits counter\n"
        'hits_total{worker="0"} 3.0\n'
        "# HELP age_seconds Age.\n"
        "# TYPE age_seconds unknown\n"
        "# UNIT age_seconds seconds\n"
        "age_seconds 1.5\n"
        "# HELP empty Nothing yet.\n"
        "# TYPE empty gauge\n"
        "# EOF\n"
    )


def test_openmetrics_has_no_illegal_counters() -> None:
    rows = [
        Sample("_total", f'{{i="{i}"}}', value) for i, value in enumerate((math.nan, -1.0, math.inf, 2.0))
    ]
    illegal = [Family("hits", "counter", "Hits.", rows)]
    assert openmetrics(illegal).decode().splitlines()[2:] == [
        'hits_total{i="2"} +Inf',
        'hits_total{i="3"} 2.0',
        "# EOF",
    ]
    assert len(text(illegal).splitlines()) == 2 + len(rows)


read_openmetrics: Any = openmetrics_parser.text_string_to_metric_families  # has no types
ILLEGAL_SUMS = [math.nan, -1.5, -math.inf]
ROLE = '{role="-x, le=\\"-1\\""}'  # a value that looks like a bound


@pytest.mark.parametrize("total", ILLEGAL_SUMS)
def test_openmetrics_has_no_illegal_sums_of_summaries(total: float) -> None:
    samples = [Sample("_count", '{a="x"}', 2.0), Sample("_sum", '{a="x"}', total), Sample("_sum", "", 3.0)]
    written = openmetrics([Family("size", "summary", "S.", samples)]).decode()
    assert written.splitlines()[2:] == ['size_count{a="x"} 2.0', "size_sum 3.0", "# EOF"]
    assert list(read_openmetrics(written))


def histogram(total: float, bounds: list[str], group: str = "") -> list[Sample]:
    label = group.rstrip("}") + "," if group else "{"
    buckets = [Sample("_bucket", f'{label}le="{bound}"}}', 2.0) for bound in bounds]
    return [*buckets, Sample("_count", group, 2.0), Sample("_sum", group, total)]


@pytest.mark.parametrize("group", ["", '{a="x"}', ROLE])
@pytest.mark.parametrize(
    ("total", "bounds"),
    [*((it, ["0.5", "+Inf"]) for it in ILLEGAL_SUMS), (1.0, ["-1.0", "0.0", "+Inf"])],
)
def test_openmetrics_has_no_illegal_sums_of_histograms(total: float, bounds: list[str], group: str) -> None:
    """The buckets stay, and other label sets have all that they had."""
    legal = [histogram(1.0, ["0.5", "+Inf"], other) for other in ('{b="y"}', '{role="-x"}')]
    illegal = histogram(total, bounds, group)
    samples = [*legal[0], *illegal, *legal[1]]
    written = openmetrics([Family("lag", "histogram", "L.", samples)]).decode()
    kept = [*legal[0], *illegal[:-2], *legal[1]]
    expected = text([Family("lag", "histogram", "L.", kept)]).decode()
    assert written == f"{expected}# EOF\n"
    assert list(read_openmetrics(written))
    assert len(text([Family("lag", "histogram", "L.", samples)]).splitlines()) == 2 + len(samples)


def test_half_a_surrogate_pair_costs_one_character() -> None:
    families = [Family("m", "gauge", "\udc80", [Sample("", labels([("a", "x\ud800")]), 1.0)])]
    assert text(families) == b'# HELP m ?\n# TYPE m gauge\nm{a="x?"} 1.0\n'


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is missing")
@pytest.mark.parametrize("words", ['"quoted" \\ and\nbroken', "  spaces  ", "# HELP hits_total", "é"])
def test_promtool_reads_hostile_texts(words: str) -> None:
    families = [Family("hits", "counter", words, [Sample("_total", labels([("a", words)]), 3.0)])]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text(families), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- what a client accepts


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, TEXT),
        ("", TEXT),
        ("*/*", TEXT),
        (BROWSER, TEXT),
        ("text/plain", TEXT),
        ("text/plain; version=0.0.4, */*;q=0.1", TEXT),
        ("application/json", TEXT),
        (PROMETHEUS, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text,text/plain", OPENMETRICS),
        ("application/openmetrics-text;q=0.4,text/plain;q=0.5", TEXT),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.4", OPENMETRICS),
        ("application/*", OPENMETRICS),
        ("application/*;q=0.5, text/*;q=0.5", TEXT),
        ("application/openmetrics-text;q=0, application/*", TEXT),
        ("application/openmetrics-text;q=0, */*", TEXT),
        ("text/plain;q=0, */*", OPENMETRICS),
        ("text/plain;version=0.0.4;q=0.9, text/plain;q=0.1, application/openmetrics-text;q=0.5", TEXT),
        ("text/plain;version=0.0.4;q=0.1, text/plain;q=0.9, application/openmetrics-text;q=0.5", OPENMETRICS),
        # Versions that we do not write.
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("text/plain;version=1.0.0;q=0.9, application/openmetrics-text;q=0.5", OPENMETRICS),
        # No header at all, or none that makes sense.
        ("application/openmetrics-text;q=2", TEXT),
        ("application/openmetrics-text;q=nan", TEXT),
        ("application/openmetrics-text;q=", TEXT),
        (",;,;;=,/,q=1" * 100, TEXT),
    ],
)
def test_the_format_is_chosen_by_accept(accept: str | None, expected: object) -> None:
    assert choose(accept) is expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("*", True),
        ("deflate, gzip;q=0.5, br", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, *", False),
        ("*;q=0", False),
        ("identity;q=0, gzip;q=0.1", True),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=no", False),
        ("gzipped", False),
    ],
)
def test_gzip_is_used_where_it_is_wanted(accept: str | None, expected: bool) -> None:
    assert wants_gzip(accept) is expected


def test_content_types_are_the_library_s() -> None:
    assert TEXT.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert OPENMETRICS.content_type == stock_openmetrics.CONTENT_TYPE_LATEST
