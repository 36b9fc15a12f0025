"""Memory limits, soft and hard: resident or unique memory, bytes or a percentage."""

from __future__ import annotations

import signal

import httpx
import pytest

from multicore_server.machine.memory import available
from tests.support.apps import TROUBLED
from tests.support.server import Server

MB = 2**20
# A worker has about 45 MiB of its own; /grow?200 keeps 200 MiB more.
QUICK = {"MULTICORE_MEMORY_CHECK_INTERVAL": "100ms"}


def percent(amount: int) -> str:
    return f"{100 * amount / available():.6f}%"


@pytest.mark.parametrize("metric", ["rss", "uss"])
@pytest.mark.parametrize("limit", ["150M", percent(150 * MB)], ids=["bytes", "percentage"])
def test_a_worker_above_the_soft_limit_is_replaced(server: Server, metric: str, limit: str) -> None:
    server.write("app.py", TROUBLED)
    env = {"MULTICORE_MAX_MEMORY_RESTART": limit, "MULTICORE_MEMORY_METRIC": metric}
    server.start("-w", "1", env=QUICK | env, ready=1)
    old = int(server.get("/grow?200").text)
    (line,) = server.wait_logged(rf"pid={old} uses \d+ MiB, more than 1[45]\d MiB \(max_memory_restart\)")
    assert "replacing it" in line
    server.wait_logged("instance=0 gen=2 .* ready")
    server.wait_logged(rf"pid={old} exited with code 0 after draining")
    assert server.logged(r"draining \(memory\)")
    assert not server.logged(r"\[(ERROR|CRITICAL)\]")


def test_a_percentage_is_shared_by_the_workers_of_the_moment(server: Server) -> None:
    server.write("app.py", TROUBLED)
    env = {"MULTICORE_MAX_MEMORY_RESTART": percent(400 * MB), "MULTICORE_MEMORY_METRIC": "rss"}
    server.start("-w", "1", env=QUICK | env, ready=1)
    old = int(server.get("/grow?200").text)  # of 400
    server.signal(signal.SIGTTIN)
    server.wait_logged(rf"pid={old} uses \d+ MiB, more than (199|200) MiB")  # of 200 each
    server.wait_logged("instance=0 gen=2 .* ready")


def test_shared_memory_does_not_count_as_unique(server: Server) -> None:
    """200 MiB of the arbiter's, shared by all: above the limit as RSS, not as USS."""
    server.write("app.py", TROUBLED + "\nheap = bytearray(os.urandom(1 << 20) * 200)")
    env = {"MULTICORE_MAX_MEMORY_RESTART": "150M"}
    server.start("-w", "2", "--preload", env=QUICK | env, ready=2)
    grown = int(server.get("/grow?200").text)
    server.wait_logged(f"pid={grown} uses .* replacing it")
    server.wait_ready(3)
    assert len(server.logged("replacing it")) == 1


def test_a_worker_above_the_hard_limit_is_killed(server: Server) -> None:
    server.write("app.py", TROUBLED)
    env = {"MULTICORE_MAX_MEMORY_KILL": "150M", "MULTICORE_MAX_MEMORY_RESTART": "140M"}
    server.start("-w", "1", env=QUICK | env, ready=1)
    old = server.worker_of(0)
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/grow-and-wait?200")
    server.wait_logged(rf"pid={old} uses \d+ MiB, more than 150 MiB \(max_memory_kill\); killing it")
    server.wait_logged(rf"pid={old} was killed by SIGKILL after .* s.*; restarting at once")
    server.wait_ready(2)
    assert not server.logged("out of memory")


def test_a_hung_worker_is_judged_by_its_resident_memory(server: Server) -> None:
    """It cannot measure its own unique memory, and the hard limit must hold all the same."""
    server.write("app.py", TROUBLED)
    server.start("-w", "1", env=QUICK | {"MULTICORE_MAX_MEMORY_KILL": "150M"}, ready=1)
    with pytest.raises(httpx.RemoteProtocolError):
        server.get("/grow-and-hang?200")
    server.wait_logged(r"\(max_memory_kill\); killing it")
    server.wait_ready(2)
