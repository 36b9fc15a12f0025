"""A server whose monitor is asked as well: what it says over TCP, and commands over its own socket."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from tests.support.addresses import LOCAL, free_port
from tests.support.deploying import configure
from tests.support.raw_client import Connection, request
from tests.support.server import Server
from tests.support.waiting import PATIENCE, wait_for

Metrics = dict[str, float]
# For the config file, which the arbiter loads.
DIES = "import multicore_server.monitor.process as it, os\nit.run = lambda post: os._exit(7)"


def parsed(text: str) -> Metrics:
    """The samples of an answer, by name and labels as they are written."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def requests(metrics: Metrics) -> dict[str, int]:
    """How many requests were counted, by method and code: ``{"GET 2xx": 1}``, without those that are 0."""
    found = {}
    for key, value in metrics.items():
        if key.startswith("multicore_http_requests_total{") and value:
            _, code, _, method, _ = key.split('"')
            found[f"{method} {code}"] = int(value)
    return found


def by(metrics: Metrics, name: str) -> dict[str, float]:
    """The values of a metric with one label, by that label's values."""
    return {
        key.split('"')[1]: value
        for key, value in metrics.items()
        if key.startswith(f"{name}{{") and key.count("=") == 1
    }


class MonitoredServer:
    """``server`` listens for scrapers at ``port``; its command socket is below ``runtime``, which is short:
    the path of a unix socket has at most 107 characters."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = free_port()
        self.runtime = Path(tempfile.mkdtemp(prefix="mc-", dir="/tmp"))
        self._clients: list[httpx.Client] = []

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MULTICORE_METRICS_BIND": f"{LOCAL}:{self.port}",
            "XDG_RUNTIME_DIR": str(self.runtime),
        }

    def start(self, *options: str, env: dict[str, str] | None = None, **others: Any) -> MonitoredServer:
        """As `Server.start`; waits for the monitor too, if it waits for workers."""
        self.server.start(*options, env={**self.environment, **(env or {})}, **others)
        if others.get("ready"):
            self.wait_answering()
        return self

    def wait_answering(self) -> None:
        wait_for(lambda: self.answers("/healthz"), "an answer of the monitor")

    # --- over TCP ---

    def get(self, path: str, port: int = 0, **options: Any) -> httpx.Response:
        """One request on a connection of its own."""
        with _client(f"http://{LOCAL}:{port or self.port}") as client:
            return client.get(path, **options)

    def answers(self, path: str, port: int = 0) -> bool:
        """Whether there is an answer at all, and it is 200."""
        with contextlib.suppress(httpx.TransportError):
            return self.get(path, port).status_code == 200
        return False

    def metrics(self) -> Metrics:
        answer = self.get("/metrics")
        assert answer.status_code == 200, answer.text
        return parsed(answer.text)

    def requests(self) -> dict[str, int]:
        return requests(self.metrics())

    def status(self) -> Any:
        answer = self.get("/status")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def workers(self) -> dict[int, Any]:
        """What /status says of each instance."""
        return {worker["instance"]: worker for worker in self.status()["workers"]}

    def wait_idle(self) -> Metrics:
        """Wait until nothing is in hand anywhere; the metrics then."""

        def idle() -> Metrics | None:
            metrics = self.metrics()
            gauges = ("multicore_requests_in_progress", "multicore_connections", "multicore_websockets")
            left = sum(sum(by(metrics, name).values()) for name in gauges)
            in_hand = sum(worker["in_hand"] for worker in self.workers().values())
            return None if left or in_hand else metrics

        return wait_for(idle, "nothing in hand") or {}

    def wait_counted(self, expected: dict[str, int]) -> Metrics:
        """Wait until these requests, and no others, were counted, and nothing is in hand; the metrics then.

        An app may go on with a request whose client has left: it is counted when the app is through with it.
        """
        total = sum(expected.values())
        wait_for(lambda: sum(self.requests().values()) >= total, f"{total} requests counted")
        metrics = self.wait_idle()
        assert requests(metrics) == expected
        return metrics

    # --- over the command socket ---

    @property
    def socket(self) -> Path:
        return self.runtime / "multicore-server" / f"{self.server.pid}.sock"

    def command(self, name: str, method: str = "POST", **arguments: Any) -> httpx.Response:
        with _client("http://localhost", str(self.socket)) as client:
            return client.request(method, f"/commands/{name}", json=arguments)

    def close(self) -> None:
        shutil.rmtree(self.runtime, ignore_errors=True)


def _client(base: str, path: str | None = None) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=path, verify=False)  # loading certificates is slow
    headers = {"accept-encoding": "identity", "connection": "close"}
    return httpx.Client(
        transport=transport, base_url=base, headers=headers, timeout=PATIENCE, trust_env=False
    )


def ask_app(server: Server, request: bytes, *, bodiless: bool = False) -> int:
    """One request on a connection of its own; the status of the answer, which is complete."""
    connection = Connection(server.port)
    try:
        return connection.send(request).answer(bodiless=bodiless).status
    finally:
        connection.close()


def over(path: Path, url: str, method: str = "GET") -> httpx.Response:
    """One request over a unix socket."""
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost", trust_env=False) as client:
        return client.request(method, url, headers={"connection": "close"})


def left_behind(monitored: MonitoredServer) -> list[str]:
    """Files of sockets, beside the server's directory."""
    return [str(path) for path in monitored.runtime.rglob("*") if not path.is_dir()]


def over_command_socket(monitored: MonitoredServer) -> int:
    try:
        return over(monitored.socket, "/healthz").status_code
    except httpx.TransportError:
        return 0


def start_configured(monitored: MonitoredServer, **settings: object) -> None:
    configure(monitored.server, workers=1, metrics_bind=f"{LOCAL}:{monitored.port}", **settings)
    environment = {"XDG_RUNTIME_DIR": str(monitored.runtime)}
    monitored.server.start("-c", "conf.py", env=environment, ready=1)
    monitored.wait_answering()


def send(counted: MonitoredServer, path: str, *, method: str = "GET", times: int = 1) -> list[int]:
    asked = request(path, method=method)
    bodiless = method == "HEAD"
    return [ask_app(counted.server, asked, bodiless=bodiless) for _ in range(times)]


def check_histogram(metrics: Metrics) -> None:
    """Every request that was counted is in the histogram, and no other."""
    name = "multicore_http_request_duration_seconds"
    total = sum(requests(metrics).values())
    buckets = list(by(metrics, f"{name}_bucket").values())
    assert metrics[f"{name}_count"] == total == buckets[-1]
    assert buckets == sorted(buckets)


MakeMonitored: TypeAlias = Callable[..., MonitoredServer]
