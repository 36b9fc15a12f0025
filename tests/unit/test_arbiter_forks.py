"""What a child of the arbiter's holds: real forks in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from multicore_server.arbiter import system
from multicore_server.arbiter.forks import Forks, forks
from tests.support.threads import running

BOTH, LISTENERS, NONE = 3, 2, 0


def inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


class Pipes:
    """Two descriptors: of the lifeline, and of a listener."""

    def __init__(self) -> None:
        self.descriptors = [*os.pipe(), *os.pipe()]
        self.inodes = [inode(self.lifeline), inode(self.listener)]

    @property
    def lifeline(self) -> int:
        return self.descriptors[1]

    @property
    def listener(self) -> int:
        return self.descriptors[3]

    def held(self) -> int:
        """Which of them lead to where they led."""
        lifeline, listener = self.inodes
        return (inode(self.lifeline) == lifeline) + 2 * (inode(self.listener) == listener)

    def held_by(self, pid: int) -> int:
        """What the child with this pid has said; 0: this is the child."""
        if pid == 0:
            os._exit(self.held())
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    found = Pipes()
    forks.guard(found.lifeline, lambda: [found.listener])
    yield found
    forks.release()
    for descriptor in found.descriptors:
        os.close(descriptor)


def test_a_child_of_a_hook_holds_neither(pipes: Pipes) -> None:
    assert pipes.held_by(os.fork()) == NONE
    assert pipes.held() == BOTH


def test_a_child_of_our_own_has_the_listeners(pipes: Pipes) -> None:
    assert pipes.held_by(system.fork()) == LISTENERS
    assert pipes.held_by(os.fork()) == NONE


def test_a_child_of_our_own_does_first_what_it_is_told(pipes: Pipes) -> None:
    """USR2's arbiter, by gunicorn's fork and by ours."""
    for fork in (os.fork, system.fork):
        with forks.own(lambda: os.close(pipes.descriptors[0])):
            child = fork()
        if child == 0:
            try:
                inode(pipes.descriptors[0])
            except OSError:
                os._exit(pipes.held())
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == LISTENERS
    assert pipes.held_by(system.fork()) == LISTENERS
    assert inode(pipes.descriptors[0])


def test_what_a_child_forks_keeps_what_it_has(pipes: Pipes) -> None:
    """The number of a descriptor may be another one's by then."""
    child = system.fork()
    if child == 0:
        os._exit(pipes.held_by(os.fork()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == LISTENERS


def test_a_fork_of_another_thread_is_not_our_own(pipes: Pipes) -> None:
    ours, theirs = threading.Event(), threading.Event()
    found: list[int] = []

    def hook() -> None:
        ours.wait()
        found.append(pipes.held_by(os.fork()))
        theirs.set()

    with running(hook, end=ours.set), forks.own():
        ours.set()
        theirs.wait()
    assert found == [NONE]


def test_after_the_arbiters_end_nothing_is_closed(pipes: Pipes) -> None:
    forks.release()
    assert pipes.held_by(os.fork()) == BOTH


def test_there_is_one_callback_for_all_arbiters(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Callable[[], None]] = []

    def register(*, after_in_child: Callable[[], None]) -> None:
        registered.append(after_in_child)

    monkeypatch.setattr(os, "register_at_fork", register)
    fresh = Forks()
    for lifeline in (1001, 1002):
        fresh.guard(lifeline, list)
    assert len(registered) == 1
