"""Where the files of the app's metrics have no room: values go on in memory, with a line in the log."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.app_process import PLAIN, as_worker, hit, in_one_process, play, shown, started


def many(path: str) -> None:
    """More than there is room for; each of them counts at least in memory."""
    metrics = started(path)
    limit = os.environ.get("FILE_SIZE")
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    client = as_worker(0)
    counter = client.Counter("hits", "Hits.", ["path"])
    histogram = client.Histogram("seconds", "S.", ["path"])
    for number in range(2000):
        counter.labels(f"/{number}").inc()
        histogram.labels(f"/{number}").observe(1)
    assert all(counter.labels(f"/{number}")._value.get() == 1 for number in range(2000))
    seen = sum(value for name, value in shown(metrics).items() if name.startswith("hits"))
    assert 10 < seen < 2000
    for number in range(2000):
        counter.labels(f"/{number}").inc()
    again = sum(value for name, value in shown(metrics).items() if name.startswith("hits"))
    assert again == 2 * seen


@contextmanager
def small_tmpfs(path: Path) -> Iterator[bool]:
    """Whether there is one: that takes root and a kernel that allows it."""
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


def said_once(log: str, path: Path, reason: str) -> None:
    [line] = log.splitlines()
    assert line.startswith(f"the app's metrics have no room in {path}/")
    assert reason in line


def test_a_full_file_system_is_no_bus_error(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path) as mounted:
        if not mounted:
            pytest.skip("no tmpfs can be mounted here; test_a_limit_on_files covers the same code")
        said_once(play(many, tmp_path).log, tmp_path, "No space left on device")


def test_a_limit_on_files(tmp_path: Path) -> None:
    said_once(play(many, tmp_path, FILE_SIZE="65536").log, tmp_path, "File too large")


def without_descriptors(path: str) -> None:
    metrics = started(path)
    client = as_worker(0)
    client.Counter("before", "B.").inc()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    hits = client.Summary("hits", "Hits.")
    hits.observe(2)
    assert hits._sum.get() == 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert shown(metrics) == {"before_total": 1}


def test_without_descriptors_values_go_on_in_memory(tmp_path: Path) -> None:
    said_once(play(without_descriptors, tmp_path).log, tmp_path, "Too many open files")


def gone(path: str) -> None:
    metrics = started(path + "/gone")
    hit(0)
    as_worker(0).Gauge("g", "G.").set(1)
    assert shown(metrics) == {}


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    log = play(gone, tmp_path).log.splitlines()
    said_once(log[0], tmp_path / "gone", "No such file")
    assert len(log) == 2  # the other one is the scrape's


def corrupt(path: str) -> None:
    metrics = started(path)
    hit(0)
    assert shown(metrics) == PLAIN


@pytest.mark.parametrize("content", [b"", b"\0" * 65536, b"x" * 100, b"\x10\0\0\0\0\0\0\0\xff\0\0\0\0\0\0\0"])
def test_a_file_of_its_own_that_is_broken_is_replaced(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "counter_row0.db").write_bytes(content)
    in_one_process(corrupt, tmp_path)
