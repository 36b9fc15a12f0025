"""Who is primary, and what runs there: histories of several workers that share one lock."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server import cluster
from multicore_server.cluster import primary
from multicore_server.cluster.primary import Election, Jobs
from multicore_server.ipc.primary_lock import PrimaryLock
from multicore_server.ipc.scoreboard import Item, Scoreboard
from multicore_server.worker.candidacy import Candidacy
from tests.support import outside
from tests.support.coroutines import run, until


class SharedLock:
    """The lock of several workers in one process."""

    def __init__(self) -> None:
        self.holder: Worker | None = None


class Worker:
    """One of them, with jobs of its own."""

    def __init__(self, shared: SharedLock) -> None:
        self.shared = shared
        self.jobs = Jobs()
        self.told: list[bool] = []
        self.election = Election(self, self.jobs, self.told.append)

    def take(self) -> bool:
        if self.shared.holder not in (None, self):
            return False
        self.shared.holder = self
        return True

    def free(self) -> None:
        assert self.shared.holder is self
        self.shared.holder = None

    @property
    def is_primary(self) -> bool:
        return bool(self.told) and self.told[-1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "FIRST_DELAY", 0.01)
    outside.put_back(monkeypatch)


# --- who


@given(st.lists(st.tuples(st.sampled_from(["look", "give up", "die"]), st.integers(0, 3)), max_size=40))
def test_at_most_one_is_primary_and_one_that_looks_when_nobody_is_becomes_it(
    history: list[tuple[str, int]],
) -> None:
    async def main() -> None:
        shared = SharedLock()
        workers = [Worker(shared) for _ in range(4)]
        gone: set[int] = set()
        for what, number in history:
            worker = workers[number]
            if what == "look":
                worker.election.look()
                if number not in gone:
                    assert shared.holder is not None
            elif what == "give up":
                await worker.election.give_up()
                gone.add(number)
            else:  # the kernel frees what it has; another process takes its place
                if shared.holder is worker:
                    shared.holder = None
                workers[number] = Worker(shared)
                gone.discard(number)
            assert [it for it in workers if it.is_primary] == [it for it in workers if shared.holder is it]

    asyncio.run(main())


def test_the_lock_is_one_processes_and_lost_with_it() -> None:
    lock = PrimaryLock()
    assert lock.take()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"yes" if lock.take() else b"no")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"no"
    lock.free()
    lock.hear()
    lock.hear()  # by another one
    child = os.fork()
    if child == 0:
        os.write(writer, b"yes" if lock.take() else b"no")
        os._exit(0)  # without giving it up
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"yes"
    assert lock.take()
    lock.close()
    os.close(reader)
    os.close(writer)


# --- what


def test_jobs_run_while_their_worker_is_primary_and_end_before_the_next() -> None:
    async def main() -> None:
        seen: list[str] = []

        def job_of(name: str) -> Callable[[], Coroutine[Any, Any, None]]:
            async def job() -> None:
                seen.append(f"{name} begins")
                try:
                    await asyncio.sleep(3600)
                finally:
                    await asyncio.sleep(0.02)  # it has to tidy up
                    seen.append(f"{name} ends")

            return job

        shared = SharedLock()
        old, new = Worker(shared), Worker(shared)
        old.jobs.add(job_of("old"))
        new.jobs.add(job_of("new"))
        old.election.look()
        new.election.look()
        await until(lambda: seen)
        giving_up = asyncio.create_task(old.election.give_up())
        while not giving_up.done():
            new.election.look()
            await asyncio.sleep(0)
        new.election.look()
        await until(lambda: len(seen) == 3)
        await new.election.give_up()
        assert seen == ["old begins", "old ends", "new begins", "new ends"]

    run(main)


def test_a_job_that_raises_is_named_and_starts_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        began: list[float] = []

        async def unlucky() -> None:
            began.append(asyncio.get_running_loop().time())
            if len(began) < 4:
                raise ValueError("no luck")

        jobs = Jobs()
        jobs.start()
        jobs.add(unlucky)
        await until(lambda: len(began) == 4)
        await jobs.end()
        waits = [later - earlier for earlier, later in itertools.pairwise(began)]
        shortest = [0.8 * primary.FIRST_DELAY * primary.GROWTH**number for number in range(3)]
        assert all(wait >= least for wait, least in zip(waits, shortest, strict=True))

    run(main)
    assert caplog.text.count("unlucky failed on the primary worker; it starts again in") == 3
    assert "no luck" in caplog.text


def test_a_job_that_returns_is_done() -> None:
    async def main() -> None:
        calls: list[int] = []

        async def short() -> None:
            calls.append(1)

        jobs = Jobs()
        jobs.add(short)
        jobs.start()
        await asyncio.sleep(0.05)
        await jobs.end()
        assert calls == [1]

    run(main)


def test_a_plain_function_has_a_thread_and_its_end_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        may_end, seen = threading.Event(), []

        def job() -> None:
            seen.append(threading.current_thread().name)
            may_end.wait(10)
            seen.append("ended")

        jobs = Jobs()
        jobs.add(job)
        jobs.start()
        await until(lambda: seen)
        ending = asyncio.create_task(jobs.end())
        await asyncio.sleep(0.05)
        assert not ending.done()
        may_end.set()
        await ending
        assert seen[1:] == ["ended"]
        assert "job" in seen[0]

    run(main)


def test_a_thread_that_raises_starts_again(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls: list[int] = []

        def job() -> None:
            calls.append(1)
            if len(calls) == 1:
                raise SystemExit

        jobs = Jobs()
        jobs.add(job)
        jobs.start()
        await until(lambda: len(calls) == 2)
        await jobs.end()

    run(main)
    assert "failed on the primary" in caplog.text


def test_outside_of_a_worker_it_runs_when_it_is_told_to() -> None:
    calls: list[str] = []

    @cluster.run_on_primary
    async def early() -> None:
        calls.append("early")

    async def main() -> None:
        @cluster.run_on_primary
        async def late() -> None:
            calls.append("late")

        cluster.start()
        cluster.start()
        await until(lambda: len(calls) == 2)

    assert calls == []
    run(main)
    assert sorted(calls) == ["early", "late"]
    with pytest.raises(RuntimeError):
        cluster.start()


def test_who_drains_leaves_the_news_of_a_free_lock_to_others() -> None:
    async def story() -> None:
        lock, scoreboard = PrimaryLock(), Scoreboard(1)
        try:
            candidacy = Candidacy(lock, scoreboard, scoreboard.row(0), deployment=1)
            candidacy.beat()
            await candidacy.withdraw()
            with contextlib.suppress(BlockingIOError):
                os.read(lock.freed, 4096)  # of its own end
            candidacy.beat()
            lock.announce()
            await asyncio.sleep(0.01)
            assert os.read(lock.freed, 4096), "it is there for whoever waits"
        finally:
            lock.close()

    run(story)


class OthersLock(PrimaryLock):
    """Another worker has it, at first."""

    is_taken = True

    def take(self) -> bool:
        return not self.is_taken and super().take()

    def leave(self) -> None:
        self.is_taken = False
        self.announce()


@pytest.mark.parametrize("serving", [True, False])
def test_who_is_to_drain_does_not_become_primary_before_it_hears_of_that(serving: bool) -> None:
    """The server stops: the primary worker has left already, and this one has not read its order yet."""

    async def story() -> None:
        lock, scoreboard = OthersLock(), Scoreboard(1)
        row = scoreboard.row(0)
        try:
            candidacy = Candidacy(lock, scoreboard, row, deployment=1)
            candidacy.beat()
            scoreboard.publish(frozenset({0}))
            candidacy.beat()
            if not serving:
                scoreboard.publish(frozenset())
            lock.leave()
            await asyncio.sleep(0.01)
            candidacy.beat()
            assert row[Item.PRIMARY_CHANGES] == serving
            await candidacy.withdraw()
        finally:
            lock.close()

    run(story)
