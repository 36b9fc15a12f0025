"""Which arbiters become ours, and what happens to the others."""

from __future__ import annotations

from typing import Any

import gunicorn.arbiter
import pytest
from gunicorn.config import Config
from gunicorn.workers.sync import SyncWorker

from multicore_server.arbiter import takeover
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.worker.worker import Worker


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str, *values: Any) -> None:
        self.lines.append(text % values)


class Embedded(gunicorn.arbiter.Arbiter):  # type: ignore[misc]  # gunicorn has no types
    pass


def arbiter(cls: Any, worker_class: Any, errorlog: str = "-") -> Any:
    """Without its constructor, which binds nothing but reads this process's command line."""
    made = cls.__new__(cls)
    made.cfg = Config()
    made.cfg.set("worker_class", worker_class)
    made.cfg.set("errorlog", errorlog)
    made.worker_class, made.log = worker_class, Log()
    return made


def test_an_arbiter_of_gunicorns_becomes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def start(arbiter: Any) -> None:
        started.append(arbiter)

    monkeypatch.setattr(Arbiter, "start", start)
    made = arbiter(gunicorn.arbiter.Arbiter, Worker)
    takeover._taking_over(lambda _: pytest.fail("gunicorn's start"))(made)
    assert started == [made]
    assert type(made) is Arbiter


@pytest.mark.parametrize("cls", [gunicorn.arbiter.Arbiter, Embedded])
def test_an_arbiter_of_other_workers_is_left_alone(cls: Any) -> None:
    started: list[Any] = []
    made = arbiter(cls, SyncWorker)
    takeover._taking_over(started.append)(made)
    assert started == [made]
    assert type(made) is cls


def test_ours_starts_as_gunicorns_behind_its_own_start() -> None:
    started: list[Any] = []
    made = arbiter(Arbiter, Worker)
    takeover._taking_over(started.append)(made)
    assert started == [made]


@pytest.mark.parametrize("errorlog", ["-", "error.log"])
def test_a_subclass_is_refused_in_one_line_before_it_starts(
    errorlog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = arbiter(Embedded, Worker, errorlog)
    with pytest.raises(SystemExit, match="1"):
        takeover._taking_over(lambda _: pytest.fail("it ran half"))(made)
    line = (
        f"{__name__}.Embedded is a subclass of gunicorn's Arbiter, and "
        "Worker brings an arbiter of its own; use gunicorn.arbiter.Arbiter, or another worker class"
    )
    assert made.log.lines == [line]
    assert capsys.readouterr().err == ("" if errorlog == "-" else f"Error: {line}\n")
