"""Unplanned ends and what follows from them; hooks that fail; what the arbiter itself takes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.apps import TROUBLED
from tests.support.processes import workers_of
from tests.support.server import Server
from tests.support.waiting import wait_for

DIES_SOON = TROUBLED + "\nasync def startup(): die_soon()\n"


def provoke(server: Server, path: str) -> None:
    """A request that the worker does not survive."""
    with pytest.raises(httpx.RemoteProtocolError):
        server.get(path)


def test_a_crashed_worker_is_replaced_at_once(server: Server) -> None:
    server.start("-w", "1", ready=1)
    victim = server.worker_of(0)
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: set(server.workers()) - {victim}, "a new worker")
    assert time.monotonic() - killed < 0.5  # the benchmark says about 5 ms
    server.wait_logged("instance=0 gen=1 .* was killed by SIGKILL after .* s; restarting at once")


def test_a_crash_loop_is_slowed_down_and_ends_and_costs_the_others_nothing(server: Server) -> None:
    server.write("app.py", DIES_SOON)
    server.write("gunicorn.conf.py", 'max_restarts = 4\nexp_backoff_restart_delay = "200ms"')
    server.start("-w", "2")
    server.wait_logged("instance=0 gen=4 .* errored after 4 unstable exits .* until HUP, reset or restart")
    server.wait_logged("instance=0 gen=1 .* exited with code 9 .*; restarting at once")
    waits = [float(wait) for wait in re.findall(r"restarting in ([\d.]+) s", server.log)]
    assert len(waits) == 2
    assert 0.15 <= waits[0] <= 0.2 < waits[1] <= 0.3
    assert int(server.get().text) == server.worker_of(1)
    assert not server.logged("instance=1 .* exited")

    server.write("healthy", "")
    server.signal(signal.SIGHUP)
    server.wait_logged("instance=0 gen=5 .* ready after")
    server.wait_logged("reload done: 2 workers replaced")


def test_a_fixed_delay_before_every_restart(server: Server) -> None:
    server.start("-w", "1", env={"MULTICORE_RESTART_DELAY": "500ms"}, ready=1)
    os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_logged("restarting in 0.50 s")
    down = time.monotonic()
    server.wait_ready(2)
    assert time.monotonic() - down > 0.4


def test_stop_exit_codes_stop_a_worker_and_the_server_with_the_last_one(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "2", env={"MULTICORE_STOP_EXIT_CODES": "0,9"}, ready=2)
    provoke(server, "/exit?9")
    server.wait_logged("exited with code 9 .*; stopped .* until HUP or restart")
    (last,) = server.workers()
    os.kill(last, signal.SIGKILL)  # signal 9 is not exit code 9
    server.wait_logged(f"pid={last} was killed by SIGKILL .*; restarting at once")
    server.wait_ready(3)
    provoke(server, "/exit?0")
    assert server.wait_exit() == 0
    assert server.logged("Reason: every worker has stopped")


@pytest.mark.parametrize(("autorestart", "codes"), [("false", [1]), ("on-failure", [1, 0])])
def test_autorestart(server: Server, autorestart: str, codes: list[int]) -> None:
    server.start("-w", "1", env={"MULTICORE_AUTORESTART": autorestart})
    for starts, code in enumerate(codes, 1):
        server.wait_ready(starts)
        provoke(server, f"/exit?{code}")
    assert server.wait_exit() == 0
    assert len(server.logged("ready after")) == len(codes)


def test_nobody_left_to_serve_is_exit_status_3(server: Server) -> None:
    server.write("app.py", DIES_SOON)
    server.start("-w", "1", env={"MULTICORE_MAX_RESTARTS": "2"})
    assert server.wait_exit() == 3
    assert server.logged("Reason: every worker is errored")


def test_an_end_of_a_worker_by_any_exception_is_its_own_alone(server: Server) -> None:
    """The frames below a worker are the arbiter's: what gets out of it would end all the others."""
    server.write("app.py", TROUBLED)
    server.start("-w", "2", "-b", f"unix:{server.directory}/socket", ready=2)
    with contextlib.suppress(httpx.HTTPError):
        server.get("/interrupt")
    server.wait_logged("exited with code 1 after .* restarting at once")
    server.wait_ready(3)
    assert len(server.logged("exited with code")) == 1
    assert server.get().status_code == 200
    assert (server.directory / "socket").exists()


def test_hooks_that_fail_are_named_and_cost_nothing(server: Server) -> None:
    names = ["on_exit", "child_exit", "worker_exit", "nworkers_changed"]
    hooks = [
        f"def {name}({arguments}):\n    raise ValueError('from {name}')"
        for name, arguments in zip(names, ["a", "a, b", "a, b", "a, b, c"], strict=True)
    ]
    server.write("gunicorn.conf.py", "\n".join(hooks))
    server.start("-w", "2", ready=2)
    os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_ready(3)
    server.signal(signal.SIGTTIN)
    server.wait_ready(4)
    assert server.get().status_code == 200
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    for name in names:
        assert server.logged(f"the {name} hook failed; continuing without it"), name
        assert server.logged(f"ValueError: from {name}")


def test_nworkers_changed_is_called_for_changes_alone(server: Server) -> None:
    hook = "def nworkers_changed(arbiter, new, old):\n    print(f'CHANGED {old} to {new}', flush=True)\n"
    server.write("gunicorn.conf.py", hook + "workers = 2")
    server.start(ready=2)
    server.write("gunicorn.conf.py", hook + "workers = 3")
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done", 2)
    server.signal(signal.SIGTTOU)
    server.wait_logged("CHANGED 3 to 2")
    assert server.logged("CHANGED") == ["CHANGED None to 2", "CHANGED 2 to 3", "CHANGED 3 to 2"]


# --- the arbiter itself ---


def test_the_arbiter_has_one_thread_and_rests(server: Server) -> None:
    server.start("-w", "2", ready=2)
    assert re.search(r"^Threads:\t1$", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    before, start = sum(psutil.Process(server.pid).cpu_times()[:2]), time.monotonic()
    time.sleep(1.0)  # what is measured is what it does in this time
    used = sum(psutil.Process(server.pid).cpu_times()[:2]) - before
    assert used / (time.monotonic() - start) < 0.05


def test_fifty_crashes_leave_nothing_behind_in_the_arbiter(server: Server) -> None:
    restless = {"MAX_RESTARTS": "1000", "EXP_BACKOFF_RESTART_DELAY": "0"}
    server.start("-w", "5", env={f"MULTICORE_{name}": value for name, value in restless.items()}, ready=5)
    arbiter = psutil.Process(server.pid)
    assert server.monitor()  # which takes a descriptor of the arbiter's
    descriptors = arbiter.num_fds()
    for _ in range(10):
        gone = set(server.workers())
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda gone=gone: len(set(server.workers()) - gone) == 5, "five new workers")  # type: ignore[misc]
    assert len(server.logged("was killed by SIGKILL")) >= 50
    wait_for(lambda: arbiter.num_fds() <= descriptors, "descriptors given back")
    assert len(workers_of(arbiter.pid)) == 5  # no zombies


def test_a_worker_that_closes_every_descriptor_does_not_keep_the_arbiter_busy(server: Server) -> None:
    server.write("app.py", TROUBLED)
    server.start("-w", "1", ready=1)
    with pytest.raises(httpx.HTTPError):
        server.get("/close", timeout=0.5)
    arbiter = psutil.Process(server.pid)
    before, start = sum(arbiter.cpu_times()[:2]), time.monotonic()
    time.sleep(0.5)  # as above
    assert (sum(arbiter.cpu_times()[:2]) - before) / (time.monotonic() - start) < 0.2
    os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_ready(2)
