"""How many workers there are, and why: with a real memory limit where this machine lets one be made."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multicore_server.machine.cpu import usable_cpus
from tests.support.apps import HELLO, TROUBLED
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

LIMIT = 120 * 2**20  # bytes for each worker that is wanted: less than the arbiter wants to see


def test_the_log_says_why(server: Server) -> None:
    server.start(ready=usable_cpus())
    (line,) = server.logged("workers: ")
    assert f"workers: {usable_cpus()} (the default, 'max'); " in line


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory group of its own below that of this process (cgroup v1, by which no process has to move)."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = [line.split(":", 2)[2] for line in lines if "memory" in line.split(":")[1].split(",")]
    if not own:
        pytest.skip("this machine has no cgroup of version 1 for memory")
    group = Path("/sys/fs/cgroup/memory") / own[0].lstrip("/") / f"tests-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as exc:
        pytest.skip(f"no group can be made: {exc}")
    yield group

    def removed() -> bool:
        with contextlib.suppress(OSError):  # its last process has not quite ended
            group.rmdir()
        return not group.exists()

    wait_for(removed, "an empty group")


JOIN = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"


@pytest.mark.skipif(usable_cpus() < 2, reason="one worker has room")
@pytest.mark.parametrize(
    ("app", "options", "fewer"),
    [
        (TROUBLED + "\nheap = bytearray(os.urandom(1 << 20) * 90)", [], True),
        (HELLO, ["-w", "2"], False),
    ],
    ids=["max", "a number"],
)
def test_max_is_what_memory_has_room_for(
    limited: Path, make_server: MakeServer, app: str, options: list[str], fewer: bool
) -> None:
    (limited / "memory.limit_in_bytes").write_text(str(LIMIT * usable_cpus()))
    server = make_server(app)
    gunicorn = [sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    command = [sys.executable, "-c", JOIN, str(limited / "cgroup.procs"), *gunicorn]
    server.start(*options, command=command, ready=1 if fewer else 2)
    if fewer:
        server.wait_logged(rf"workers: \d+ instead of {usable_cpus()}: one uses \d+ MiB after its boot")
        assert server.logged("the first worker shows how many fit")
    else:
        assert not server.logged("instead of")
    assert server.get().status_code == 200
    server.ends_within(20)
