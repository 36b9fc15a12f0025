"""A server on a system that lacks what macOS lacks: `tests/support/elsewhere` takes it away."""

from __future__ import annotations

import pytest

from tests.support.deploying import deploy, hup
from tests.support.elsewhere import ELSEWHERE
from tests.support.load import load
from tests.support.monitored_server import MonitoredServer, by
from tests.support.raw_client import Connect, request
from tests.support.waiting import wait_for

SAID = "this system has no memfd_create, SOCK_SEQPACKET, /proc: scheduling = shared, memory_metric = rss"


def large(monitored: MonitoredServer) -> list[str]:
    resident = by(monitored.metrics(), "multicore_worker_resident_memory_bytes")
    return [instance for instance, used in resident.items() if used > 10 * 2**20]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_it_serves_is_measured_and_reloads_without_losing_a_request(
    monitored: MonitoredServer, connect: Connect, loop: str
) -> None:
    server = monitored.server
    monitored.start("-w", "2", env={**ELSEWHERE, "UVICORN_LOOP": loop}, ready=2)
    kept = connect(server.port)
    with load(server, "version") as requests:
        assert kept.send(request("/?version")).answer().body == b"1"
        deploy(server, 2)
        hup(server, "reload done: 2 workers replaced")
        requests.wait_for(2)
    assert kept.ends()  # it cannot move
    server.wait_logged("exited with code 0 after draining", 2)
    (line,) = server.logged(r"\[WARNING\]")
    assert SAID in line
    assert server.logged(r"\[ERROR\]") == []
    wait_for(lambda: large(monitored) == ["0", "1"], "the memory of the new workers")
    assert monitored.metrics()["process_open_fds"] > 10
    assert sum(monitored.requests().values()) > sum(requests.answers.values())
