"""Real processes for the tests of the app's metrics: one that plays the arbiter, and those that it forks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from multicore_server.ipc.scoreboard import ROWS_PER_SLOT
from multicore_server.metrics.app import values as app_values
from multicore_server.metrics.app.directory import VARIABLE, Directory
from multicore_server.metrics.app.merge import AppMetrics, Owner
from multicore_server.metrics.exposition import text

ROOT = Path(__file__).parents[2]
# Behind all else on the path: the package that is tested is the one that is installed.
START = (
    "import importlib, sys; sys.path.append(sys.argv[1]); "
    "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(*sys.argv[4:])"
)
VARIABLES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir", "_MULTICORE_PROMETHEUS_DIR")


class Ended(NamedTuple):
    out: str
    log: str


def play(scenario: Callable[..., None], *args: object, **environ: str) -> Ended:
    """Call a function of a test module in a process of its own, with texts for arguments."""
    command = [sys.executable, "-c", START, ROOT, scenario.__module__, scenario.__name__, *args]
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [str(part) for part in command],
        env=inherited | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return Ended(done.stdout, done.stderr)


def forked(action: Callable[[], object]) -> int:
    """A child that does it and ends at once, as if by SIGKILL; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_and_kill(action: Callable[[], object]) -> None:
    """A child that does it and is killed then."""

    def act_and_die() -> None:
        action()
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(act_and_die) == -signal.SIGKILL


def living(*rows: int, shown: bool = True) -> dict[str, Owner]:
    directory = Directory(Path(), ours=True)
    return {directory.identifier(row): Owner(str(row // ROWS_PER_SLOT), True, shown) for row in rows}


def shown(metrics: AppMetrics, owners: dict[str, Owner] | None = None) -> dict[str, float]:
    """What a scrape shows, by name and labels."""
    lines = text(metrics.collect(owners or {})).decode().split("\n")[:-1]
    pairs = [re.fullmatch(r"(.*) (\S+)", line) for line in lines if not line.startswith("#")]
    found = {pair[1]: float(pair[2]) for pair in pairs if pair}
    assert len(found) == len(pairs), f"a series is there twice: {lines}"
    return found


# --- what an arbiter and its workers do

PLAIN = {"hits_total": 1.0}


def started(path: str) -> AppMetrics:
    """As in an arbiter."""
    os.environ[VARIABLE] = path
    app_values.install(Directory(Path(path), ours=True))
    return AppMetrics(Path(path))


def as_worker(row: int) -> Any:
    """As in a worker, which imports prometheus_client with its app; the module."""
    app_values.take_row(row)
    import prometheus_client

    return prometheus_client


def hit(row: int, times: int = 1) -> None:
    counter = as_worker(row).Counter("hits", "Hits.")
    for _ in range(times):
        counter.inc()


def in_one_process(scenario: Any, path: Path) -> None:
    """Without a complaint."""
    assert play(scenario, path).log == ""
