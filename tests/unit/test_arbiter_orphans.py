"""What dead workers leave behind, in a simulated system."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from functools import partial

import pytest

from multicore_server.arbiter.orphans import SOON, TERM_GRACE, Orphans
from tests.unit.shell import Shell, fault, shell

GRACE = 30.0
WORKERS = {1, 2}
DEAD = "instance=0 gen=1 pid=3"


class Yard:
    def __init__(self, made: Shell) -> None:
        self.os, self.log = made.os, made.log
        self.os.living += WORKERS
        self.orphans = Orphans(made.context, WORKERS.__contains__, lambda: GRACE)

    def leave(self, *pids: int) -> None:
        """A worker dies and leaves these."""
        self.os.living += pids
        self.orphans.look(DEAD)

    def after(self, seconds: float) -> None:
        self.os.now += seconds
        self.orphans.tick(self.os.now)
        for pid, _ in self.os.ended:
            self.orphans.reaped(pid)
        self.os.ended.clear()


@pytest.fixture
def yard() -> Iterator[Yard]:
    with shell() as made:
        yield Yard(made)


def test_they_are_named_told_to_end_and_killed(yard: Yard) -> None:
    yard.os.obeys_term = False
    yard.leave(11, 12)
    assert yard.orphans.due == yard.os.now + SOON
    yard.after(SOON)
    names = "process-11 11, process-12 12"
    text = f"{DEAD} left 2 processes of its app running ({names}); they get SIGTERM in 30 s"
    assert yard.log.lines == [f"WARNING: {text}"]
    yard.after(GRACE - 1)
    assert yard.os.sent() == []
    yard.after(1)
    yard.after(TERM_GRACE)
    assert sorted(yard.os.sent()) == [(11, "SIGKILL"), (11, "SIGTERM"), (12, "SIGKILL"), (12, "SIGTERM")]
    assert yard.orphans.due == math.inf


def test_what_ends_by_itself_is_not_mentioned(yard: Yard) -> None:
    yard.leave(11)
    yard.os.end(11, 0)
    yard.orphans.reaped(11)
    yard.after(SOON + GRACE + TERM_GRACE)
    assert yard.log.lines == [] == yard.os.sent()


def test_what_obeys_is_not_killed(yard: Yard) -> None:
    yard.leave(11, 12)
    for seconds in (SOON, GRACE, TERM_GRACE):
        yard.after(seconds)
    assert [name for _, name in yard.os.sent()] == ["SIGTERM"] * 2


def test_what_a_hook_has_started_is_spared(yard: Yard) -> None:
    yard.os.living.append(11)
    yard.orphans.spare()
    yard.leave(12)
    for seconds in (SOON, GRACE):
        yard.after(seconds)
    assert yard.os.sent() == [(12, "SIGTERM")]


def test_what_a_worker_has_left_is_not_spared_later(yard: Yard) -> None:
    yard.leave(11)
    yard.orphans.spare()
    for seconds in (SOON, GRACE):
        yard.after(seconds)
    assert yard.os.sent() == [(11, "SIGTERM")]


def test_what_a_worker_leaves_that_is_not_reaped_yet_is_not_spared(yard: Yard) -> None:
    yard.os.end(2, 0)
    yard.os.living.append(11)
    yard.orphans.spare()
    yard.os.ended.clear()
    yard.orphans.look(DEAD)
    for seconds in (SOON, GRACE):
        yard.after(seconds)
    assert yard.os.sent() == [(11, "SIGTERM")]


def test_a_daemon_is_spared_though_it_becomes_one_late(yard: Yard) -> None:
    yard.leave(11, 12)
    yard.os.daemons.add(11)
    yard.after(SOON)
    assert "process-11" not in yard.log.lines[0]
    yard.os.daemons.add(12)
    yard.after(GRACE)
    assert yard.os.sent() == []
    assert yard.orphans.due == math.inf


def test_at_the_end_what_is_left_is_told_to_end(yard: Yard) -> None:
    yard.leave(11)
    yard.orphans.end()
    assert yard.os.sent() == [(11, "SIGTERM")]


def test_one_that_may_not_be_signalled_does_not_shield_the_others(yard: Yard) -> None:
    yard.leave(11, 12)
    yard.os.faults["kill"] = [fault(errno.EPERM)]
    for seconds in (SOON, GRACE):
        yard.after(seconds)
    assert {pid for pid, _ in yard.os.sent()} == {11, 12}
    assert len(yard.log.said("cannot send SIGTERM to pid")) == 1


def test_ten_thousand_are_one_line(yard: Yard) -> None:
    yard.leave(*range(100, 10_100))
    yard.after(SOON)
    assert "left 10000 processes" in yard.log.lines[0]
    assert len(yard.log.lines[0]) < 250


def test_where_the_kernel_has_no_subreaper_they_go_to_init() -> None:
    with shell() as made:
        made.os.faults["become_subreaper"] = [fault(errno.EINVAL)]
        orphans = Orphans(made.context, WORKERS.__contains__, partial(float, GRACE))
        orphans.look(DEAD)
        assert orphans.due == math.inf
