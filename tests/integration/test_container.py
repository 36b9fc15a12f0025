"""The image's commands as PID 1 of a container: read-only, as a user without a name, within limits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from multicore_server.machine.cpu import usable_cpus
from tests.support.apps import TROUBLED
from tests.support.container import Container
from tests.support.dockerfile import DOCKERFILE, stages
from tests.support.namespaces import need_namespaces
from tests.support.processes import workers_of
from tests.support.server import Server
from tests.support.waiting import wait_for

STAGES = stages(DOCKERFILE)
TARGETS = {"gunicorn": True, "uvicorn": False}  # and whether there is a /tmp to write to
MB = 2**20
GATED = f"{TROUBLED}\nfrom pathlib import Path\nstartup = gate\n"

MakeContainer: TypeAlias = Callable[..., Container]


@pytest.fixture
def make(server: Server) -> Iterator[MakeContainer]:
    """Make one from a target of the Dockerfile."""
    need_namespaces()
    server.write("app.py", GATED)
    made: list[Container] = []

    def container(target: str, **options: Any) -> Container:
        made.append(Container(STAGES[target], server, **options))
        return made[-1]

    yield container
    for each in made:
        each.close()


def open_gate(server: Server) -> None:
    """The workers become ready."""
    server.write("open", "")


@pytest.mark.parametrize(("target", "tmp"), TARGETS.items())
def test_the_command_of_the_image(make: MakeContainer, server: Server, target: str, tmp: bool) -> None:
    container = make(target, tmp=tmp)
    container.limit(cpus=1.5, memory=300 * MB)
    container.start()
    workers = min(2, usable_cpus())
    server.wait_logged("instance=0 .* started")
    assert server.logged(r"\[1\] .* Listening at: http://0.0.0.0:8000 \(1\)")
    assert server.logged(rf"workers: {workers} \(the default, 'max'\); .*, a CPU quota of 1.5")
    assert not container.healthy()
    open_gate(server)
    wait_for(container.healthy, "a healthy container")
    server.wait_ready(workers)
    assert container.execute("id", "-u").stdout == "10001\n"
    assert "Read-only file system" in container.execute("touch", "/app/file").stderr
    assert f"{workers} of {workers} ready" in container.execute("multicore-server", "ps").stdout

    assert int(container.get("/stranger")) > 1
    server.wait_logged("STRANGER")
    wait_for(lambda: len(workers_of(container.pid())) == workers, "no zombies")

    container.get("/grow?400")
    server.wait_logged("was killed by SIGKILL")
    server.wait_ready(workers + 1)
    restarts = 'multicore_worker_restarts_total{reason="oom"} 1.0'
    assert restarts in container.execute("multicore-server", "metrics").stdout
    assert int(container.get()) > 1

    os.kill(container.pid(), signal.SIGTERM)
    assert server.wait_exit(3.0) == 0
    assert server.logged("Shutting down: Master")
    assert len(server.logged(r"\[(ERROR|CRITICAL)\]")) == 1, server.log  # the worker that was killed


def test_where_the_kernel_kills_the_whole_group(make: MakeContainer, server: Server) -> None:
    container = make("gunicorn")
    container.limit(cpus=1, memory=300 * MB)
    if container.unified is None:
        pytest.skip("memory.oom.group is of control groups of version 2: this machine has version 1")
    (container.unified / "memory.oom.group").write_text("1")
    container.start()
    open_gate(server)
    server.wait_ready(1)
    assert server.logged(r"\[WARNING\] memory.oom.group is 1")
    container.get("/grow?400")
    assert server.wait_exit() == -signal.SIGKILL
