"""The app's metrics, merged: as prometheus_client does it, without pids, and whatever is in the directory."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.multiprocess import MultiProcessCollector

from multicore_server.ipc.report import ProcessState, Report
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT
from multicore_server.metrics.app.keys import MODES
from multicore_server.metrics.app.merge import AppMetrics, Owner, owners
from multicore_server.metrics.family import labels
from tests.support.reports import process, report, slot
from tests.unit.app_entries import BOUNDS, Entry, counter, gauge, write, write_stock
from tests.unit.app_process import living, shown

# --- the same as prometheus_client's

numbers = st.integers(-(2**20), 2**20).map(float)
label_sets = st.dictionaries(st.sampled_from("abpxz"), st.text(max_size=3), max_size=2)


@st.composite
def histograms(draw: st.DrawFn) -> list[Entry]:
    given = draw(label_sets)
    file, family = "histogram", "seconds"
    bounds = draw(st.permutations(BOUNDS))  # whatever the order in the file
    buckets = [Entry(file, family, "_bucket", given | {"le": it}, draw(numbers)) for it in bounds]
    return [Entry(file, family, "_sum", given, draw(numbers)), *buckets]


@st.composite
def gauges(draw: st.DrawFn) -> list[Entry]:
    mode = draw(st.sampled_from(sorted(MODES)))
    stamp = draw(st.floats(0.5, 2.0)) if mode.endswith("mostrecent") and draw(st.booleans()) else 0.0
    return [gauge(draw(numbers), mode, f"{mode}_level", stamp, **draw(label_sets))]


counters = st.builds(lambda given, value: [counter(value, **given)], label_sets, numbers)
summaries = st.builds(
    lambda given, values: [
        Entry("summary", "sizes", suffix, given, value)
        for suffix, value in zip(("_count", "_sum"), values, strict=True)
    ],
    label_sets,
    st.tuples(numbers, numbers),
)
helps = st.sampled_from(["Help.", "Another help."])
files = st.lists(
    st.builds(
        lambda entries, text: [entry._replace(help=text) for entry in entries],
        st.one_of(counters, summaries, histograms(), gauges()),
        helps,
    ),
    max_size=8,
)


def with_own_stamps(content: list[list[list[Entry]]]) -> list[list[list[Entry]]]:
    """Which of two values with the same stamp is shown is left open."""
    seen: set[float] = set()

    def own(entry: Entry) -> Entry:
        stamp = entry.stamp
        while stamp and stamp in seen:
            stamp = math.nextafter(stamp, math.inf)
        seen.add(stamp)
        return entry._replace(stamp=stamp)

    return [[[own(entry) for entry in group] for group in groups] for groups in content]


def stock(directory: Path, workers: dict[str, Owner]) -> dict[str, float]:
    """What prometheus_client's own collector shows, its label pid taken for ours."""
    found = {}
    collector = MultiProcessCollector(None, str(directory))  # type: ignore[no-untyped-call]
    for family in collector.collect():  # type: ignore[no-untyped-call]
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name != "pid"}
            # Gauges have it last, a histogram's `le` comes last too.
            if "pid" in sample.labels:
                own["worker"] = workers[sample.labels["pid"]].worker
            found[sample.name + labels(own.items())] = sample.value
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(files, min_size=1, max_size=4), st.booleans())
def test_it_shows_what_prometheus_clients_collector_shows(
    content: list[list[list[Entry]]], by_stock: bool
) -> None:
    rows = range(0, ROWS_PER_SLOT * len(content), ROWS_PER_SLOT)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        metrics = AppMetrics(directory)
        for row, groups in zip(rows, with_own_stamps(content), strict=True):
            for group in groups:
                (write_stock if by_stock else write)(directory, f"row{row}", group)
                shown(metrics, living(*rows))  # keys are added between two scrapes
        assert shown(metrics, living(*rows)) == stock(directory, living(*rows))


# --- workers


def report_of(*slots: list[tuple[int, ProcessState]]) -> Report:
    """By slot, the rows and the states of its processes."""
    return report(
        slots=[
            slot(number, processes=[process(row=row, state=state) for row, state in processes])
            for number, processes in enumerate(slots)
        ]
    )


def test_owners_are_the_rows_of_the_slots() -> None:
    found = owners(
        report_of([(0, "draining"), (1, "ready"), (2, "starting")], [(5, "starting")], []), "x-row{}".format
    )
    assert len(found) == 3 * ROWS_PER_SLOT
    assert [it for it, owner in found.items() if owner.shown] == ["x-row1", "x-row5"]
    assert [it for it, owner in found.items() if owner.alive] == ["x-row0", "x-row1", "x-row2", "x-row5"]
    assert found["x-row7"].worker == "1"
    assert owners(None, str) == {}


def scraped(metrics: AppMetrics, *slots: list[tuple[int, ProcessState]]) -> dict[str, float]:
    return shown(metrics, owners(report_of(*slots), "row{}".format))


@pytest.mark.parametrize("mode", ["all", "liveall"])
def test_the_slots_worker_is_the_one_that_is_shown(mode: str, tmp_path: Path) -> None:
    metrics = AppMetrics(tmp_path)
    for row in range(3):
        write(tmp_path, f"row{row}", [gauge(row + 1, mode)])
    before: list[tuple[int, ProcessState]]
    after: list[tuple[int, ProcessState]]
    before, after = [(0, "ready"), (1, "starting")], [(0, "draining"), (1, "ready")]
    assert scraped(metrics, before) == {'size{worker="0"}': 1}
    assert scraped(metrics, after) == {'size{worker="0"}': 2}
    # Without a process, prometheus_client's `all` goes on to show what was there.
    assert scraped(metrics, []) == ({'size{worker="0"}': 2} if mode == "all" else {})
    assert scraped(metrics) == {}  # scaled away


def test_live_modes_are_those_of_the_living(tmp_path: Path) -> None:
    metrics = AppMetrics(tmp_path)
    modes = ["sum", "livesum", "min", "livemin", "max", "livemax", "mostrecent", "livemostrecent"]
    for row, value in ((0, 1), (4, 5), (5, 9)):
        write(tmp_path, f"row{row}", [gauge(value, mode, mode, stamp=value) for mode in modes])
    assert scraped(metrics, [], [(4, "ready")]) == {
        "sum": 15,
        "livesum": 5,
        "min": 1,
        "livemin": 5,
        "max": 9,
        "livemax": 5,
        "mostrecent": 9,
        "livemostrecent": 5,
    }


def test_processes_that_are_no_workers_count_but_are_never_shown_by_pid(tmp_path: Path) -> None:
    metrics = AppMetrics(tmp_path)
    for identifier in ("4711", "row0-0", "17-row3", "arbiter"):
        write_stock(tmp_path, identifier, [counter(1), gauge(3), gauge(2, "livesum", "busy")])
    assert scraped(metrics, [(0, "ready")]) == {"hits_total": 4, "busy": 8}


def test_gauges_that_the_arbiter_has_only_made_are_no_minimum(tmp_path: Path) -> None:
    write(tmp_path, "arbiter", [gauge(0, "min", "a"), gauge(-2, "max", "b")])
    write(tmp_path, "row0", [gauge(5, "min", "a"), gauge(-3, "max", "b")])
    assert scraped(AppMetrics(tmp_path), [(0, "ready")]) == {"a": 5, "b": -2}


@pytest.mark.parametrize("mode", sorted(mode for mode in MODES if not mode.endswith("all")))
def test_gauges_that_the_arbiter_sets_after_a_scrape_count(mode: str, tmp_path: Path) -> None:
    """Also those with labels that no worker has."""
    metrics = AppMetrics(tmp_path)
    made = [gauge(0, mode, "a"), gauge(0, mode, "b", of="arbiter")]
    write(tmp_path, "arbiter", made)
    write(tmp_path, "row0", [gauge(0, mode, "a")])
    assert shown(metrics, living(0)).get("a", 0.0) == 0.0
    for value in (7.0, -7.0, 8.0):
        write(tmp_path, "arbiter", [entry._replace(value=value, stamp=1) for entry in made])
        alone = shown(metrics, living(0))
        assert alone['b{of="arbiter"}'] == value
        extreme = {"min": min(value, 0.0), "max": max(value, 0.0)}
        assert alone["a"] == extreme.get(mode.removeprefix("live"), value)


# --- what an app may write

NASTY = 'a\\b"c\nd'


def test_labels_and_help_are_escaped(tmp_path: Path) -> None:
    write(tmp_path, "row0", [counter(1, path=NASTY)._replace(help=NASTY)])
    [family] = AppMetrics(tmp_path).collect({})
    assert family.samples[0].labels == '{path="a\\\\b\\"c\\nd"}'
    assert family.help == NASTY  # the format's to escape


def test_labels_that_are_ours_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path, "row0", [gauge(1, worker="own", exported_worker="too", myworker="x")])
    write(tmp_path, "row0", [counter(1, worker="own")])
    assert scraped(AppMetrics(tmp_path), [(0, "ready")]) == {
        'size{exported_exported_worker="too",myworker="x",exported_worker="own",worker="0"}': 1,
        'hits_total{worker="own"}': 1,
    }


def test_names_that_the_formats_do_not_have_are_made_legal(tmp_path: Path) -> None:
    write(tmp_path, "row0", [counter(1, "http.server-time", **{"a.b": "x", "1": "y"})])
    assert scraped(AppMetrics(tmp_path)) == {'http_server_time_total{_1="y",a_b="x"}': 1}


def test_a_histogram_that_is_being_made_is_not_shown(tmp_path: Path) -> None:
    metrics = AppMetrics(tmp_path)
    for number, bound in enumerate(BOUNDS):
        write(tmp_path, "row0", [Entry("histogram", "h", "_bucket", {"le": bound}, 1)])
        assert bool(shown(metrics)) == (number == len(BOUNDS) - 1)
