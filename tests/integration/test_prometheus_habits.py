"""What people have for Prometheus: prometheus-flask-exporter with its hooks, and a port of their own."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from tests.support.addresses import free_port
from tests.support.apps import source
from tests.support.server import MakeServer
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

HOOKS = """
import os

os.makedirs("metrics", exist_ok=True)
os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.path.abspath("metrics")

from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

def when_ready(server):
    GunicornPrometheusMetrics.start_http_server_when_ready(int(os.environ["THEIRS"]))

def child_exit(server, worker):
    GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)
"""

APP = """
from flask import Flask
from prometheus_client import Gauge
from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

app = Flask(__name__)
metrics = GunicornPrometheusMetrics(app)
Gauge("living", "Workers.", multiprocess_mode="livesum").set(1)

@app.route("/")
def index():
    return "ok"
"""


def value(port: int, name: str) -> float:
    """The sum of a metric's samples at this port."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def test_hooks_that_people_have_work_beside_ours(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.write("conf.py", HOOKS)
    server.listens_for_scrapers = True
    ours, theirs = free_port(), free_port()
    env = {"THEIRS": str(theirs), "MULTICORE_METRICS_BIND": f"127.0.0.1:{ours}"}
    server.start("-w", "2", "-c", "conf.py", env=env, ready=2)
    for _ in range(4):
        assert server.get().text == "ok"
    for port in (ours, theirs):
        assert value(port, "flask_http_request_total{") == 4
        assert value(port, "living") == 2
    os.kill(server.worker_of(0), signal.SIGKILL)
    server.wait_ready(3)
    for port in (ours, theirs):
        wait_for(lambda port=port: value(port, "living") == 2, "the dead worker's gauge is gone")  # type: ignore[misc]
        assert value(port, "flask_http_request_total{") == 4
    server.ends_within(10)
    assert not server.logged(r"hook|Traceback")


def test_a_port_that_the_app_wants_is_named_with_the_setting(make_server: MakeServer) -> None:
    server = make_server(source("own_metrics_port"))
    server.listens_for_scrapers = True
    port = free_port()
    env = {"METRICS_PORT": str(port), "MULTICORE_METRICS_BIND": f"127.0.0.1:{port}"}
    server.start("-w", "1", env=env)
    assert server.wait_exit() == 3
    (line,) = server.logged("Reason: ")
    assert f"the server itself uses 127.0.0.1:{port} (set metrics_bind to another address, or" in line


def test_the_monitor_names_it_where_the_app_was_first(make_server: MakeServer) -> None:
    server = make_server(source("own_metrics_port"))
    server.listens_for_scrapers = True
    port = free_port()
    env = {"METRICS_PORT": str(port), "MULTICORE_METRICS_BIND": f"127.0.0.1:{port}"}
    server.start("-w", "1", "--preload", env=env, ready=1)
    assert server.wait_logged(
        f"metrics_bind: cannot listen on 127.0.0.1:{port}: .* give another metrics_bind"
    )
