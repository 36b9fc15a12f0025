"""The arbiter's files: logs that it reopens and gives away, its pidfile, systemd's socket."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from gunicorn import glogging
from gunicorn.config import Config
from gunicorn.pidfile import Pidfile

from multicore_server.arbiter import logs, pidfile
from tests.unit.shell import Log, fault

NOBODY = 65534


# --- a log that cannot be written


class Full(io.StringIO):
    """A file on a disk that is full."""

    def write(self, text: str) -> int:
        raise fault(errno.ENOSPC)


def test_lines_that_cannot_be_written_cost_one_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """logging writes a traceback for each, of requests too."""
    log = Log()
    handler = logging.StreamHandler(Full())
    error_log = logging.Logger("error")
    error_log.addHandler(handler)
    monkeypatch.setattr(log, "error_log", error_log)
    logs.say_failures_once(log)
    for _ in range(3):
        error_log.error("lost")
    assert capsys.readouterr().err == (
        "StreamHandler: log lines are lost: OSError(28, 'No space left on device')\n"
    )
    monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
    error_log.error("lost")
    assert "log lines are lost" in capsys.readouterr().err


def test_a_log_and_a_stderr_that_cannot_be_written_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    error_log = logging.Logger("error")
    error_log.addHandler(logging.StreamHandler(Full()))
    monkeypatch.setattr(log, "error_log", error_log)
    logs.say_failures_once(log)
    monkeypatch.setattr(sys, "stderr", Full())
    error_log.error("lost")


def test_what_is_printed_leaves_line_by_line_in_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes write to the file; print() gives a line and its end one by one."""

    class Raw(io.FileIO):
        writes: ClassVar[list[bytes]] = []

        def write(self, data: Any) -> int:
            self.writes.append(bytes(data))
            return len(data)

    with io.TextIOWrapper(io.BufferedWriter(Raw(tmp_path / "log", "w")), write_through=True) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        cfg = configuration("-")
        cfg.capture_output = True
        logs.adopt(Log(), cfg)
        print("a", 1)
        assert Raw.writes == [b"a 1\n"]


@pytest.mark.parametrize(
    ("errorlog", "accesslog", "captured", "found"),
    [
        ("-", None, False, ["stderr", "stdout"]),
        ("error", "-", False, ["error", "stderr", "stdout"]),
        ("error", "access", True, ["access", "error"]),
        ("error", "error", True, ["error"]),
        ("error", None, True, ["error"]),
        (None, "-", True, []),
    ],
)
def test_the_files_that_a_server_writes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errorlog: Any, accesslog: Any, captured: bool,
    found: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    behind = {1: str(tmp_path / "stdout"), 2: str(tmp_path / "stderr")}
    monkeypatch.setattr(logs, "_file_behind", behind.__getitem__)
    cfg: Any = SimpleNamespace(errorlog=errorlog, accesslog=accesslog, capture_output=captured)
    assert logs.files(cfg) == [str(tmp_path / name) for name in found]


def test_the_file_behind_a_descriptor(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (tmp_path / "log").open("w") as file:
        assert logs._file_behind(file.fileno()) == str(tmp_path / "log")
        assert logs._file_behind(writer) == ""
    os.close(reader)
    os.close(writer)
    assert logs._file_behind(writer) == ""


# --- log files that are reopened


class ReopenedLog(Log):
    def __init__(self, fails: OSError | None = None) -> None:
        super().__init__()
        self.fails = fails

    def reopen_files(self) -> None:
        if self.fails:
            raise self.fails


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What was given away: paths, and to whom."""
    found: list[tuple[str, int, int]] = []

    def fchown(descriptor: int, uid: int, gid: int) -> None:
        found.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, uid, gid))

    monkeypatch.setattr(os, "fchown", fchown)
    return found


def configuration(errorlog: Path | str, uid: int = NOBODY) -> Any:
    return SimpleNamespace(errorlog=str(errorlog), accesslog=None, uid=uid, gid=uid)


# --- logs ---


def test_a_log_file_is_given_to_the_workers_user(tmp_path: Path, given: list[Any]) -> None:
    (tmp_path / "log").touch()
    logs.reopen_log(ReopenedLog(), configuration(tmp_path / "log"))
    assert given == [("log", NOBODY, NOBODY)]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_the_log_files_of_a_reload_are_given_away_with_the_same_care(
    tmp_path: Path, given: list[Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn's logger opens them, and gives away what a link leads to."""
    chowned: list[Any] = []
    monkeypatch.setattr(os, "chown", lambda *arguments: chowned.append(arguments))
    monkeypatch.setattr(glogging, "os", os)
    logs.chown_what_is_opened()
    secret, path = tmp_path / "secret", tmp_path / "log"
    secret.touch()
    if kind == "link":
        path.symlink_to(secret)
    cfg = Config()
    cfg.set("user", str(NOBODY))
    cfg.set("group", str(NOBODY))
    cfg.set("errorlog", str(path))
    log = glogging.Logger(cfg)
    try:
        assert given == ([("log", NOBODY, NOBODY)] if kind == "file" else [])
        assert chowned == []
    finally:
        for handler in list(log.error_log.handlers):
            log.error_log.removeHandler(handler)
            handler.close()
        log.access_log.handlers.clear()


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "directory", "nothing"])
def test_nothing_but_our_own_file_is_given_away(tmp_path: Path, given: list[Any], kind: str) -> None:
    """Whoever may write the directory of the log could have any file of root's otherwise."""
    secret, path = tmp_path / "secret", tmp_path / "log"
    secret.touch()
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "hard link":
        path.hardlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    logs.reopen_log(ReopenedLog(), configuration(path))
    assert given == []


def test_another_users_file_is_left_alone(
    tmp_path: Path, given: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    logs.reopen_log(ReopenedLog(), configuration(tmp_path / "log"))
    assert given == []


def test_a_log_of_our_own_user_needs_no_change(tmp_path: Path, given: list[Any]) -> None:
    (tmp_path / "log").touch()
    cfg = configuration(tmp_path / "log", os.geteuid())
    cfg.gid = os.getegid()
    logs.reopen_log(ReopenedLog(), cfg)
    assert given == []


def test_a_change_that_the_kernel_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise fault(errno.EPERM)

    monkeypatch.setattr(os, "fchown", refuse)
    (tmp_path / "log").touch()
    log = ReopenedLog()
    logs.reopen_log(log, configuration(tmp_path / "log"))
    assert log.said("to user 65534: Operation not permitted")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EMFILE, errno.EACCES])
def test_a_log_that_cannot_be_reopened_costs_a_line(number: int) -> None:
    """USR1 while the directory of the log was missing ended the server."""
    log = ReopenedLog(fault(number))
    logs.reopen_log(log, configuration("-"))
    assert len(log.said("cannot reopen")) == 1


def test_a_log_that_is_set_up_follows_the_new_configuration() -> None:
    seen: list[Any] = []
    log: Any = SimpleNamespace(cfg="old", setup=seen.append)
    logs.set_up_log(log, "new")
    assert (log.cfg, seen) == ("new", ["new"])


# --- the pidfile ---


def test_the_pidfile_moves(tmp_path: Path) -> None:
    log = Log()
    first = pidfile.move(None, str(tmp_path / "a"), os.getpid(), log)
    assert (tmp_path / "a").read_text().strip() == str(os.getpid())
    assert pidfile.move(first, str(tmp_path / "a"), os.getpid(), log) is first
    second = pidfile.move(first, str(tmp_path / "b"), os.getpid(), log)
    assert not (tmp_path / "a").exists()
    assert pidfile.move(second, None, os.getpid(), log) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("trouble", ["no directory", "another server's"])
def test_a_pidfile_that_cannot_be_made_leaves_the_old_one(tmp_path: Path, trouble: str) -> None:
    log = Log()
    path = tmp_path / ("none/pid" if trouble == "no directory" else "pid")
    if trouble == "another server's":
        path.write_text(f"{os.getppid()}\n")
    old = Pidfile(str(tmp_path / "old"))
    old.create(os.getpid())
    assert pidfile.move(old, str(path), os.getpid(), log) is old
    assert log.said(f"keeping {tmp_path / 'old'}")
    assert (tmp_path / "old").exists()
