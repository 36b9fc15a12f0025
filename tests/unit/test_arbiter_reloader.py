"""Reloads as the arbiter carries them out: prepared, committed, dropped; and what goes wrong half way."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter import deployment as module
from multicore_server.arbiter.deployment import Breakable, Deployment, DeploymentError
from multicore_server.arbiter.forked_call import LIMIT
from multicore_server.arbiter.interruption import Interrupted, Interruption
from multicore_server.arbiter.reloader import PATIENCE, TURNS, Reloader
from multicore_server.fleet import events as ev
from multicore_server.machine import cgroup
from multicore_server.settings.sources import Given
from multicore_server.settings.table import TABLE, Settings
from tests.unit import shell
from tests.unit.shell import PIPE, ChildExitError, Shell, fault

real_load = module.load


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
        self.interruption = Interruption()
        self.reloader = Reloader(
            made.context, lambda: self.current, self._install, lambda: None, self.interruption
        )
        self.takes = 0.0  # seconds that loading takes
        self.loaded = 0  # times that it has begun
        self.signals: list[signal.Signals] = []  # one comes in each load
        monkeypatch.setattr(module, "load", self._load)
        monkeypatch.setattr(module, "bind", lambda new, current, log, resolved: new)

    @staticmethod
    def deployment(name: str) -> Deployment:
        settings_of = {"config": SimpleNamespace(get=lambda: None)}
        given = Given(2, "from the command line, -w")
        cfg = SimpleNamespace(
            preload_app=False, graceful_timeout=30, settings=settings_of, name=name, workers_given=given
        )
        return Deployment(SimpleNamespace(app_uri="app:app"), cfg, settings(), [Listener(name)])

    def _load(self, current: Deployment, log: Any, breakable: Breakable) -> Deployment:
        with breakable():
            self.loaded += 1
            for number in self.signals[:1]:
                self.signals.remove(number)
                self.interruption.hear(number, nested=False)
        if isinstance(self.next, BaseException):
            raise self.next
        self.shell.os.now += self.takes
        return self.next

    def prepare(self, answer: bytes = b"+{}") -> None:
        """The reloader prepares, and the child that loads the configuration first gives this answer."""
        self.reloader.prepare()
        os.write(self.shell.os.writers[-1], answer)
        assert self.shell.select() == 1
        self.shell.reap_helpers()

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
    garage.prepare()
    assert isinstance(garage.next, Deployment)
    assert garage.reloader.candidate == replace(garage.next, number=2)
    (prepared,) = garage.observed
    assert isinstance(prepared, ev.ReloadPrepared)
    assert (prepared.workers, prepared.tries) == (2, False)


def test_a_number_that_memory_may_have_no_room_for_is_to_be_tried(
    garage: Garage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 2**20)
    assert isinstance(garage.next, Deployment)
    garage.next.cfg.workers_given = Given("max", "the default")
    garage.prepare()
    (prepared,) = garage.observed
    assert isinstance(prepared, ev.ReloadPrepared)
    assert (prepared.workers, prepared.tries) == (2, True)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (DeploymentError("conf.py: a typo"), "conf.py: a typo"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_what_loads_in_the_child_and_not_here_has_failed(
    garage: Garage, failure: BaseException, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(module, "load", real_load)
    monkeypatch.setattr(module, "_load", fail)
    garage.prepare()
    assert garage.observed == [ev.ReloadFailed(error)]
    assert garage.reloader.candidate is None


# --- the check in a forked child ---


def test_what_the_check_says_against_it_is_why_the_reload_has_failed(garage: Garage) -> None:
    garage.prepare("-conf.py: Grüße".encode())
    assert garage.observed == [ev.ReloadFailed("conf.py: Grüße")]
    assert garage.reloader.candidate is None


def test_a_configuration_that_ends_its_process_ends_the_check_alone(garage: Garage) -> None:
    """``os._exit`` in a config file ended the server."""
    garage.reloader.prepare()
    os.close(garage.shell.os.writers.pop())
    garage.shell.select()
    assert garage.observed == []
    garage.shell.reap_helpers()
    assert garage.observed == [ev.ReloadFailed("the process that tries it has exited")]


def test_the_loop_does_not_wait_for_a_configuration_that_takes_long(garage: Garage) -> None:
    system = garage.shell.os
    garage.reloader.prepare()
    assert garage.observed == []
    assert garage.reloader.due == system.now + LIMIT
    garage.reloader.tick(system.now + LIMIT - 0.1)
    assert garage.observed == []
    garage.reloader.tick(system.now + LIMIT)
    assert garage.observed == [ev.ReloadFailed("it takes longer than 5 s")]
    assert system.sent() == [(101, "SIGKILL")]
    garage.reloader.tick(system.now + 2 * LIMIT)
    assert garage.reloader.due is None
    assert len(garage.observed) == 1


def test_a_shutdown_does_not_wait_for_the_check(garage: Garage) -> None:
    garage.reloader.prepare()
    garage.shell.os.living.clear()  # it has ended, and is not reaped yet
    garage.reloader.drop()
    os.write(garage.shell.os.writers[-1], b"+") if garage.shell.os.pipes else None
    garage.reloader.tick(garage.shell.os.now + LIMIT)
    assert garage.shell.select() == 0
    assert garage.observed == []


def test_a_second_reload_takes_the_place_of_the_first_ones_check(garage: Garage) -> None:
    garage.reloader.prepare()
    garage.prepare()
    assert len(garage.observed) == 1
    assert garage.shell.os.sent() == [(101, "SIGKILL")]


@pytest.mark.parametrize("call", ["pipe", "fork"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EAGAIN])
def test_without_a_child_the_reload_has_failed(garage: Garage, call: str, number: int) -> None:
    garage.shell.os.faults[call] = [fault(number)]
    garage.reloader.prepare()
    error = f"the configuration cannot be checked: {os.strerror(number)}"
    assert garage.observed == [ev.ReloadFailed(error)]
    assert garage.shell.os.pipes == []
    garage.prepare()
    assert isinstance(garage.observed[-1], ev.ReloadPrepared)


def test_a_slow_configuration_is_named(garage: Garage) -> None:
    garage.prepare()
    assert garage.shell.log.lines == []
    garage.takes = 1.3
    garage.prepare()
    assert garage.shell.log.said("the configuration took 1.3 s to load; the arbiter handled only signals")


# --- signals while it loads in the loop


def test_a_signal_that_cannot_wait_breaks_the_load_off_and_it_comes_back(garage: Garage) -> None:
    garage.signals = [signal.SIGCHLD, signal.SIGCHLD]
    garage.prepare()
    assert garage.observed == []
    for loaded in (1, 1, 2, 2, 2, 3):  # each signal has its turn before the load comes back
        assert garage.reloader.due == 0.0
        garage.reloader.tick(garage.shell.os.now)
        assert garage.loaded == loaded
    assert isinstance(garage.observed[-1], ev.ReloadPrepared)
    assert garage.reloader.due is None


def test_a_shutdown_does_not_wait_for_the_load(garage: Garage) -> None:
    garage.signals = [signal.SIGTERM]
    garage.prepare()
    garage.reloader.drop()
    garage.reloader.tick(garage.shell.os.now)
    assert (garage.loaded, garage.observed, garage.reloader.due) == (1, [], None)


def test_signals_without_end_do_not_keep_a_reload_from_being_prepared(garage: Garage) -> None:
    garage.signals = [signal.SIGCHLD] * 100
    garage.prepare()
    for _ in range((TURNS + 1) * PATIENCE):
        garage.reloader.tick(garage.shell.os.now)
    assert garage.loaded == PATIENCE + 1
    assert isinstance(garage.observed[-1], ev.ReloadPrepared)


def test_a_signal_that_can_wait_does(garage: Garage) -> None:
    garage.signals = [signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1]
    garage.prepare()
    assert garage.loaded == 1
    assert isinstance(garage.observed[-1], ev.ReloadPrepared)


def test_a_load_is_broken_off_in_the_middle_of_the_users_code(monkeypatch: pytest.MonkeyPatch) -> None:
    interruption, went_on = Interruption(), []

    def _load(current: Deployment, log: Any, breakable: Breakable) -> Deployment:
        with breakable():
            os.kill(os.getpid(), signal.SIGTERM)
            went_on.append(True)
        raise AssertionError

    monkeypatch.setattr(module, "_load", _load)
    before = signal.signal(signal.SIGTERM, lambda number, _: interruption.hear(number, nested=False))
    try:
        with pytest.raises(Interrupted):
            real_load(Garage.deployment("old"), None, interruption.allowed)
        os.kill(os.getpid(), signal.SIGTERM)  # nothing is there to be broken off
    finally:
        signal.signal(signal.SIGTERM, before)
    assert went_on == []


# --- the child


@pytest.mark.parametrize(
    ("raised", "answer"),
    [
        (None, b'+{"host": "127.0.0.1"}'),
        (DeploymentError("conf.py: a typo"), b"-conf.py: a typo"),
        (SystemExit(), b"-SystemExit"),
        (DeploymentError("x" * 10_000), b"-" + b"x" * 4095),
    ],
)
def test_the_child_leaves_everything_behind_loads_and_answers(
    garage: Garage, raised: BaseException | None, answer: bytes, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def check(current: Deployment) -> dict[str, str]:
        print("said by the config file")
        if raised is not None:
            raise raised
        return {"host": "127.0.0.1"}

    monkeypatch.setattr(module, "check", check)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "alarm", lambda _: None)
    system = garage.shell.os
    system.child = True
    with pytest.raises(ChildExitError):
        garage.reloader.prepare()
    assert os.read(system.readers[0], 10_000) == answer
    assert ("close", PIPE[1]) in system.calls
    # It is printed once: here, or when the arbiter loads it.
    assert capsys.readouterr() == ("", "said by the config file\n" if raised else "")


def test_no_child_keeps_the_pipe_of_a_check(garage: Garage) -> None:
    context, system = garage.shell.context, garage.shell.os
    garage.reloader.prepare()
    reader = system.pipes[0]
    context.leave_behind()
    assert ("close", reader) in system.calls
    garage.reloader.drop()
    assert context.in_child == []


# --- on trial ---


@pytest.mark.parametrize("why", ["preload_app", "run() got the app as an object"])
def test_code_that_stays_is_said(garage: Garage, why: str) -> None:
    if why == "preload_app":
        garage.current.cfg.preload_app = True
    else:
        garage.current.app.app_uri = None
    garage.prepare()
    assert garage.shell.log.said(f"{why}: a reload does not load new app code")


def test_a_commit_closes_what_is_no_longer_listened_on(garage: Garage) -> None:
    old = garage.current.listeners[0]
    garage.prepare()
    garage.reloader.commit()
    assert garage.installed == ["new"]
    assert old.closed
    assert garage.observed[-1] == ev.Committed()
    assert garage.reloader.candidate is None
    assert garage.shell.log.said("Listening at: new")


def test_a_commit_that_fails_half_way_leaves_the_old_deployment_in_force(garage: Garage) -> None:
    garage.fails = ["new"]
    old = garage.current
    garage.prepare()
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
    garage.prepare()
    garage.reloader.commit()
    assert garage.shell.log.said("could not be restored completely")
    assert isinstance(garage.observed[-1], ev.CommitFailed)


def test_what_is_dropped_is_closed_but_for_what_is_in_force(garage: Garage) -> None:
    kept = garage.current.listeners[0]
    assert isinstance(garage.next, Deployment)
    garage.next.listeners.insert(0, kept)
    garage.prepare()
    garage.reloader.drop()
    garage.reloader.drop()
    assert [listener.closed for listener in garage.next.listeners] == [False, True]
