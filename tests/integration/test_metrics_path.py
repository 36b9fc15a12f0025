"""The metrics on the app's own port."""

from __future__ import annotations

import os
import re
import signal
import ssl
from typing import Any

import httpx
import pytest
import trustme

from tests.support.apps import PLAIN
from tests.support.asking import ask
from tests.support.monitored_server import DIES, MakeMonitored, MonitoredServer, parsed, requests
from tests.support.server import Server
from tests.support.waiting import wait_for

# --- the app's own port


def families(text: str) -> list[str]:
    found = re.findall("^# .*$", text, re.MULTILINE)
    assert found
    return found


def check_path(monitored: MonitoredServer, path: str = "/metrics", client: Any = None) -> str:
    """That the app's port answers as the monitor does; its text."""
    served = monitored.server
    answer = client(path) if client else served.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == monitored.get("/metrics").headers["content-type"]
    assert families(answer.text) == families(monitored.get("/metrics").text)
    return str(answer.text)


PATH = {"MULTICORE_METRICS_PATH": "/metrics"}


@pytest.mark.parametrize("app", ["app:app", "app:wsgi"], ids=["asgi", "wsgi"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_metrics_on_the_apps_port(make_monitored: MakeMonitored, app: str, loop: str) -> None:
    monitored = make_monitored(PLAIN).start("-w", "2", app=app, env={**PATH, "UVICORN_LOOP": loop}, ready=2)
    assert monitored.server.get("/").status_code == 200
    assert requests(parsed(check_path(monitored))) == {"GET 2xx": 1}
    assert httpx.head(f"{monitored.server.url}/metrics").headers["content-length"]
    openmetrics = monitored.server.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")
    monitored.wait_idle()

    os.kill(monitored.server.monitor(), signal.SIGKILL)
    answers = wait_for(lambda: while_away(monitored.server), "the monitor's return")
    assert set(answers) <= {200, 503}
    assert monitored.server.get("/").status_code == 200


def while_away(server: Server) -> list[int]:
    answer = server.get("/metrics")
    if answer.status_code == 503:
        assert answer.text.count("\n") == 1
        assert "the monitor does not answer" in answer.text
        return []
    return [answer.status_code]


def test_metrics_on_the_apps_port_while_there_is_no_monitor(monitored: MonitoredServer) -> None:
    monitored.server.write(
        "conf.py", f"{DIES}\nimport multicore_server.worker.metrics_path as it\nit.PATIENCE = 0.5"
    )
    monitored.start("-w", "1", "-c", "conf.py", env={**PATH, "MULTICORE_METRICS_BIND": "none"})
    monitored.server.wait_ready(1)
    monitored.server.wait_logged(r"monitor pid=\d+ exited")
    # The arbiter holds the address: the question waits in its backlog until somebody answers or time is up.
    answer = monitored.server.get("/metrics")
    assert (answer.status_code, answer.text.count("\n")) == (503, 1)
    assert ask(monitored.server, "1 + 1") == 2


def test_metrics_below_a_root_path(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={**PATH, "UVICORN_ROOT_PATH": "/below"}, ready=1)
    # A proxy has taken the prefix off, as uvicorn's root_path has it.
    check_path(monitored)


def test_metrics_over_tls(monitored: MonitoredServer, ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    tls = ("--certfile", "../cert.pem", "--keyfile", "../key.pem")
    monitored.start("-w", "1", *tls, env=PATH, ready=1)

    def get(path: str) -> httpx.Response:
        return httpx.get(f"https://localhost:{monitored.server.port}{path}", verify=trusting)

    check_path(monitored, client=get)
