"""Where temporary files go in a container that lets next to nothing be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from multicore_server.machine import directories
from multicore_server.monitor.address import command_directory


@pytest.fixture
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", gettempdir)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


@pytest.mark.usefixtures("_nowhere")
def test_shared_memory_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "SHARED_MEMORY", tmp_path)
    assert directories.temporary_directory() == tmp_path
    assert command_directory().parent == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", None)
    directories.adopt_shared_memory()
    assert tempfile.tempdir == str(tmp_path)


@pytest.mark.usefixtures("_nowhere")
def test_where_there_is_none_python_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="No usable temporary directory"):
        directories.temporary_directory()


def test_otherwise_it_is_pythons() -> None:
    assert directories.temporary_directory() == Path(tempfile.gettempdir())
    before = tempfile.gettempdir()
    directories.adopt_shared_memory()
    assert tempfile.gettempdir() == before
