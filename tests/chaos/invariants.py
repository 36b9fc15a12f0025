"""What the README and the docs promise, checked on a server at rest after its faults."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

from tests.chaos.faults import PATIENCE
from tests.chaos.plan import GRACEFUL_TIMEOUT
from tests.chaos.record import Record, clock
from tests.chaos.running import Running
from tests.support.monitored_server import requests
from tests.support.processes import gone, processes_in
from tests.support.waiting import wait_for

OURS = "/multicore_server/"
NO_MEMORY = ("MemoryError", "can't start new thread", "error return without exception set")


def broken_promises(running: Running, record: Record, workers: int, descriptors: list[str]) -> Iterator[str]:
    """Of a server at rest that is to have so many workers, and whose arbiter had these descriptors."""
    yield from requests_lost(record)
    yield from wrong_number_of_workers(running, workers)
    yield from strangers(running)
    yield from leaks(running, descriptors)
    if not running.counts_from_zero:
        yield from miscounts(running, record)
    yield from end(running)
    yield from tracebacks(running.server.log)


def requests_lost(record: Record) -> Iterator[str]:
    """Planned restarts lose no request; the server is never down; every byte is the right one."""
    yield from record.wrong
    for failure in record.unexcused():
        seconds = failure.ended - failure.began
        yield f"{failure.client}: {failure.what} after {seconds:.2f} s, at {clock(failure.ended)}"


def wrong_number_of_workers(running: Running, workers: int) -> Iterator[str]:
    # What the last requests have set off, the end of a worker's max_requests say, comes to its end.
    try:
        status = running.wait_settled(PATIENCE)
    except AssertionError as exc:
        yield str(exc)
        return
    numbers = [status.get("configured"), status.get("ready"), len(running.workers())]
    if numbers != [workers] * 3:
        yield f"{workers} workers are to be there: configured, ready and living are {numbers}"


def strangers(running: Running) -> Iterator[str]:
    known = {running.arbiter, *running.family()}
    for process in processes_in(running.directory):
        if process.pid not in known and not gone(process.pid):
            yield f"pid {process.pid} is left behind, with parent {process.ppid()}"


def leaks(running: Running, before: list[str]) -> Iterator[str]:
    """Back at as many workers as at the start, the arbiter has as many descriptors."""
    after = running.descriptors()
    if len(after) > len(before):
        yield f"the arbiter has {len(after)} descriptors, not {len(before)}: {_more(after, before)}"


def _more(after: list[str], before: list[str]) -> list[str]:
    left = list(after)
    for name in before:
        if name in left:
            left.remove(name)
    return left


def miscounts(running: Running, record: Record) -> Iterator[str]:
    """Every answer was counted, and nothing that nobody had asked for."""
    metrics = running.monitored.wait_idle()
    counted = sum(requests(metrics).values())
    answered = sum(record.answered.values())
    if not answered <= counted <= answered + record.unsure:
        yield f"{counted} requests were counted; {answered} were answered, {record.unsure} more sent"


def end(running: Running) -> Iterator[str]:
    """TERM at rest: everything ends soon, and leaves nothing."""
    family, began = [running.arbiter, *running.family()], time.monotonic()
    os.kill(running.arbiter, signal.SIGTERM)
    try:
        wait_for(lambda: all(map(gone, family)), "the end of the server", GRACEFUL_TIMEOUT + 5)
    except AssertionError as exc:
        yield f"{exc}, {[pid for pid in family if not gone(pid)]}"
        return
    if time.monotonic() - began > 5:
        yield f"the end of a server at rest took {time.monotonic() - began:.1f} s"
    process = running.server.process
    if process is not None and process.pid == running.arbiter and process.wait(5) != 0:
        yield f"the exit status is {process.returncode}"
    for name in ("app.sock", "server.pid"):
        if (running.directory / name).exists():
            yield f"{name} is left behind"


def tracebacks(log: str) -> Iterator[str]:
    """That show a line of ours: users' mistakes and the app's have none, but a request that was cancelled."""
    for block in re.findall(
        r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*.*$", log, re.MULTILINE
    ):
        # A request was cancelled, or the driver has taken the memory away.
        if OURS in block and not block.endswith(("CancelledError", *NO_MEMORY)):
            yield block
