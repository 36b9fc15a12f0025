"""Log files that are rotated by their size: which becomes which, when the arbiter looks, what it says."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter.log_rotation import LATE, QUIET, SOON, LogRotation
from multicore_server.machine.log_files import numbered, shift
from multicore_server.settings.table import Settings
from tests.unit.shell import Log, fault


def contents(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


# --- which file becomes which


@pytest.mark.parametrize(
    ("before", "keep", "after"),
    [
        ({"": "c"}, 2, {".1": "c"}),
        ({"": "c", ".1": "b"}, 2, {".1": "c", ".2": "b"}),
        ({"": "c", ".1": "b", ".2": "a"}, 2, {".1": "c", ".2": "b"}),
        ({"": "c", ".1": "b"}, 1, {".1": "c"}),
        ({"": "d", ".1": "c", ".2": "b", ".3": "a", ".4": "0"}, 2, {".1": "d", ".2": "c"}),
        ({"": "c", ".2": "a"}, 3, {".1": "c", ".3": "a"}),  # somebody has removed .1
        ({".1": "b"}, 3, {".2": "b"}),
        ({}, 3, {}),
    ],
)
def test_shift(tmp_path: Path, before: dict[str, str], keep: int, after: dict[str, str]) -> None:
    path = tmp_path / "log"
    for suffix, text in before.items():
        path.with_name(f"log{suffix}").write_text(text)
    shift(path, keep)
    assert contents(tmp_path) == {f"log{suffix}": text for suffix, text in after.items()}


def test_numbered() -> None:
    assert [str(numbered(Path("a/x.log"), number)) for number in (0, 1, 12)] == [
        "a/x.log", "a/x.log.1", "a/x.log.12",
    ]  # fmt: skip


# --- when


class Rotated:
    """A log of one file, of at most 100 bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = Log()
        self.handler = logging.FileHandler(path)
        self.log.addHandler(self.handler)
        self.alone = True  # no other arbiter rotates
        self.reopened = 0
        self.rotation = LogRotation(self.log, self._reopen, lambda: self.alone)
        self.configure()

    def configure(self, size: int | None = 100, **logs: Any) -> None:
        cfg = SimpleNamespace(**{"errorlog": str(self.path), "accesslog": "-", **logs})
        self.rotation.configure(Settings(workers=1, log_max_size=size, log_keep=2), cfg)

    def _reopen(self) -> None:
        self.reopened += 1
        self.handler.close()
        self.handler.stream = self.handler._open()

    def write(self, size: int) -> None:
        with self.path.open("a") as file:
            file.write("x" * size)

    def sizes(self) -> dict[str, int]:
        return {name: len(text) for name, text in contents(self.path.parent).items()}


@pytest.fixture
def rotated(tmp_path: Path) -> Iterator[Rotated]:
    made = Rotated(tmp_path / "log")
    yield made
    made.handler.close()


def test_a_full_file_is_rotated_and_everybody_opens_it_anew(rotated: Rotated) -> None:
    rotated.write(99)
    rotated.rotation.tick(10.0)
    assert rotated.sizes() == {"log": 99}
    rotated.write(1)
    rotated.rotation.tick(20.0)
    assert (rotated.sizes(), rotated.reopened) == ({"log": 0, "log.1": 100}, 1)
    for now in (30.0, 40.0, 50.0):
        rotated.write(100)
        rotated.rotation.tick(now)
    assert rotated.sizes() == {"log": 0, "log.1": 100, "log.2": 100}
    assert rotated.log.lines == []


@pytest.mark.parametrize(
    ("grown", "due"), [(0, LATE), (50, LATE), (80, 0.25), (99, SOON), (200, 0.5), (9999, SOON)]
)
def test_the_faster_it_grows_the_sooner_it_is_looked_at(rotated: Rotated, grown: int, due: float) -> None:
    rotated.rotation.tick(10.0)
    rotated.write(grown)
    rotated.rotation.tick(10.5)  # it is not due
    assert rotated.rotation.due == 11.0
    rotated.rotation.tick(11.0)
    assert rotated.rotation.due == pytest.approx(11.0 + due)


def test_nothing_is_due_without_a_limit_or_a_file(rotated: Rotated) -> None:
    rotated.write(500)
    for size, logs in ((None, {}), (100, {"errorlog": "-"}), (100, {"errorlog": None, "accesslog": None})):
        rotated.configure(size, **logs)
        assert rotated.rotation.due is None
        rotated.rotation.tick(10.0)
    assert (rotated.sizes(), rotated.reopened) == ({"log": 500}, 0)


def test_both_logs_have_their_own_size(rotated: Rotated) -> None:
    access = rotated.path.with_name("access")
    access.write_text("x" * 100)
    rotated.configure(accesslog=str(access))
    rotated.rotation.tick(10.0)
    assert rotated.sizes() == {"log": 0, "access.1": 100}


@pytest.mark.parametrize("alone", [True, False])
def test_what_somebody_else_has_moved_is_opened_anew(rotated: Rotated, alone: bool) -> None:
    """logrotate, or the arbiter that USR2 has started from."""
    rotated.alone = alone
    rotated.write(10)
    rotated.path.rename(rotated.path.with_name("log.1"))
    rotated.rotation.tick(10.0)
    assert (rotated.sizes(), rotated.reopened) == ({"log": 0, "log.1": 10}, 1)
    rotated.rotation.tick(20.0)
    assert rotated.reopened == 1


def test_one_of_two_arbiters_rotates(rotated: Rotated) -> None:
    rotated.alone = False
    rotated.write(200)
    rotated.rotation.tick(10.0)
    assert (rotated.sizes(), rotated.reopened) == ({"log": 200}, 0)


@pytest.mark.parametrize("kind", ["a link", "a pipe", "nothing"])
def test_what_is_no_file_is_left_alone(rotated: Rotated, kind: str) -> None:
    other = rotated.path.with_name("other")
    if kind == "a link":
        rotated.write(200)
        other.symlink_to(rotated.path)
    elif kind == "a pipe":
        os.mkfifo(other)
    rotated.configure(errorlog=str(other))
    rotated.rotation.tick(10.0)
    assert not other.with_name("other.1").exists()
    assert rotated.rotation.due == 10.0 + LATE


def test_a_file_that_cannot_be_rotated_costs_a_line_a_minute(
    rotated: Rotated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise fault(errno.EACCES)

    monkeypatch.setattr(Path, "replace", refuse)
    rotated.write(200)
    rotated.rotation.tick(10.0)
    assert rotated.rotation.due == 10.0 + QUIET
    rotated.rotation.tick(11.0)
    assert rotated.log.lines == [
        f"ERROR: {rotated.path} cannot be rotated, and grows: [Errno 13] Permission denied"
    ]
    assert rotated.reopened == 0
