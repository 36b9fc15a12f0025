"""The arbiter's end, as processes hear of it that boot, serve or hang. Each test forks what it watches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from multicore_server.machine.descriptors import lead_nowhere
from multicore_server.worker import lifeline as module
from multicore_server.worker.lifeline import Lifeline

PATIENCE = 10.0  # seconds

BOOTS = """
import os, sys, time
from multicore_server.worker.lifeline import Lifeline

Lifeline(int(sys.argv[1]), "instance=0", 30, os._exit).watch()
print("watched", flush=True)
while True:
    time.sleep(60)  # an app that takes long to load
"""


def test_a_boot_ends_at_once() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", BOOTS, str(reader)]
    with subprocess.Popen(command, pass_fds=[reader], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        os.close(writer)
        assert child.wait(PATIENCE) == 1
    os.close(reader)


class Life:
    """A lifeline whose arbiter is gone, and what it did."""

    def __init__(self, grace: float = 0.0) -> None:
        self.reader, self.writer = os.pipe()
        self.ended = threading.Event()
        self.drained = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lifeline = Lifeline(self.reader, "instance=0", grace, lambda _: self.ended.set())

    def end(self) -> None:
        self.lifeline.serve(self.drained.set, [self.listener])
        self.lifeline.watch()
        os.close(self.writer)
        assert self.ended.wait(PATIENCE)
        os.close(self.reader)

    def address_is_free(self) -> bool:
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError:
            return False
        return True


def test_a_loop_that_runs_drains_and_keeps_its_listeners() -> None:
    life = Life()
    life.lifeline.heard()
    life.end()
    assert life.drained.is_set()
    assert not life.address_is_free(), "the drain closes them"
    life.listener.close()


def test_a_loop_that_hangs_loses_its_listeners_and_then_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARD", 0.05)
    life = Life(grace=0.2)
    began = time.monotonic()
    life.end()
    assert time.monotonic() - began >= 0.25
    assert life.address_is_free()
    assert life.listener.fileno() >= 0, "the loop may still use its number"
    life.listener.close()


def test_a_listener_that_is_closed_already_is_no_mistake() -> None:
    listener, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    address = other.getsockname()
    listener.close()
    lead_nowhere([listener.fileno(), other.fileno()])
    socket.create_server(address).close()
    other.close()


def test_a_lifeline_that_is_closed_tells_nothing() -> None:
    ended: list[int] = []
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    Lifeline(reader, "instance=0", 0, ended.append)._wait()
    assert ended == []


def test_without_a_thread_the_worker_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    Lifeline(0, "instance=0", 0, lambda _: None).watch()
    assert "does not watch its arbiter" in caplog.text


FORKS = """
import os, sys, warnings
from multicore_server.worker.lifeline import Lifeline

warnings.simplefilter("ignore")  # of threads in a process that forks, from Python 3.12 on
Lifeline(int(sys.argv[1]), "instance=0", 30, os._exit).watch()
pid = os.fork()
if pid == 0:
    os._exit(len(os.listdir("/proc/self/task")))
print(len(os.listdir("/proc/self/task")), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_what_the_app_forks_is_without_the_thread() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", FORKS, str(reader)]
    done = subprocess.run(command, pass_fds=[reader], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2 1\n", "")
    os.close(reader)
    os.close(writer)


MASKED = """
import os, signal, sys, time
from multicore_server.worker.lifeline import Lifeline

Lifeline(int(sys.argv[1]), "instance=0", 30, os._exit).watch()
time.sleep(0.2)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
print(signal.sigpending() == {signal.SIGTERM})
"""


def test_what_the_main_thread_blocks_is_not_heard_by_this_one() -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-c", MASKED, str(reader)]
    done = subprocess.run(command, pass_fds=[reader], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n")
    os.close(reader)
    os.close(writer)
