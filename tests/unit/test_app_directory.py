"""The directory of the app's metrics: whose it is, when it goes, and what is swept."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from multicore_server.machine import directories
from multicore_server.metrics.app import directory as app_directory
from multicore_server.metrics.app.directory import MARK, VARIABLE, Directory
from tests.unit.app_process import ROOT, START, forked, play


def at(base: str) -> None:
    """Make directories here and nowhere else."""
    directories.SHARED_MEMORY = Path(base)
    tempfile.tempdir = base


def made() -> Directory:
    app_directory.prepare()
    directory = app_directory.current()
    assert directory is not None
    return directory


# --- a private one


def private(base: str) -> None:
    at(base)
    directory = made()
    app_directory.prepare()
    assert app_directory.current() is directory
    assert directory.ours
    assert os.environ[VARIABLE] == os.environ[MARK] == str(directory.path)
    found = directory.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert forked(directory.remove) == 0
    assert directory.path.exists()
    print(directory.path.name)


def test_a_private_directory_is_made_once_and_goes_with_the_server(tmp_path: Path) -> None:
    assert play(private, tmp_path).out.startswith(f"multicore-server-{os.geteuid()}-")
    assert list(tmp_path.iterdir()) == []


def lowest_descriptor() -> int:
    """The one that is given next."""
    lowest = os.dup(0)
    os.close(lowest)
    return lowest


def without_descriptors(base: str) -> None:
    at(base)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_descriptor(), limits[1]))
    app_directory.prepare()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert app_directory.current() is None


def test_one_that_cannot_be_locked_does_not_stay(tmp_path: Path) -> None:
    assert "Too many open files" in play(without_descriptors, tmp_path).log
    assert list(tmp_path.iterdir()) == []


def without_locks(base: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    at(base)
    fcntl.lockf = refuse
    before = lowest_descriptor()
    app_directory.prepare()
    assert lowest_descriptor() == before
    assert app_directory.current() is None


def test_where_files_have_no_locks_nothing_stays_open_or_behind(tmp_path: Path) -> None:
    assert "No locks available" in play(without_locks, tmp_path).log
    assert list(tmp_path.iterdir()) == []


def one_forever(base: str) -> None:
    at(base)
    made()
    if os.fork() == 0:  # a worker, which outlives its arbiter
        time.sleep(600)
    print("made", flush=True)
    time.sleep(600)


def one_more(base: str) -> None:
    at(base)
    made()
    print("\n".join(sorted(path.name for path in Path(base).iterdir())))


def test_what_a_killed_server_left_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, str(ROOT), __name__, one_forever.__name__, str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if name != VARIABLE}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "made\n"
        [left] = [path.name for path in tmp_path.iterdir()]
        assert left in play(one_more, tmp_path).out.split()
        server.kill()  # its worker lives on and has inherited every descriptor
        server.wait()
        assert left not in play(one_more, tmp_path).out.split()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        if server.stdout:
            server.stdout.close()


def test_what_only_looks_like_a_left_over_is_not_touched(tmp_path: Path) -> None:
    others = tmp_path / f"multicore-server-{os.geteuid()}-other"
    others.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "server.lock").touch()
    linked = tmp_path / f"multicore-server-{os.geteuid()}-linked"
    linked.mkdir()
    (linked / "server.lock").symlink_to(elsewhere / "server.lock")
    play(one_more, tmp_path)
    assert others.exists()
    assert linked.exists()
    assert (elsewhere / "server.lock").exists()


def after_usr2(base: str) -> None:
    at(base)
    inherited = Path(os.environ[VARIABLE])
    directory = made()
    assert directory.ours
    assert directory.path != inherited


def test_the_arbiter_that_usr2_starts_does_not_take_the_old_ones_for_the_users(tmp_path: Path) -> None:
    old = tmp_path / "multicore-server-0-old"
    old.mkdir()
    play(after_usr2, tmp_path, **{VARIABLE: str(old), MARK: str(old)})
    assert old.exists()


def disabled_after_usr2() -> None:
    app_directory.prepare(enabled=False)
    assert app_directory.current() is None
    assert VARIABLE not in os.environ


def test_nothing_is_made_when_it_is_not_wanted(tmp_path: Path) -> None:
    old = str(tmp_path / "old")
    play(disabled_after_usr2, **{VARIABLE: old, MARK: old})


def disabled(base: str) -> None:
    at(base)
    path = made().path
    app_directory.disable()
    assert app_directory.current() is None
    assert not path.exists()
    assert not {VARIABLE, MARK} & os.environ.keys()


def test_it_can_be_disabled(tmp_path: Path) -> None:
    play(disabled, tmp_path)


def nowhere(base: str) -> None:
    at(base)
    app_directory.prepare()
    assert app_directory.current() is None
    assert VARIABLE not in os.environ


def test_where_none_can_be_made_one_line_says_so(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    log = play(nowhere, file).log
    assert log.count("\n") == 1
    assert log.startswith("the app's own metrics are not collected: no directory can be made")
    assert VARIABLE in log


# --- a user's own


def users_own(name: str, path: str) -> None:
    directory = made()
    assert not directory.ours
    assert directory.path == Path(path)
    assert directory.identifier(3) == f"{os.getpid()}-row3"
    assert os.environ[VARIABLE] == path
    assert MARK not in os.environ
    directory.chown(12345, 12345)
    directory.remove()


@pytest.mark.parametrize("name", [VARIABLE, VARIABLE.lower()])
def test_a_users_own_is_used_and_kept(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "counter_1.db").touch()
    play(users_own, name, own, **{name: str(own)})
    assert (own / "counter_1.db").exists()
    assert own.stat().st_uid == os.geteuid()


def test_a_users_own_is_made_if_it_is_missing(tmp_path: Path) -> None:
    play(users_own, VARIABLE, tmp_path / "not" / "yet", **{VARIABLE: str(tmp_path / "not" / "yet")})


def unusable() -> None:
    app_directory.prepare()
    assert app_directory.current() is None
    assert VARIABLE not in os.environ


def test_a_users_own_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = play(unusable, **{VARIABLE: str(tmp_path / "file")}).log
    assert log.count("\n") == 1
    assert f"{VARIABLE}={tmp_path}/file" in log


# --- what is in it


def names(directory: Directory) -> set[str]:
    return {path.name for path in directory.path.iterdir()}


def test_live_gauges_of_the_dead_go_and_those_of_others_stay(tmp_path: Path) -> None:
    directory = Directory(tmp_path, ours=True)
    gone = {"gauge_liveall_row1.db", "gauge_livesum_row1.db", "gauge_livemax_row1-0.db"}
    kept = {"gauge_all_row1.db", "counter_row1.db", "gauge_liveall_row11.db", "gauge_livesum_row2-1.db"}
    for name in gone | kept:
        (tmp_path / name).touch()
    directory.remove_live("row1")
    assert names(directory) == kept


def test_who_takes_a_row_over_starts_with_gauges_of_its_own(tmp_path: Path) -> None:
    directory = Directory(tmp_path, ours=True)
    kept = {"gauge_max_row1.db", "counter_row1.db", "gauge_all_row11.db"}
    for name in kept | {"gauge_all_row1.db", "gauge_livesum_row1.db"}:
        (tmp_path / name).touch()
    directory.reset("row1")
    assert names(directory) == kept


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "gone", ours=True)
    directory.reset("row1")
    directory.remove_live("row1")
    directory.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_workers_of_another_user_get_the_directory_but_not_the_lock(tmp_path: Path) -> None:
    directory = Directory(tmp_path, ours=True)
    for name in ("counter_arbiter.db", "server.lock"):
        (tmp_path / name).touch()
    directory.chown(12345, 12346)
    assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (12345, 12346)
    assert (tmp_path / "counter_arbiter.db").stat().st_uid == 12345
    assert (tmp_path / "server.lock").stat().st_uid == 0
