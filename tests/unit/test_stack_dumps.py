"""The stacks that a process shows by a signal: what is read, and whom the signal does not reach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from multicore_server.ipc import stack_dumps
from multicore_server.ipc.stack_dumps import NoStackError, StackDumps, dump, parse

SAID = """\
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
  File "/srv/app.py", line ??? in work
  ...

Current thread 0x00007f02 [MainThread] (most recent call first):
  File "/srv/a b.py", line 3 in <module>
  Garbage-collecting
"""


@pytest.fixture
def dumps() -> Iterator[StackDumps]:
    made = StackDumps()
    yield made
    made.close()


def test_what_faulthandler_writes_is_turned_around() -> None:
    assert parse(SAID) == {
        "0x00007f01": [
            "...",
            "/srv/app.py:??? in work",
            "/usr/lib/python3.11/threading.py:324 in wait",
        ],
        "MainThread": ["/srv/a b.py:3 in <module>"],
    }


def test_what_a_process_with_something_else_in_mind_has_written() -> None:
    assert parse("nothing of this\n  File \x1b[31m\n...\nThread 0x1 (most recent call first):\n") == {
        "0x1": []
    }


def test_every_thread_of_this_process(dumps: StackDumps) -> None:
    done = threading.Event()

    def waits_here() -> None:
        done.wait(5)

    thread = threading.Thread(target=waits_here)
    thread.start()
    try:
        found = [dump(os.getpid(), 3) for _ in range(2)]
    finally:
        done.set()
        thread.join()
    for stacks in found:
        lines = [line for lines in stacks.values() for line in lines]
        assert sum(" in waits_here" in line for line in lines) == 1, "once: nothing of the first look is left"
        assert sum(" in test_every_thread_of_this_process" in line for line in lines) == 1


def test_a_child_that_does_not_handle_the_signal_lives(dumps: StackDumps) -> None:
    """An exec has given it default handlers, and something has let it keep the file."""
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[dumps.descriptor],
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(NoStackError, match="no longer handles"):
            dump(child.pid, 3)
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)


def test_processes_that_are_not_the_servers(dumps: StackDumps) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            with pytest.raises(NoStackError, match="has no file"):
                dump(child.pid, 3)
            assert child.poll() is None
        finally:
            child.kill()
    with pytest.raises(NoStackError, match="has exited"):
        dump(child.pid, 3)


BLOCKS = """
import signal, sys
from multicore_server.ipc import stack_dumps
dumps = stack_dumps.StackDumps()
signal.pthread_sigmask(signal.SIG_BLOCK, [stack_dumps.SIGNAL])
print(1, flush=True)
sys.stdin.read()
"""


def test_one_who_blocks_the_signal_is_waited_for_until_the_deadline() -> None:
    """A process of its own: in this one, another thread may take the signal."""
    with subprocess.Popen(
        [sys.executable, "-c", BLOCKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(NoStackError, match="shows no stack"):
            dump(child.pid, 0.1)
        assert child.poll() is None
        child.kill()


def test_a_second_one_who_asks_waits(dumps: StackDumps) -> None:
    with stack_dumps._locked(os.getpid(), 0), pytest.raises(NoStackError, match="another process is asking"):
        dump(os.getpid(), 0.1)


def test_a_system_without_such_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="this system has no"):
        StackDumps()
