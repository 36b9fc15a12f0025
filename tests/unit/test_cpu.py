from __future__ import annotations

import os
from pathlib import Path

import pytest

from multicore_server.machine.cpu import usable_cpus


def fake_proc(tmp_path: Path, cpu_max: str) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "self/mountinfo").write_text(f"31 23 0:28 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "cpu.max").write_text(cpu_max)
    return tmp_path


@pytest.mark.parametrize(
    ("affinity", "cpu_max", "expected"),
    [
        (8, "max 100000\n", 8),
        (8, "150000 100000\n", 2),
        (8, "300000 100000\n", 3),
        (8, "300001 100000\n", 4),
        (8, "10000 100000\n", 1),
        (2, "1600000 100000\n", 2),
        (8, "", 8),
        (0, "max 100000\n", 1),
    ],
)
def test_the_smaller_of_affinity_and_quota_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, cpu_max: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    assert usable_cpus(fake_proc(tmp_path, cpu_max)) == expected


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_without_affinity_all_cpus_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cpus(tmp_path) == expected


def test_this_machine() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
