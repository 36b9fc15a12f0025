"""What a pod of examples/kubernetes does at a rollout, second by second: one start and one end.

    python -m tests.benchmarks.rollout [--import 3]

Needs root, for namespaces and control groups. The command is the image's, in a read-only root as nobody, with
the environment, the limits and the probes of the manifest. ``--import`` is how long the app's import takes.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.apps import TROUBLED
from tests.support.container import Container
from tests.support.dockerfile import DOCKERFILE, stages
from tests.support.kubernetes import ENVIRONMENT, PORTS, probe
from tests.support.server import Server

INTERVAL = 0.05  # seconds between two looks
LONG = 5  # seconds: a request that begins one second before the delay is over
PATIENCE = 60.0


class Timeline:
    """When what happened, in seconds from a moment."""

    def __init__(self) -> None:
        self.zero = time.monotonic()
        self.lines: list[tuple[float, str]] = []

    def note(self, text: str, at: float | None = None) -> None:
        self.lines.append(((at or time.monotonic()) - self.zero, text))

    def watch(self, condition: Callable[[], object], text: str) -> threading.Thread:
        """Note when a condition becomes true; where it is text itself, with that."""

        def look() -> None:
            while not (found := condition()):
                time.sleep(INTERVAL)
            self.note(text.format(found))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        return thread

    def show(self, title: str) -> None:
        print(f"\n| {title} | what |\n| --- | --- |")
        for at, text in sorted(self.lines):
            print(f"| {at:.1f} s | {text} |")


class Pod:
    def __init__(self, directory: Path, importing: float) -> None:
        self.server = Server(directory, f"{TROUBLED}\ntime.sleep({importing})\n")
        self.container = Container(stages(DOCKERFILE)["gunicorn"], self.server, environment=ENVIRONMENT)
        self.container.limit(cpus=2, memory=512 * 2**20)
        self.started = Timeline()
        self.container.start()
        self.network = self.container.network(8)

    def probe(self, name: str) -> bool:
        return self.network.submit(probe, name).result()

    def get(self, path: str = "/") -> bool:
        """Whether a request on a connection of its own is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", PORTS["http"], timeout=PATIENCE)
        try:
            return bool(self.ask(connection, path) != "FAILED")
        finally:
            connection.close()

    def ask(self, connection: http.client.HTTPConnection, path: str = "/") -> str:
        """What becomes of a request and its connection; nothing if it is answered and kept alive."""

        def ask() -> str:
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return "FAILED"
            if answer.status != 200:
                return "FAILED"
            return "is answered, with `Connection: close`" if answer.will_close else ""

        return self.network.submit(ask).result()


def start(pod: Pod) -> None:
    line = pod.started
    line.note("the container starts", line.zero)
    threads = [
        line.watch(lambda: pod.probe("livenessProbe"), "the monitor listens: `/healthz` says 200"),
        line.watch(lambda: pod.probe("startupProbe"), "`/readyz` says 200: the pod gets connections"),
        line.watch(pod.get, "the first request has its answer"),
    ]
    workers = int(ENVIRONMENT["MULTICORE_WORKERS"])
    pod.server.wait_ready(workers, PATIENCE)  # or it says why the server has ended
    line.note("every worker is ready")
    for thread in threads:
        thread.join()
    line.show("after the start")


def end(pod: Pod, delay: float) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", PORTS["http"], timeout=PATIENCE)
    assert pod.ask(kept) == ""
    line = Timeline()
    os.kill(pod.container.pid(), signal.SIGTERM)
    line.note("the pod is deleted: TERM", line.zero)
    long: list[bool] = []
    threads = [
        line.watch(lambda: not pod.probe("readinessProbe"), "`/readyz` says 503"),
        line.watch(lambda: pod.ask(kept), "the next request on a kept-alive connection {}"),
        line.watch(lambda: not pod.get(), "new connections are refused"),
    ]
    time.sleep(delay - 1)
    line.note(f"a request that takes {LONG} s begins")
    long.append(pod.get(f"/slow?{LONG}"))
    line.note(f"the request of {LONG} s {'has its answer' if long == [True] else 'HAS FAILED'}")
    for thread in threads:
        thread.join()
    status = pod.server.wait_exit(PATIENCE)
    line.note(f"the container exits with status {status}")
    line.show("after the end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--import", dest="importing", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        directory = Path(scratch, "app")
        directory.mkdir()
        pod = Pod(directory, options.importing)
        try:
            start(pod)
            end(pod, float(ENVIRONMENT["MULTICORE_SHUTDOWN_DELAY"].removesuffix("s")))
        finally:
            pod.network.shutdown(wait=False)
            pod.container.close()


if __name__ == "__main__":
    main()
