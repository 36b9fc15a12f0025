"""How many workers, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from multicore_server.arbiter.worker_number import MB, WorkerNumber, need_of, oom_line
from multicore_server.machine import cgroup, memory
from multicore_server.settings.sources import Given

MAX = Given("max", "the default")


@pytest.mark.parametrize(
    ("wanted", "given", "limit", "tries"),
    [
        (64, MAX, 512 * MB, True),
        (63, Given(-1, "from run's options"), 512 * MB, True),
        (64, MAX, None, False),
        (2, MAX, 512 * MB, False),
        (1, MAX, 64 * MB, False),
        (64, Given(64, "from the command line, -w"), 512 * MB, False),
    ],
)
def test_one_is_tried_where_many_may_have_no_room(
    wanted: int, given: Given, limit: int | None, *, tries: bool
) -> None:
    assert WorkerNumber(wanted, given, limit).tries == tries


@pytest.mark.parametrize(
    ("need", "others", "expected"), [(80 * MB, 100 * MB, 4), (1 * MB, 100 * MB, 64), (900 * MB, 100 * MB, 1)]
)
def test_what_the_first_one_shows(need: int, others: int, expected: int) -> None:
    number = WorkerNumber(64, MAX, 512 * MB)
    found, line = number.learn(need, others)
    assert found == expected
    if expected == 64:
        assert line == ""
    else:
        assert line.startswith(f"workers: {expected} instead of 64: one uses {need // MB} MiB after its boot")


def test_a_limit_that_was_lifted_meanwhile() -> None:
    assert WorkerNumber(64, MAX, None).learn(80 * MB, 100 * MB) == (64, "")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (
            WorkerNumber(64, MAX, 512 * MB),
            (
                "workers: 64 (the default, 'max'); 64 usable CPUs, no CPU quota, 512 MiB of memory: the "
                "first worker shows how many fit"
            ),
        ),
        (WorkerNumber(2, MAX, None), "workers: 2 (the default, 'max'); 64 usable CPUs, no CPU quota"),
        (
            WorkerNumber(3, Given(3, "from the command line, -w"), None),
            "workers: 3 (from the command line, -w, 3)",
        ),
    ],
    ids=["little memory", "enough", "a number"],
)
def test_the_line_at_the_start(number: WorkerNumber, line: str) -> None:
    assert number.reason(64, None) == line


def test_a_quota_is_named() -> None:
    assert WorkerNumber(2, MAX, None).reason(1, 0.5).endswith("; 1 usable CPU, a CPU quota of 0.5")


def test_an_arbiter_that_may_not_look_sees_the_resident_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(memory, "uss", refuse)
    monkeypatch.setattr(memory, "rss", lambda pid: 7)
    assert need_of(1) == 7


@pytest.mark.parametrize(("file", "found"), [("1\n", True), ("0\n", False), (None, False)])
def test_the_group_that_ends_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, found: bool
) -> None:
    mount = tmp_path / "cg"
    for path, text in {
        "proc/self/cgroup": "0::/pod/app\n",
        "proc/self/mountinfo": f"1 2 0:1 / {mount} rw - cgroup2 cgroup2 rw\n",
        "cg/pod/app/memory.max": "536870912",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    if file is not None:
        (mount / "pod/app/memory.oom.group").write_text(file)
    assert cgroup.oom_group(tmp_path / "proc") is found
    monkeypatch.setattr(cgroup, "oom_group", lambda: found)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 1)
    assert oom_line().startswith("memory.oom.group is 1") is found
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    assert oom_line() == ""
