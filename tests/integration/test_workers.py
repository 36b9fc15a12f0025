"""How many workers there are, and the numbers that they get."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from multicore_server.machine.cpu import usable_cpus
from tests.support.apps import TROUBLED
from tests.support.server import Server
from tests.support.waiting import wait_for

CPUS = usable_cpus()
STARTED = r"instance=\d+ gen=1 pid=\d+ started"
GUNICORN = [sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]


@pytest.mark.parametrize(
    ("options", "env", "config", "count"),
    [
        pytest.param([], {}, "", CPUS, id="default"),
        pytest.param(["-w", "1"], {"WEB_CONCURRENCY": "3"}, "workers = 2", 1, id="-w 1"),
        pytest.param(["-w", "3"], {}, "", 3, id="-w 3"),
        pytest.param([], {"WEB_CONCURRENCY": "3"}, "", 3, id="WEB_CONCURRENCY"),
        pytest.param([], {"MULTICORE_WORKERS": "max"}, "workers = 7", CPUS, id="max"),
        pytest.param([], {"MULTICORE_WORKERS": "-1"}, "", max(1, CPUS - 1), id="-1"),
        pytest.param([], {"WEB_CONCURRENCY": "1"}, "workers = 3", 3, id="config file"),
    ],
)
def test_as_many_workers_as_asked_for(
    server: Server, options: list[str], env: dict[str, str], config: str, count: int
) -> None:
    server.write("gunicorn.conf.py", config)
    server.start(*options, env=env, ready=1)
    assert len(server.logged(STARTED)) == count  # all are forked before the first is ready
    assert len(server.workers()) == count


def test_only_cpus_that_may_be_used_count(server: Server) -> None:
    cpu = min(os.sched_getaffinity(0))
    server.start(command=["taskset", "-c", str(cpu), *GUNICORN], ready=1)
    assert len(server.logged(STARTED)) == 1


def test_a_replacement_keeps_the_instance_number(server: Server) -> None:
    top = "os.write(1, f\"ENV={os.environ['MY_NUMBER']} CLUSTER={cluster.instance}\\n\".encode())"
    server.write("app.py", f"{TROUBLED}\n{top}")
    server.write("gunicorn.conf.py", 'workers = 2\ninstance_var = "MY_NUMBER"')
    server.start(ready=2)
    assert sorted(server.logged("ENV=")) == ["ENV=0 CLUSTER=0", "ENV=1 CLUSTER=1"]

    os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_ready(3)
    assert len(server.logged("ENV=0 CLUSTER=0")) == 2
    assert server.logged(r"instance=0 gen=2 pid=\d+ ready")


def test_ttin_and_ttou_scale_by_one_and_the_lowest_free_number_comes_first(server: Server) -> None:
    server.start("-w", "1", ready=1)
    server.signal(signal.SIGTTIN)
    server.wait_logged("instance=1 gen=1 .* ready")
    server.signal(signal.SIGTTOU)
    server.wait_logged(r"instance=1 .* draining \(scaled down\)")
    wait_for(lambda: len(server.workers()) == 1, "one worker")

    server.signal(signal.SIGTTOU)  # the last one stays
    server.wait_logged("Handling signal: ttou", 2)
    server.signal(signal.SIGTTIN)
    server.wait_logged("instance=1 gen=2 .* ready")
    assert server.worker_of(0) in server.workers()
    assert not server.logged("instance=0 .* draining")


def test_more_workers_than_there_is_room_for_are_refused(server: Server) -> None:
    """Shared memory is made once, for max(2 * workers, 64) slots."""
    hook = "def pre_fork(arbiter, worker):\n    arbiter.fleet._state.capacity = 1"
    server.write("gunicorn.conf.py", hook)
    server.start("-w", "1", ready=1)
    server.signal(signal.SIGTTIN)
    server.wait_logged("there is no room for 2 workers, only for 1; not scaled")
    assert len(server.workers()) == 1
