"""Reloads as the arbiter carries them out: prepared, committed, dropped; and what goes wrong half way."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter import deployment as module
from multicore_server.arbiter.deployment import Deployment, DeploymentError
from multicore_server.arbiter.reloader import Reloader
from multicore_server.fleet import events as ev
from multicore_server.settings.table import TABLE, Settings
from tests.unit import shell
from tests.unit.shell import Shell


def settings(workers: int = 2) -> Settings:
    rest = {name: row.parse(row.default) for name, row in TABLE.items() if name != "workers"}
    return Settings(workers=workers, **rest)


class Listener:
    """As gunicorn's."""

    FAMILY = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def __str__(self) -> str:
        return self.name

    def getsockname(self) -> tuple[str, int]:
        return self.name, 0

    def close(self) -> None:
        self.closed = True


class Garage:
    """A reloader in a simulated shell; the deployment in force is what was installed last."""

    def __init__(self, made: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shell = made
        self.current = self.deployment("old")
        self.next: Deployment | BaseException = self.deployment("new")
        self.fails: list[str] = []  # the deployments that cannot be installed
        self.installed: list[str] = []
        self.reloader = Reloader(made.context, lambda: self.current, self._install)
        monkeypatch.setattr(module, "load_afresh", self._load)

    @staticmethod
    def deployment(name: str) -> Deployment:
        settings_of = {"config": SimpleNamespace(get=lambda: None)}
        cfg = SimpleNamespace(preload_app=False, graceful_timeout=30, settings=settings_of, name=name)
        return Deployment(SimpleNamespace(app_uri="app:app"), cfg, settings(), [Listener(name)])

    def _load(self, current: Deployment, log: Any) -> Deployment:
        if isinstance(self.next, BaseException):
            raise self.next
        return self.next

    def _install(self, new: Deployment, old: Deployment) -> None:
        self.installed.append(new.cfg.name)
        self.current = new
        if new.cfg.name in self.fails:
            raise RuntimeError("half way")

    @property
    def observed(self) -> list[ev.Observation]:
        return self.shell.observed


@pytest.fixture
def garage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Garage]:
    with shell.shell() as made:
        yield Garage(made, monkeypatch)


def test_what_is_prepared_is_on_trial(garage: Garage) -> None:
    garage.reloader.prepare()
    assert garage.reloader.candidate is garage.next
    (prepared,) = garage.observed
    assert isinstance(prepared, ev.ReloadPrepared)
    assert prepared.workers == 2


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (DeploymentError("conf.py: a typo"), "conf.py: a typo"),
        (ZeroDivisionError("x / 0"), "ZeroDivisionError: x / 0"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(1), "SystemExit: 1"),
        (GeneratorExit("odd"), "GeneratorExit: odd"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_whatever_a_configuration_raises_the_reload_has_failed(
    garage: Garage, failure: BaseException, error: str
) -> None:
    garage.next = failure
    garage.reloader.prepare()
    assert garage.observed == [ev.ReloadFailed(error)]
    assert garage.reloader.candidate is None


@pytest.mark.parametrize("why", ["preload_app", "run() got the app as an object"])
def test_code_that_stays_is_said(garage: Garage, why: str) -> None:
    if why == "preload_app":
        garage.current.cfg.preload_app = True
    else:
        garage.current.app.app_uri = None
    garage.reloader.prepare()
    assert garage.shell.log.said(f"{why}: the app's code stays")


def test_a_commit_closes_what_is_no_longer_listened_on(garage: Garage) -> None:
    old = garage.current.listeners[0]
    garage.reloader.prepare()
    garage.reloader.commit()
    assert garage.installed == ["new"]
    assert old.closed
    assert garage.observed[-1] == ev.Committed()
    assert garage.reloader.candidate is None
    assert garage.shell.log.said("Listening at: new")


def test_a_commit_that_fails_half_way_leaves_the_old_deployment_in_force(garage: Garage) -> None:
    garage.fails = ["new"]
    old = garage.current
    garage.reloader.prepare()
    new = garage.reloader.candidate
    assert new is not None
    garage.reloader.commit()
    assert garage.installed == ["new", "old"]
    assert garage.current.cfg is old.cfg
    assert new.listeners[0].closed
    assert not old.listeners[0].closed
    assert garage.observed[-1] == ev.CommitFailed("RuntimeError: half way")


def test_an_old_deployment_that_cannot_be_put_back_in_whole_is_said(garage: Garage) -> None:
    garage.fails = ["new", "old"]
    garage.reloader.prepare()
    garage.reloader.commit()
    assert garage.shell.log.said("could not be put back in whole")
    assert isinstance(garage.observed[-1], ev.CommitFailed)


def test_what_is_dropped_is_closed_but_for_what_is_in_force(garage: Garage) -> None:
    kept = garage.current.listeners[0]
    assert isinstance(garage.next, Deployment)
    garage.next.listeners.insert(0, kept)
    garage.reloader.prepare()
    garage.reloader.drop()
    garage.reloader.drop()
    assert [listener.closed for listener in garage.next.listeners] == [False, True]
