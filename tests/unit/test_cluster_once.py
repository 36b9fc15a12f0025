"""What is done once for all workers: in threads that stand for them, and in processes that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from multicore_server import cluster
from multicore_server.cluster.once import Attempt
from multicore_server.ipc import once_log
from multicore_server.ipc.once_log import MAX_VALUE, OnceLog
from tests.support import outside


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    outside.put_back(monkeypatch)


@pytest.fixture
def log() -> Iterator[OnceLog]:
    made = OnceLog()
    yield made
    made.close()


@pytest.fixture
def joined(log: OnceLog, monkeypatch: pytest.MonkeyPatch) -> OnceLog:
    monkeypatch.setattr(Attempt, "_log", log)
    monkeypatch.setattr(Attempt, "_deployment", 1)
    return log


def in_process(function: Callable[[], Any]) -> Any:
    """What it returns, or how it failed, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr(function()).encode())
        except BaseException as exc:  # noqa: BLE001 - it is told
            os.write(writer, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(writer)

    def result() -> str:
        with os.fdopen(reader, "rb") as file:
            said = file.read().decode()
        os.waitpid(child, 0)
        return said

    return result


def test_outside_of_a_worker_it_is_called_once_in_the_process() -> None:
    calls: list[int] = []

    def function() -> list[int]:
        calls.append(1)
        return calls

    assert cluster.once_sync("it", function) == [1]
    assert asyncio.run(cluster.once("it", function)) == [1]
    assert calls == [1]


@pytest.mark.usefixtures("joined")
def test_threads_and_tasks_of_a_process_wait_for_each_other() -> None:
    calls: list[str] = []

    def slow() -> str:
        calls.append("slow")
        time.sleep(0.1)
        return "done"

    async def many() -> list[Any]:
        return await asyncio.gather(*(cluster.once("slow", slow) for _ in range(5)))

    with ThreadPoolExecutor(5) as pool:
        sync = [pool.submit(cluster.once_sync, "slow", slow) for _ in range(4)]
        assert asyncio.run(many()) == ["done"] * 5
        assert [it.result() for it in sync] == ["done"] * 4
    assert calls == ["slow"]


@pytest.mark.usefixtures("joined")
def test_one_of_many_processes_calls_it() -> None:
    def function() -> int:
        time.sleep(0.2)
        return os.getpid()

    results = [in_process(lambda: cluster.once_sync("pid", function)) for _ in range(8)]
    assert len({result() for result in results}) == 1


@pytest.mark.usefixtures("joined")
def test_who_waits_gets_the_failure_and_the_next_one_tries_again() -> None:
    began = threading.Event()

    def fail() -> None:
        began.set()
        time.sleep(0.2)
        raise ValueError("no database")

    def unwanted() -> None:
        raise AssertionError("it was called")

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(cluster.once_sync, "migrate", fail)
        began.wait(10)
        with pytest.raises(cluster.OnceError, match="migrate: ValueError: no database"):
            cluster.once_sync("migrate", unwanted)
        with pytest.raises(ValueError, match="no database"):
            failing.result()
    assert cluster.once_sync("migrate", lambda: "mended") == "mended"


@pytest.mark.usefixtures("joined")
def test_where_its_process_dies_another_one_calls_it() -> None:
    reader, writer = os.pipe()

    def hang() -> None:
        os.write(writer, str(os.getpid()).encode())
        time.sleep(60)

    result = in_process(lambda: cluster.once_sync("it", hang))
    pid = int(os.read(reader, 20))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cluster.once_sync, "it", lambda: "by the next")
        time.sleep(0.1)
        assert not waiting.done()
        os.kill(pid, signal.SIGKILL)
        assert waiting.result(10) == "by the next"
    assert result() == ""
    os.close(reader)
    os.close(writer)


@pytest.mark.usefixtures("joined")
def test_a_task_that_is_cancelled_leaves_it_to_another() -> None:
    async def main() -> None:
        async def endless() -> None:
            await asyncio.sleep(3600)

        task = asyncio.create_task(cluster.once("it", endless))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await cluster.once("it", lambda: 7) == 7

    asyncio.run(main())


def test_each_deployment_calls_it_again(joined: OnceLog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.once_sync("it", lambda: 1) == 1
    monkeypatch.setattr(Attempt, "_deployment", 2)
    assert cluster.once_sync("it", lambda: 2) == 2
    monkeypatch.setattr(Attempt, "_deployment", 1)  # of a crashed worker's replacement, after a rollback
    assert cluster.once_sync("it", lambda: 3) == 1


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    ("value", "error"), [({1, 2}, TypeError), ("x" * MAX_VALUE, ValueError)], ids=["no JSON", "large"]
)
def test_a_result_that_cannot_be_passed_on_is_an_error(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        cluster.once_sync("it", lambda: value)
    assert cluster.once_sync("it", lambda: None) is None


# --- the log


def test_a_record_that_was_written_in_part_is_none(log: OnceLog) -> None:
    log.add((1, "a", 1, ""))
    end = os.fstat(log._file).st_size
    os.pwrite(log._file, b"\xff" * 30, end)
    assert [it.value for it in log.outcomes(1, "a")] == [1]
    log.add((1, "a", 2, ""))
    assert [it.value for it in log.outcomes(1, "a")] == [1, 2]


def test_old_records_are_dropped_when_there_are_many(log: OnceLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_log, "MAX_LOG", 2000)
    log.add((1, "kept", "result", ""))
    for number in range(500):
        log.add((number, "many", number, ""))
    assert os.fstat(log._file).st_size < 4000
    assert log.outcomes(499, "many")
    assert log.outcomes(1, "kept")[0].value == "result"
    assert not log.outcomes(3, "many")


def test_a_writer_that_is_stopped_is_not_waited_for_without_end(
    log: OnceLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once_log, "PATIENCE", 0.05)
    monkeypatch.setattr(log._locks, "take", lambda _: False)
    with pytest.raises(TimeoutError, match="could not be written"):
        log.add((1, "it", 1, ""))
