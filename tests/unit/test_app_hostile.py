"""What an app and its directory may do to a scrape: names that are taken, files that are broken."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multicore_server.metrics.app.merge import AppMetrics, Owner
from tests.unit.app_entries import Entry, counter, gauge, write, write_stock
from tests.unit.app_process import living, shown

# --- collisions


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "gunicorn.error"):
        yield caplog


@pytest.mark.parametrize(
    ("entries", "kept"),
    [
        ([counter(1, "x"), gauge(2, "sum", "x")], "x_total"),
        ([counter(1, "x"), gauge(2, "sum", "x_total")], "x_total"),
        ([gauge(1, "max", "x"), gauge(2, "sum", "x")], "x"),
        ([Entry("summary", "x", "_count", {}, 1), gauge(2, "sum", "x_count")], "x_count"),
    ],
)
def test_a_name_that_is_taken_is_reported_once_and_not_served_twice(
    entries: list[Entry], kept: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "row0", entries)
    metrics = AppMetrics(tmp_path)
    assert shown(metrics) == {kept: 1}
    assert metrics.collisions == 1
    write(tmp_path, "row0", [counter(1, "new")])  # all is planned anew
    assert shown(metrics) == {kept: 1, "new_total": 1}
    assert metrics.collisions == 1
    assert len(log.messages) == 1
    assert "is not shown" in log.messages[0]


def test_names_of_the_servers_own_are_not_the_apps(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "row0", [counter(1, "multicore_reloads"), counter(2)])
    metrics = AppMetrics(tmp_path, reserved={"multicore_reloads_total"})
    assert shown(metrics) == {"hits_total": 2}
    assert (metrics.collisions, len(log.messages)) == (1, 1)
    assert "the server has that name" in log.messages[0]


def test_after_a_reload_the_living_say_what_a_metric_is(tmp_path: Path) -> None:
    write(tmp_path, "row0", [counter(1, "x")])
    write(tmp_path, "row1", [gauge(7, "sum", "x")])
    metrics = AppMetrics(tmp_path)
    assert shown(metrics, living(0)) == {"x_total": 1}
    assert shown(metrics, living(1)) == {"x": 7}


def of_row(row: int, started: float) -> dict[str, Owner]:
    """The worker of row 0 or 1, where it is the only one, and began then."""
    return {f"row{it}": Owner("0", it == row, it == row, started * (it == row)) for it in range(2)}


def counted(value: float, stamp: float) -> Entry:
    return counter(value, "x")._replace(stamp=stamp)


CHANGES = [
    (counted(3, 10), gauge(7, "sum", "x", stamp=20), {"x_total": 3}, {"x": 7}),
    (gauge(3, "sum", "x", stamp=10), counted(7, 20), {"x": 3}, {"x_total": 7}),
    (gauge(3, "max", "x", stamp=10), gauge(7, "sum", "x", stamp=20), {"x": 3}, {"x": 7}),
    (gauge(3, "mostrecent", "x", stamp=15), gauge(7, "max", "x", stamp=20), {"x": 3}, {"x": 7}),
    (gauge(3, "max", "x", stamp=10), gauge(7, "mostrecent", "x", stamp=25), {"x": 3}, {"x": 7}),
    (counted(3, 10), gauge(7, "sum", "x_total", stamp=20), {"x_total": 3}, {"x_total": 7}),
]


@pytest.mark.parametrize(("old", "new", "before", "after"), CHANGES)
def test_what_former_owners_of_a_row_have_made_gives_way(
    old: Entry, new: Entry, before: dict[str, float], after: dict[str, float], tmp_path: Path,
    log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    metrics = AppMetrics(tmp_path)
    write(tmp_path, "row0", [old])
    assert shown(metrics, of_row(0, 10)) == before
    assert shown(metrics, of_row(0, 20)) == before  # the next worker has not made it yet
    write(tmp_path, "row0", [new])
    assert shown(metrics, of_row(0, 20)) == after
    assert shown(metrics, {"row0": Owner("0", False, False)}) == after  # and without a process
    assert shown(metrics, of_row(0, 30)) == after  # the one after it
    write(tmp_path, "row0", [old._replace(stamp=30)])  # the change is taken back
    assert shown(metrics, of_row(0, 30)) == before
    assert (metrics.collisions, log.messages) == (0, [])


def test_a_type_that_a_worker_gives_up_gives_way_without_a_new_key(tmp_path: Path) -> None:
    """The next worker makes values that a former owner of its row has made: no file gets longer."""
    write(tmp_path, "row0", [counted(3, 30), gauge(7, "sum", "x", stamp=20)])
    write(tmp_path, "row1", [counted(3, 30)])
    metrics = AppMetrics(tmp_path)
    assert shown(metrics, of_row(0, 30)) == {"x_total": 6}
    write(tmp_path, "row0", [gauge(7, "sum", "x", stamp=40)])
    assert shown(metrics, of_row(0, 40)) == {"x": 7}


def test_while_workers_make_both_the_later_one_is_served(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "row0", [counted(3, 10)])
    write(tmp_path, "row4", [gauge(7, "sum", "x", stamp=20)])
    metrics = AppMetrics(tmp_path)
    both = {"row0": Owner("0", True, True, 10), "row4": Owner("1", True, True, 20)}
    assert shown(metrics, both) == {"x": 7}
    assert metrics.collisions == 1
    assert log.messages == ["the app's counter x is not shown: the app's gauge (sum) x has that name"]
    assert shown(metrics, both | {"row0": Owner("0", True, True, 30)}) == {"x": 7}
    assert metrics.collisions == 0


def test_a_child_of_a_worker_collides_with_it_while_the_worker_lives(tmp_path: Path) -> None:
    write(tmp_path, "row0", [gauge(7, "sum", "x", stamp=10)])
    write(tmp_path, "row0-0", [counted(3, 11)])
    metrics = AppMetrics(tmp_path)
    assert shown(metrics, of_row(0, 10)) == {"x_total": 3}
    assert metrics.collisions == 1
    write(tmp_path, "row0", [gauge(7, "sum", "x", stamp=20)])
    assert shown(metrics, of_row(0, 20)) == {"x": 7}
    assert metrics.collisions == 0


# --- what may lie in the directory


def key_of(*parts: object) -> bytes:
    return str(list(parts)).replace("'", '"').encode()


def raw(key: bytes, used: int | None = None) -> bytes:
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    entry = struct.pack("i", len(key)) + padded + struct.pack("dd", 1.0, 0.0)
    return struct.pack("ii", 8 + len(entry) if used is None else used, 0) + entry


GOOD = raw(key_of("hits", "hits_total", {}, "Help."))
BROKEN = {
    "counter_empty.db": b"",
    "counter_zeros.db": b"\0" * 65536,
    "counter_short.db": GOOD[:-8],
    "counter_four.db": b"\x08\0\0\0",
    "counter_negative.db": raw(b"[]", -8),
    "counter_odd.db": raw(b"[]", 29),
    "counter_huge.db": raw(b"[]", 2**31 - 8),
    "counter_length.db": struct.pack("iiii", 32, 0, 2**31 - 1, 0) + bytes(16),
    "counter_nojson.db": raw(b"nonsense"),
    "counter_nested.db": raw(b"[" * 100_000),
    "counter_utf8.db": raw(b"\xff\xfe"),
    "counter_number.db": raw(b"5"),
    "counter_shape.db": raw(key_of("hits", "hits_total", [], "Help.")),
    "counter_texts.db": raw(key_of("hits", "hits_total", {"a": 5}, "Help.")),
    "counter_names.db": raw(key_of("hits", "others_total", {}, "Help.")),
    "counter_suffix.db": raw(key_of("hits", "hits_bucket", {}, "Help.")),
    "counter_own.db": raw(key_of("hits", "hits_total", {"__name__": "x"}, "Help.")),
    "histogram_bound.db": raw(key_of("h", "h_bucket", {"le": "x"}, "Help.")),
    "histogram_unbound.db": raw(key_of("h", "h_bucket", {}, "Help.")),
    "histogram_nan.db": raw(key_of("h", "h_bucket", {"le": "nan"}, "Help.")),
    "gauge_row0.db": GOOD,
    "gauge_other_row0.db": GOOD,
    "counter_a_b.db": GOOD,
    "info_row0.db": GOOD,
    "nothing.db": GOOD,
}


def test_a_whole_file_is_shown(tmp_path: Path) -> None:
    (tmp_path / "counter_whole.db").write_bytes(GOOD)
    assert shown(AppMetrics(tmp_path)) == {"hits_total": 1}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_left_out_said_once_and_counted(
    name: str, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "row0", [counter(3)])
    (tmp_path / name).write_bytes(BROKEN[name])
    metrics = AppMetrics(tmp_path)
    for _ in range(3):
        assert shown(metrics) == {"hits_total": 3}
        assert metrics.left_out == 1
    assert len(log.messages) == 1
    assert name in log.messages[0]
    (tmp_path / name).unlink()
    assert shown(metrics) == {"hits_total": 3}
    assert metrics.left_out == 0


def test_what_is_no_file_is_left_out(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    (tmp_path / "counter_directory.db").mkdir()
    (tmp_path / "counter_link.db").symlink_to(tmp_path / "loop")
    (tmp_path / "loop").symlink_to(tmp_path / "counter_link.db")
    os.mkfifo(tmp_path / "counter_fifo.db")
    (tmp_path / "server.lock").touch()
    metrics = AppMetrics(tmp_path)
    assert shown(metrics) == {}
    assert metrics.left_out == 3
    assert len(log.messages) == 3


def test_a_file_that_gets_broken_keeps_its_last_values(tmp_path: Path) -> None:
    metrics = AppMetrics(tmp_path)
    for row in range(2):
        write(tmp_path, f"row{row}", [counter(5)])
    assert shown(metrics) == {"hits_total": 10}
    os.truncate(tmp_path / "counter_row0.db", 24)
    write(tmp_path, "row1", [counter(6)])
    assert shown(metrics) == {"hits_total": 11}
    assert metrics.left_out == 1


@pytest.mark.parametrize("writer", [write, write_stock])
def test_a_file_in_the_place_of_another_is_read_anew(writer: Any, tmp_path: Path) -> None:
    """Also where the file system gives it the number of the former one."""
    metrics = AppMetrics(tmp_path)
    for first, second in (("a", "b"), ("b", "c"), ("c", "a")):
        entries = [gauge(1, "sum", n=first), gauge(2, "sum", n=second)]
        writer(tmp_path, "row0", entries)
        assert shown(metrics) == {f'size{{n="{first}"}}': 1, f'size{{n="{second}"}}': 2}
        (tmp_path / "gauge_sum_row0.db").unlink()


def test_a_directory_that_is_not_there(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    metrics = AppMetrics(tmp_path / "gone")
    assert shown(metrics) == {}
    assert shown(metrics) == {}
    assert len(log.messages) == 1
