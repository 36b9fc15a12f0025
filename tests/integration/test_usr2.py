"""USR2: a new arbiter beside the old one, forward and back, without a failed request."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.asking import ask, ask_over
from tests.support.deploying import change_over, configure, deploy, usr2s_arbiter
from tests.support.load import Load, load
from tests.support.processes import gone, wait_gone
from tests.support.server import Server
from tests.support.waiting import wait_for

# A shell starts a process in the background, and ends.
BACKGROUND = """
import os, subprocess

def start(part):
    command = f"sleep 20 >/dev/null 2>&1 & echo $! > {part}-{os.getpid()}"
    subprocess.run(command, shell=True, check=True)

def on_starting(server):
    start("hook")

start("config")
"""


def pid_in(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize("options", [(), ("--reuse-port",)], ids=["", "reuse_port"])
def test_usr2_serves_beside_the_old_one_and_follows_it(
    asked: Server, options: tuple[str, ...], ending: list[int]
) -> None:
    pidfile, pidfile_2 = asked.directory / "server.pid", asked.directory / "server.pid.2"
    asked.start("-w", "2", "-p", "server.pid", *options, ready=2)
    with load(asked, "version") as requests:
        deploy(asked, 2)
        asked.signal(signal.SIGUSR2)
        new = usr2s_arbiter(asked)
        ending.append(new)
        asked.wait_ready(4)
        assert (pid_in(pidfile), pid_in(pidfile_2)) == (asked.pid, new)
        requests.wait_for(2)

        asked.signal(signal.SIGTERM)
        assert asked.wait_exit() == 0
        wait_for(lambda: pid_in(pidfile) == new, "the pidfile renamed")
        assert not pidfile_2.exists()
    assert {ask(asked, "[version, os.getppid()]")[1] for _ in range(4)} == {new}

    os.kill(new, signal.SIGHUP)  # it is an arbiter like any other
    asked.wait_logged("reload done")
    os.kill(new, signal.SIGTERM)
    wait_gone(new)
    assert not pidfile.exists()
    assert refuses(asked.port)


def test_usr2_over_a_unix_socket_and_back(asked: Server, ending: list[int]) -> None:
    """TERM to the new arbiter is the way back: the old one serves on, and its socket stays."""
    (asked.directory / "below").mkdir()
    (asked.directory / "app.py").rename(asked.directory / "below" / "app.py")
    path = asked.directory / "s.sock"
    asked.start("-w", "1", "--chdir", "below", bind=f"unix:{path}", ready=1)
    with Load(path):
        asked.signal(signal.SIGUSR2)
        new = usr2s_arbiter(asked)
        ending.append(new)
        asked.wait_ready(2)
        os.kill(new, signal.SIGTERM)
        asked.wait_logged(f"the arbiter that USR2 started has exited \\(pid={new}\\); this one keeps running")
    assert ask_over(path, "os.getppid()") == asked.pid
    asked.signal(signal.SIGTERM)
    assert asked.wait_exit() == 0
    assert not path.exists()


def test_what_the_new_arbiter_starts_in_the_background_is_not_the_old_ones(
    asked: Server, ending: list[int]
) -> None:
    conf = asked.write("conf.py", BACKGROUND)
    asked.start("-w", "1", "-c", str(conf), "--graceful-timeout", "1", ready=1)
    asked.signal(signal.SIGUSR2)
    new = usr2s_arbiter(asked)
    ending.append(new)
    asked.wait_ready(2)
    helpers = [pid_in(asked.directory / f"{part}-{new}") for part in ("config", "hook")]
    assert [psutil.Process(pid).ppid() for pid in helpers] == [new, new]
    asked.signal(signal.SIGTERM)
    assert asked.wait_exit() == 0
    assert [gone(pid) for pid in helpers] == [False, False]
    assert not asked.logged("left running")


def test_addresses_that_change_with_usr2_and_after_it(asked: Server, ending: list[int]) -> None:
    """The new arbiter has the old one's sockets, whatever its configuration says."""
    dropped, other = asked.port, free_port()
    asked.port = kept = free_port()

    def bind(*ports: int) -> None:
        configure(asked, workers=1, bind=[f"{LOCAL}:{port}" for port in ports])

    bind(dropped, kept)
    asked.start("-c", "conf.py", bind="", ready=1)
    bind(kept)
    new = change_over(asked, ending, ready=2)

    def reload(*ports: int) -> None:
        bind(*ports)
        os.kill(new, signal.SIGHUP)

    def serves(*ports: int) -> bool:
        return [port for port in (dropped, kept, other) if not refuses(port)] == [*ports]

    reload(kept, other)
    wait_for(lambda: serves(kept, other), "the second address instead of the dropped one")
    asked.wait_logged("reload done")
    reload(dropped, other)
    wait_for(lambda: serves(dropped, other), "the dropped address instead of the kept one")
    assert not asked.logged("reload failed")


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_usr2_with_broken_code(asked: Server, options: tuple[str, ...]) -> None:
    asked.start("-w", "1", "-p", "server.pid", *options, ready=1)
    with load(asked):
        deploy(asked, 2, "import nowhere")
        asked.signal(signal.SIGUSR2)
        asked.wait_logged(r"the arbiter that USR2 started has exited \(pid=\d+\); this one keeps running")
    assert asked.logged("app:app could not be loaded: ModuleNotFoundError: No module named 'nowhere'")
    assert not (asked.directory / "server.pid.2").exists()
    assert pid_in(asked.directory / "server.pid") == asked.pid

    deploy(asked, 3)
    asked.signal(signal.SIGUSR2)
    asked.wait_ready(2)
