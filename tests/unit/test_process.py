"""When this process was started."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from multicore_server.machine import process

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("backend", ["proc", "psutil"])
def test_it_is_what_psutil_says(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if backend == "psutil":
        monkeypatch.setattr(process, "HAS_PROC", False)
    assert process.start_time() == pytest.approx(psutil.Process().create_time(), abs=1.0)


def proc(directory: Path, **files: str) -> Path:
    (directory / "self").mkdir()
    (directory / "self" / "stat").write_text("7 (a) (b c) S " + " ".join(map(str, range(4, 50))))
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


@linux
def test_a_name_may_hold_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda _: 10)
    assert process.start_time(proc(tmp_path, stat="cpu 1 2\nbtime 1000\n")) == 1002.2  # field 22


@linux
@pytest.mark.parametrize("files", [{}, {"stat": "cpu 1 2\n"}])
def test_where_the_machine_does_not_tell(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(OSError, match="stat"):
        process.start_time(proc(tmp_path, **files))


def test_psutils_errors_are_those_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> psutil.Process:
        raise psutil.AccessDenied(7)

    monkeypatch.setattr(process, "HAS_PROC", False)
    monkeypatch.setattr(psutil, "Process", fails)
    with pytest.raises(OSError, match="7"):
        process.start_time()
