"""The report: whoever reads it gets what was published, whole, whatever becomes of the writer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import count

import pytest

from multicore_server.ipc.shared_report import SharedReport

READERS = 3
CHANGES = 4000


def text(number: int) -> bytes:
    """Of another length each time, and every byte of it tells."""
    return b"%d " % number * (1 + number * 37 % 500)


def number_in(read: bytes) -> int:
    """Raises AssertionError for what is no such text."""
    number = int(read.split(b" ", 1)[0])
    assert read == text(number), f"torn: {read[:40]!r}"
    return number


def forked(run: Callable[[], None]) -> int:
    """A child that runs this; its exit status says whether that has raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_before_the_first_and_after_each() -> None:
    shared_report = SharedReport(100)
    assert (shared_report.read(), shared_report.changes) == (b"", 0)
    for number, said in enumerate((b"one", b"a longer one", b"", b"x" * 100), 1):
        shared_report.publish(said)
        assert (shared_report.read(), shared_report.changes) == (said, number)


def test_what_has_no_room_is_refused_and_the_last_one_stays() -> None:
    shared_report = SharedReport(10)
    shared_report.publish(b"before")
    with pytest.raises(ValueError, match="11 bytes are more than the 10"):
        shared_report.publish(b"x" * 11)
    assert (shared_report.read(), shared_report.changes) == (b"before", 1)


def test_readers_in_other_processes_never_see_half_a_text() -> None:
    shared_report = SharedReport(10_000)
    shared_report.publish(text(0))
    begun, begin = os.pipe()

    def follow() -> None:
        os.write(begin, b".")
        last = 0
        while last < CHANGES:
            try:
                number = number_in(shared_report.read())
            except RuntimeError:  # on a busy machine the writer may be held up in the middle
                continue
            assert number >= last, "it went backwards"
            last = number

    readers = [forked(follow) for _ in range(READERS)]
    for _ in readers:
        os.read(begun, 1)
    for number in range(1, CHANGES + 1):
        shared_report.publish(text(number))
        if number % 100 == 0:
            time.sleep(0.002)  # on one CPU readers get their turn
    for pid in readers:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(begun)
    os.close(begin)


@pytest.mark.parametrize("run", range(10))
def test_a_writer_that_is_killed_leaves_the_old_text_or_an_error(run: int) -> None:
    """Whatever it was at. A writer that comes after it is read again."""
    shared_report = SharedReport(2**22)
    shared_report.publish(text(0))

    def write() -> None:
        for number in count(1):
            shared_report.publish(text(number) * 200)

    pid = forked(write)
    while shared_report.changes < 2:
        time.sleep(0.0001)
    time.sleep(run * 0.0007)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        read = shared_report.read()
    except RuntimeError:
        pass
    else:
        number = int(read.split(b" ", 1)[0])
        assert read == text(number) * 200
    shared_report.publish(text(7))
    assert number_in(shared_report.read()) == 7


def test_a_text_without_its_head_is_an_error() -> None:
    shared_report = SharedReport(100)
    shared_report.publish(b"what is true")
    shared_report._memory[25:28] = b"???"  # where a killed writer may have been
    with pytest.raises(RuntimeError, match="changes without a pause"):
        shared_report.read()
    assert shared_report.changes == 1


def test_a_head_that_is_half_written_is_an_error() -> None:
    shared_report = SharedReport(100)
    shared_report.publish(b"what is true")
    shared_report._memory[8:16] = (2**40).to_bytes(8, "little")  # its length
    with pytest.raises(RuntimeError):
        shared_report.read()
