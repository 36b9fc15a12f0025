"""The pod of examples/kubernetes: its command, environment and probes, from the start to the end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.apps import TROUBLED
from tests.support.container import Container
from tests.support.dockerfile import DOCKERFILE, stages
from tests.support.kubernetes import CONTAINER, ENVIRONMENT, PORTS, PROBES, probe
from tests.support.namespaces import need_namespaces
from tests.support.server import Server
from tests.support.waiting import PATIENCE, wait_for

DELAY = 1.0  # seconds, in place of the example's
SLOWLY = """
from pathlib import Path
print("IMPORTING", flush=True)
while not Path("open").exists(): time.sleep(0.02)
"""


@pytest.fixture
def pod(server: Server) -> Iterator[Container]:
    need_namespaces()
    server.write("app.py", TROUBLED + SLOWLY)
    environment = {**ENVIRONMENT, "MULTICORE_SHUTDOWN_DELAY": f"{DELAY}s"}
    made = Container(stages(DOCKERFILE)["gunicorn"], server, environment=environment)
    made.limit(cpus=2, memory=512 * 2**20)
    yield made
    made.close()


def test_from_the_first_probe_to_the_end(pod: Container, server: Server) -> None:
    pod.start()
    server.wait_logged("IMPORTING")  # in the arbiter, as with --preload
    with pod.network(4) as network:

        def says(name: str) -> bool:
            return network.submit(probe, name).result()

        def get(path: str) -> httpx.Response:
            return httpx.get(f"http://127.0.0.1:{PORTS['http']}{path}", timeout=PATIENCE)

        assert not says("startupProbe")
        server.write("open", "")
        patience = CONTAINER["startupProbe"]["failureThreshold"] * CONTAINER["startupProbe"]["periodSeconds"]
        wait_for(lambda: says("startupProbe"), "a pod that has started", patience)
        assert all(says(name) for name in PROBES)
        server.wait_ready(int(ENVIRONMENT["MULTICORE_WORKERS"]))
        assert len(server.logged("IMPORTING")) == 1

        slow = network.submit(get, f"/slow?{DELAY + 1}")
        server.wait_logged("SLOW")
        began = time.monotonic()
        os.kill(pod.pid(), signal.SIGTERM)
        wait_for(lambda: not says("readinessProbe"), "a pod that is not ready", DELAY / 2)
        while time.monotonic() < began + DELAY / 2:  # whoever has not heard of it yet is answered
            assert network.submit(get, "/").result().status_code == 200
            assert says("livenessProbe")
        assert slow.result().status_code == 200
        assert server.wait_exit(3.0) == 0
    assert time.monotonic() - began >= DELAY
