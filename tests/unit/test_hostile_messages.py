"""A worker, or the monitor, sends whatever it likes: the arbiter goes on, and says so in one line at most."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multicore_server.arbiter.commands import Commands
from multicore_server.arbiter.monitor_addresses import MonitorAddresses
from multicore_server.arbiter.monitor_process import START_WITHIN, MonitorProcess
from multicore_server.arbiter.worker_processes import WorkerProcesses
from multicore_server.fleet import events as ev
from multicore_server.ipc.messages import (
    MAX_MESSAGE,
    Answer,
    Command,
    LastWords,
    Message,
    ReloadCommand,
    ResetCommand,
    RestartCommand,
    RetireRequest,
    ScaleCommand,
    StopCommand,
    WorkerMessage,
    WorkerReady,
    decode,
    encode,
)
from multicore_server.ipc.names import Interface, Reason
from multicore_server.settings.table import Settings
from tests.unit import shell
from tests.unit.shell import Shell, configuration


@pytest.fixture(autouse=True, scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where command sockets are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        yield


# --- what arrives ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
NAMES = [kind.__name__ for kind in get_args(Message)]
WRITTEN = st.builds(lambda name, fields: json.dumps([name, fields]).encode(), st.sampled_from(NAMES), JSON)
TEXT = st.text(max_size=60)
BIG = st.integers(-(2**63) + 1, 2**63 - 1)
FROM_WORKER: st.SearchStrategy[WorkerMessage] = (
    st.builds(WorkerReady, st.sampled_from(get_args(Interface)))
    | st.builds(RetireRequest, st.sampled_from(get_args(Reason)), st.booleans())
    | st.builds(LastWords, TEXT, TEXT)
)
FROM_MONITOR: st.SearchStrategy[Command] = st.one_of(
    st.builds(ReloadCommand, BIG, deadline=st.none() | BIG | st.floats(-1e18, 1e18)),
    st.builds(ResetCommand, BIG),
    st.builds(StopCommand, BIG, st.booleans()),
    st.builds(RestartCommand, BIG, st.none() | st.lists(BIG, max_size=5)),
    st.builds(ScaleCommand, BIG, BIG | TEXT | st.from_regex(r"[+-]\d{1,5000}", fullmatch=True)),
)


def cut(data: bytes, length: int) -> bytes:
    return data[:length]


NOISE = st.one_of(st.binary(min_size=1, max_size=300), WRITTEN, st.builds(cut, WRITTEN, st.integers(1, 60)))


# --- a worker ---


@contextmanager
def a_worker() -> Iterator[tuple[Shell, Callable[[Sequence[bytes]], None]]]:
    """A shell with one worker, and what makes the arbiter hear these messages of it."""
    with shell.shell() as made:
        deployment: Any = SimpleNamespace(
            cfg=configuration(), app="app", listeners=[], settings=Settings(workers=2), number=1
        )
        processes = WorkerProcesses(
            made.context,
            server="the arbiter",
            workers={},
            in_force=lambda: deployment,
            deployment_for=lambda fork: deployment,
            close_in_worker=lambda sockets: None,
            metrics_address=lambda settings: "",
            oom_killed=lambda: False,
            hooked=lambda: None,
        )
        processes.fork(made.next_fork())

        def hear(messages: Sequence[bytes]) -> None:
            for data in messages:
                send(made.os.ends[-1], data)
            while made.select():
                processes.hear_all()
            made.fleet.tick(made.os.now)

        yield made, hear


@settings(max_examples=80, deadline=None)
@given(st.lists(NOISE, max_size=20))
def test_a_worker_that_sends_anything_costs_a_line(noise: list[bytes]) -> None:
    with a_worker() as (made, hear):
        hear(noise)
        assert len(made.log.said("is dropped: ")) <= 1
        hear([encode(RetireRequest("manual", draining=False))])
        assert ev.AskedToRetire(101, "manual", draining=False) in made.observed


@settings(max_examples=80, deadline=None)
@given(st.lists(FROM_WORKER, max_size=20))
def test_a_worker_that_lies_is_heard_and_ends_nothing(messages: list[WorkerMessage]) -> None:
    with a_worker() as (made, hear):
        hear([encode(message) for message in messages])
        assert not made.log.said("dropped")
        assert not made.fleet.stopping


def test_a_worker_that_sends_too_much_costs_a_line() -> None:
    with a_worker() as (made, hear):
        hear([b"x" * (MAX_MESSAGE + 1), b"[" * MAX_MESSAGE, b"\0"] * 3)
        (line,) = made.log.said("dropped")
        assert line.endswith(f"dropped: it is longer than {MAX_MESSAGE} bytes")


# --- the monitor ---


@contextmanager
def a_monitor() -> Iterator[tuple[Shell, Callable[[Sequence[bytes]], None]]]:
    """The same of the monitor, with the commands carried out on a real fleet."""
    with shell.shell() as made:
        ask: Any = None  # of names, and there is none
        addresses = MonitorAddresses(
            made.log, made.context.system, Settings(workers=2, metrics_bind=""), lambda: True, ask
        )
        commands = Commands(made.context, end=lambda graceful: made.observe(ev.Stop(graceful)))
        report: Any = "the report"
        monitor = MonitorProcess(made.context, addresses, report, commands.carry_out, lambda: None)
        monitor.tick(made.os.now + START_WITHIN)

        def hear(messages: Sequence[bytes]) -> None:
            for data in messages:
                send(made.os.ends[-1], data)
            while made.select():
                made.fleet.tick(made.os.now)

        yield made, hear
        monitor.end()


@settings(max_examples=80, deadline=None)
@given(st.lists(NOISE, max_size=20))
def test_a_monitor_that_sends_anything_costs_a_line(noise: list[bytes]) -> None:
    with a_monitor() as (made, hear):
        hear(noise)
        assert len(made.log.said("is dropped: ")) <= 1
        hear([encode(ResetCommand(7))])
        assert ev.Reset() in made.observed


@settings(max_examples=150, deadline=None)
@given(st.lists(FROM_MONITOR, max_size=10))
def test_a_monitor_that_checks_nothing_gets_an_answer_and_ends_nothing(commands: list[Command]) -> None:
    with a_monitor() as (made, hear):
        for command in commands:
            hear([encode(command)])
            answer = decode(made.os.ends[-1].recv(MAX_MESSAGE), Answer)
            assert answer.id == command.id
            assert "\n" not in answer.text


# --- both ---


def send(end: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError):  # as full as a channel can be
        end.send(data)
