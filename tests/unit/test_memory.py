from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from multicore_server.machine import memory

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A fork that runs `work` and then waits to be killed, holding the result."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        gc.disable()  # it writes to what is inherited, at some time
        try:
            _held = work()
            os.write(done, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(done)
    try:
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def gone_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", ""])
    process.wait()
    return process.pid


def fake_process(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "7").mkdir()
    for name, text in files.items():
        (tmp_path / "7" / name).write_text(text)
    return tmp_path


def test_own_memory_is_what_psutil_says() -> None:
    expected = psutil.Process().memory_full_info()
    assert memory.rss(os.getpid()) == pytest.approx(expected.rss, rel=0.05)
    assert memory.uss() == pytest.approx(expected.uss, rel=0.05)
    assert memory.uss(os.getpid()) == pytest.approx(expected.uss, rel=0.05)


def test_what_a_child_allocates_is_its_own_and_what_it_inherits_is_not() -> None:
    inherited = bytearray(os.urandom(1024)) * (20 * 1024)
    with child(lambda: None) as idle, child(lambda: bytearray(b"x") * (10 * MIB)) as busy:
        assert memory.uss(busy) - memory.uss(idle) == pytest.approx(10 * MIB, rel=0.1)
        assert memory.rss(idle) - memory.uss(idle) > 0.9 * len(inherited)


@pytest.mark.parametrize("backend", ["proc", "psutil"])
def test_sizes(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if backend == "psutil":
        monkeypatch.setattr(memory, "HAS_PROC", False)
    info, sizes = psutil.Process().memory_info(), memory.sizes(os.getpid())
    assert sizes.virtual == pytest.approx(info.vms, rel=0.01)
    assert sizes.resident == pytest.approx(info.rss, rel=0.05)
    assert sizes.resident < sizes.virtual


@pytest.mark.parametrize("backend", ["proc", "psutil"])
@pytest.mark.parametrize("measure", [memory.rss, memory.uss])
def test_a_process_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, backend: str, measure: Callable[[int], int]
) -> None:
    if backend == "psutil":
        monkeypatch.setattr(memory, "HAS_PROC", False)
    with pytest.raises(ProcessLookupError):
        measure(gone_pid())


@linux
@pytest.mark.parametrize("measure", [memory.rss, memory.uss])
def test_a_zombie_is_gone(measure: Callable[[int], int]) -> None:
    with child(lambda: None) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessLookupError):
            measure(pid)


@linux
@pytest.mark.parametrize("error", [ProcessLookupError, PermissionError])
@pytest.mark.parametrize("measure", [memory.rss, memory.uss])
def test_errors_while_reading(
    monkeypatch: pytest.MonkeyPatch, measure: Callable[[int], int], error: type[OSError]
) -> None:
    def fail(path: object) -> bytes:
        raise error(path)

    monkeypatch.setattr(memory, "_read", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(error):
        measure(os.getpid())


ROLLUP = """\
Rss:                  90 kB
Shared_Clean:         40 kB
Private_Clean:         1 kB
Private_Dirty:        20 kB
Private_Hugetlb:    2048 kB
"""


@linux
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"smaps_rollup": ROLLUP, "smaps": "Private_Dirty: 9 kB\n"}, 2069 * 1024),
        ({"smaps": "a-b r--p /x\nPrivate_Clean: 4 kB\nPrivate_Dirty: 3 kB\na-b\n" * 2}, 14 * 1024),
        ({"smaps_rollup": "Rss: 90 kB\n"}, 0),
        ({"statm": "50 7 3 1 0 9 0\n"}, 7 * PAGE),
    ],
    ids=["smaps_rollup", "smaps", "nothing private", "RSS where the kernel has no smaps"],
)
def test_uss_sources(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert memory.uss(7, fake_process(tmp_path, **files)) == expected


@linux
def test_a_process_whose_mappings_vanished_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        memory.uss(7, fake_process(tmp_path, smaps=""))


@linux
def test_rss_of_zero_in_a_live_process_is_no_death(tmp_path: Path) -> None:
    assert memory.rss(7, fake_process(tmp_path, statm="50 0 0 1 0 9 0\n")) == 0


@linux
@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 64 * MIB), (str(MIB), MIB), (str(1 << 40), 64 * MIB)]
)
def test_available_is_the_smaller_of_group_and_machine(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "self/mountinfo").write_text(f"31 23 0:28 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "meminfo").write_text("MemTotal:          65536 kB\nMemFree:   100 kB\n")
    assert memory.available(tmp_path) == expected


def test_available_where_proc_shows_processes_alone(tmp_path: Path) -> None:
    """systemd's ProcSubset=pid."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.available(tmp_path) == pages


def test_available_on_this_machine() -> None:
    assert 0 < memory.available() <= psutil.virtual_memory().total


def test_elsewhere_psutil_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "HAS_PROC", False)
    expected = psutil.Process().memory_full_info()
    assert memory.rss(os.getpid()) == pytest.approx(expected.rss, rel=0.05)
    assert memory.uss() == pytest.approx(expected.uss, rel=0.05)
    assert memory.available() <= psutil.virtual_memory().total


def test_psutil_denials_are_permission_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(memory, "HAS_PROC", False)
    monkeypatch.setattr(psutil.Process, "memory_full_info", deny)
    with pytest.raises(PermissionError):
        memory.uss()
