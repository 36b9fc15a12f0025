"""The arbiter's side of its workers: how one comes, speaks and goes, and what the kernel refuses."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter import app_metrics
from multicore_server.arbiter.worker_processes import WorkerProcesses
from multicore_server.fleet import events as ev
from multicore_server.ipc.channel import MOST_AT_ONCE
from multicore_server.ipc.messages import LastWords, RetireRequest, StopCommand, WorkerReady, encode
from tests.support.descriptors import descriptors
from tests.unit import shell
from tests.unit.shell import Shell, configuration, fault


class Yard:
    """Worker processes in a simulated shell. ``cfg`` is that of every deployment."""

    def __init__(self, made: Shell) -> None:
        self.shell = made
        self.cfg = configuration()
        self.workers: dict[int, Any] = {}
        self.closed: list[Any] = []
        self.oom = False
        self.deployment: Any = SimpleNamespace(
            cfg=self.cfg,
            app="app",
            listeners=["listener"],
            settings="settings",
            number=1,
            enter=lambda: None,
        )
        self.processes = WorkerProcesses(
            made.context,
            server="the arbiter",
            workers=self.workers,
            in_force=lambda: self.deployment,
            deployment_for=lambda fork: self.deployment,
            close_in_worker=self.closed.append,
            metrics_address=lambda settings: "address",
            oom_killed=lambda: self.oom,
            hooked=lambda: None,
        )

    def fork(self) -> Any:
        """The next of the forks that the fleet asks for; its worker, None if there is none."""
        before = set(self.workers)
        self.processes.fork(self.shell.next_fork())
        return next((worker for pid, worker in self.workers.items() if pid not in before), None)

    def descriptors(self) -> int:
        """How many the arbiter has open."""
        return descriptors() - len(self.shell.os.ends)

    def hear(self) -> None:
        self.shell.select()
        self.processes.hear_all()

    def observed(self, kind: type[Any]) -> list[Any]:
        return [it for it in self.shell.observed if isinstance(it, kind)]


@pytest.fixture
def yard() -> Iterator[Yard]:
    with shell.shell() as made:
        yield Yard(made)
        # A child leaves what is registered to the arbiter, which shares it.
        assert made.os.child or not made.context.selector.get_map()


def reap(yard: Yard, worker: Any, status: int = 0) -> None:
    del yard.workers[worker.pid]
    yard.processes.reaped(worker, status)


# --- it comes ---


def test_a_worker_is_forked_and_has_its_place(yard: Yard) -> None:
    worker = yard.fork()
    assert yard.observed(ev.Forked) == [ev.Forked(0, 1, worker.pid)]
    assert (worker.age, worker.ppid, worker.timeout, worker.sockets) == (1, shell.ARBITER, 15.0, ["listener"])
    context = worker.context
    assert (context.instance, context.generation, context.number) == (0, 1, 0)
    assert (context.settings, context.monitor) == ("settings", "address")
    assert yard.cfg.calls == ["pre_fork"]
    reap(yard, worker)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_the_kernel_refuses_is_observed_and_leaves_nothing(yard: Yard, number: int) -> None:
    yard.shell.os.faults["fork"] = [fault(number)]
    before = yard.descriptors()
    assert yard.fork() is None
    (failed,) = yard.observed(ev.ForkFailed)
    assert failed.error == str(fault(number))
    assert yard.cfg.calls == ["pre_fork", "tmp closed"]
    assert yard.descriptors() == before


def test_no_descriptors_for_a_channel(yard: Yard) -> None:
    yard.shell.os.faults["channel"] = [fault(errno.EMFILE)]
    assert yard.fork() is None
    assert yard.observed(ev.ForkFailed)[0].error == "[Errno 24] Too many open files"


def test_a_worker_that_cannot_be_made_leaves_nothing(yard: Yard) -> None:
    """gunicorn's constructor makes a temporary file."""
    yard.cfg.worker_fails = fault(errno.ENOSPC)
    before = yard.descriptors()
    assert yard.fork() is None
    assert "No space left" in yard.observed(ev.ForkFailed)[0].error
    assert yard.descriptors() == before


def refuse_to_register(yard: Yard, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any) -> None:
        raise fault(number)

    monkeypatch.setattr(yard.shell.context.selector, "register", refuse)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_worker_that_could_not_be_heard_is_not_forked(
    yard: Yard, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll_ctl(2) fails beyond max_user_watches; the server ended, with the worker forked already."""
    before = yard.descriptors()
    refuse_to_register(yard, monkeypatch, number)
    assert yard.fork() is None
    assert yard.observed(ev.ForkFailed)[0].error == str(fault(number))
    assert yard.shell.os.living == []
    assert yard.descriptors() == before


@pytest.mark.parametrize("failure", [RuntimeError("no"), SystemExit("no")])
def test_a_pre_fork_hook_that_raises_costs_this_fork(yard: Yard, failure: BaseException) -> None:
    def pre_fork(*_: Any) -> None:
        raise failure

    yard.cfg.pre_fork = pre_fork
    assert yard.fork() is None
    assert yard.observed(ev.ForkFailed)[0].error == "no"


# --- in the child ---


def test_the_child_leaves_what_is_the_arbiters_and_boots(yard: Yard) -> None:
    sibling = yard.fork()
    yard.shell.os.child = True
    with pytest.raises(SystemExit) as ended:
        yard.fork()
    assert ended.value.code == 0
    assert ("close", shell.PIPE[1]) in yard.shell.os.calls
    assert yard.closed == [["listener"]]
    assert sibling.context.channel.arbiter_end.fileno() == -1
    assert yard.cfg.calls[-5:] == ["tmp closed", "post_fork", "boot", "tmp closed", "worker_exit"]
    yard.shell.context.selector.unregister(next(iter(yard.shell.context.selector.get_map())))


def test_nothing_but_an_exit_gets_out_of_the_child(yard: Yard) -> None:
    """What is above are the arbiter's frames: they would end every worker."""

    def post_fork(*_: Any) -> None:
        raise KeyboardInterrupt

    yard.cfg.post_fork = post_fork
    yard.shell.os.child = True
    with pytest.raises(SystemExit) as ended:
        yard.fork()
    assert ended.value.code == 3
    assert yard.cfg.calls == ["pre_fork", "tmp closed", "worker_exit"]


# --- it talks ---


def test_what_a_worker_says_is_observed(yard: Yard) -> None:
    worker = yard.fork()
    end = yard.shell.os.ends[-1]
    for message in (WorkerReady("wsgi"), RetireRequest("max_requests", draining=False)):
        end.send(encode(message))
    yard.hear()
    assert yard.shell.observed[1:] == [
        ev.BecameReady(worker.pid),
        ev.AskedToRetire(worker.pid, "max_requests", False),
    ]
    reap(yard, worker)


def test_threads_of_an_asgi_app_have_no_effect_and_that_is_said_once(yard: Yard) -> None:
    yard.cfg.threads = 4
    worker = yard.fork()
    for _ in range(2):
        yard.shell.os.ends[-1].send(encode(WorkerReady("asgi3")))
    yard.hear()
    assert len(yard.shell.log.said("threads = 4 has no effect")) == 1
    reap(yard, worker)


def test_why_a_boot_failed_is_shown_once_where_it_is_the_same_for_all(yard: Yard) -> None:
    words = encode(LastWords("no module\nnamed x", "Traceback"))
    for _ in range(2):
        worker = yard.fork()
        yard.shell.os.ends[-1].send(words)
        reap(yard, worker, 3 << 8)
    assert len(yard.shell.log.said("could not boot\nTraceback")) == 1
    assert [exited.words for exited in yard.observed(ev.Exited)] == ["no module named x"] * 2


@pytest.mark.parametrize("garbage", [b"{", b"\xff" * 1000, b'["LastWords", {"words": 1, "trace": ""}]'])
def test_garbage_costs_one_line_and_nothing_else(yard: Yard, garbage: bytes) -> None:
    worker = yard.fork()
    for data in (garbage, garbage, encode(StopCommand(1, graceful=False)), encode(WorkerReady("asgi3"))):
        yard.shell.os.ends[-1].send(data)
    yard.hear()
    assert len(yard.shell.log.said("is dropped: ")) == 1
    assert yard.observed(ev.BecameReady) == [ev.BecameReady(worker.pid)]
    reap(yard, worker)


def test_a_worker_that_talks_without_end_gets_its_turns(yard: Yard) -> None:
    worker = yard.fork()
    for _ in range(MOST_AT_ONCE + 1):
        yard.shell.os.ends[-1].send(encode(RetireRequest("cron", draining=False)))
    yard.hear()
    assert len(yard.observed(ev.AskedToRetire)) == MOST_AT_ONCE
    yard.hear()
    assert len(yard.observed(ev.AskedToRetire)) == MOST_AT_ONCE + 1
    reap(yard, worker)


def test_a_closed_channel_does_not_wake_the_loop_again(yard: Yard) -> None:
    worker = yard.fork()
    yard.shell.os.ends[-1].close()
    yard.hear()
    assert yard.shell.select() == 0
    reap(yard, worker)


# --- it goes ---


@pytest.mark.parametrize(
    ("status", "exited"),
    [
        (0, {"code": 0}),
        (3 << 8, {"code": 3}),
        (signal.SIGSEGV, {"signal": "SIGSEGV"}),
        (40, {"signal": "signal 40"}),  # a real-time signal
    ],
)
def test_how_it_ended(yard: Yard, status: int, exited: dict[str, Any]) -> None:
    worker = yard.fork()
    reap(yard, worker, status)
    assert yard.observed(ev.Exited) == [ev.Exited(worker.pid, **exited)]
    assert yard.cfg.calls[-2:] == ["child_exit", "on_worker_exit"]


@pytest.mark.parametrize("killed_by_us", [False, True])
def test_the_oom_killer_is_blamed_for_a_kill_that_is_not_ours(yard: Yard, killed_by_us: bool) -> None:
    yard.oom = True
    worker = yard.fork()
    if killed_by_us:
        yard.shell.observe(ev.OverMemory(worker.pid, True, 2, 1))
    reap(yard, worker, signal.SIGKILL)
    assert yard.observed(ev.Exited)[0].oom is not killed_by_us


def test_the_last_words_of_a_worker_that_was_not_heard_are_read_at_its_end(yard: Yard) -> None:
    worker = yard.fork()
    yard.shell.os.ends[-1].send(encode(LastWords("boom", "")))
    yard.shell.select()
    reap(yard, worker, 3 << 8)
    yard.processes.hear_all()
    assert yard.observed(ev.Exited)[0].words == "boom"


def test_whoever_ends_may_have_been_the_primary_worker(yard: Yard) -> None:
    worker = yard.fork()
    assert yard.shell.announced == 0
    reap(yard, worker)
    assert yard.shell.announced == 1, "workers that rest do not look for it"


def test_the_fleet_knows_of_an_end_whatever_fails_afterwards(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = yard.fork()

    def fail(_: int) -> None:
        raise fault(errno.EIO)

    monkeypatch.setattr(app_metrics, "forget_live", fail)
    with pytest.raises(OSError, match="Input/output error"):
        reap(yard, worker)
    assert yard.observed(ev.Exited) == [ev.Exited(worker.pid, code=0)]
