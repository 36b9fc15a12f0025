"""How the arbiter starts, and refuses to."""

from __future__ import annotations

import errno
import gc
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter
import pytest

from multicore_server.arbiter import arbiter as module
from multicore_server.arbiter import listeners, starting, takeover
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.worker_number import MB, WorkerNumber
from multicore_server.fleet import events as ev
from multicore_server.machine import memory
from multicore_server.settings.sources import Given
from tests.unit.arbiter_itself.started import Application, said
from tests.unit.shell import Log, fault


def test_gunicorns_arbiter_becomes_ours_before_anything_is_bound(made: Arbiter) -> None:
    assert type(made) is Arbiter
    assert made.fleet.workers == 2
    assert (Path(made.cfg.pidfile)).exists()
    assert len(made.LISTENERS) == 1


def test_what_a_start_says(made: Arbiter) -> None:
    (versions,) = said(made, "multicore_server ")
    assert re.search(r"multicore_server \S+, gunicorn \S+, uvicorn \S+, Python \S+$", versions)
    assert len(said(made, r"workers: 2 (from run's options, --workers, 2)")) == 1


def test_what_there_is_before_the_first_fork_is_frozen(made: Arbiter) -> None:
    assert gc.get_freeze_count() > 10_000
    assert made.context.scoreboard not in gc.get_objects()


def test_other_worker_classes_are_left_alone() -> None:
    started: list[Any] = []
    start = takeover._taking_over(started.append)
    other = SimpleNamespace(worker_class=object)
    start(other)
    assert started == [other]


def test_a_pidfile_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = f"pidfile: '{tmp_path}/pid' cannot be written: the directory {tmp_path} is not writable"
    assert starting._of_pidfile(f"{tmp_path}/pid") == said
    assert starting._of_pidfile("/no/such/directory/pid") == "" == starting._of_pidfile(None)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given("max", "the default")
    monkeypatch.setattr(WorkerNumber, "of", lambda settings, _: WorkerNumber(settings.workers, given, MB))
    monkeypatch.setattr(module, "need_of", lambda pid: 1)
    monkeypatch.setattr(memory, "rss", lambda pid: 0)


@pytest.mark.usefixtures("little_memory")
def test_with_little_memory_one_worker_shows_how_many_have_room(
    made: Arbiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork(fork: ev.Fork) -> None:
        made.observe(ev.Forked(fork.instance, fork.generation, 4242 + fork.instance))

    monkeypatch.setattr(made.worker_processes, "fork", fork)
    made.manage_workers()
    assert (made.fleet.workers, made.fleet.trying) == (1, True)
    made.observe(ev.BecameReady(4242))
    made.manage_workers()
    assert (made.fleet.workers, made.fleet.trying) == (2, False)


# gunicorn drops a socket that cannot be bound, unclosed.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        ({"multicore": {"workers": "many"}}, "workers: 'many'"),
        ({"bind": "taken"}, "the address is in use"),
        ({"pidfile": "/no/such/directory/pid"}, "cannot start"),
        ({"certfile": "/no/such/file"}, "certfile: '/no/such/file' does not exist"),
        ({"exchange": fault(errno.EMFILE)}, "the hard limit of open files is"),
    ],
)
def test_a_mistake_ends_the_start_in_one_line_with_nothing_left(
    trouble: dict[str, Any], line: str, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(listeners, "PATIENCE", 0.0)
    monkeypatch.setattr(gunicorn.arbiter.Arbiter, "init_signals", lambda self: None)
    multicore = trouble.pop("multicore", {})
    if exchange := trouble.pop("exchange", None):

        def refuse(*_: Any) -> None:
            raise exchange

        monkeypatch.setattr("multicore_server.connections.handover.Handover.make", refuse)
    taken = socket.create_server(("127.0.0.1", free_port))
    settings = {
        "bind": f"unix:{tmp_path}/s",
        "pidfile": str(tmp_path / "pid"),
        "errorlog": str(tmp_path / "log"),
    }
    settings |= trouble
    if settings["bind"] == "taken":
        settings["bind"] = f"127.0.0.1:{free_port}"
    application = Application(**settings)
    application.multicore_options |= multicore
    found = gunicorn.arbiter.Arbiter(application)
    log: Log = found.log
    with taken, pytest.raises(SystemExit) as ended:
        found.start()
    assert ended.value.code == 1
    assert len(log.said("ERROR")) == 1
    assert line in log.said("ERROR")[0]
    assert line in capsys.readouterr().err
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "s").exists()
    del ended, found, application
    gc.collect()
