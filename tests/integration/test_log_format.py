"""Both logs as JSON, by `log_format` and by the configurations that docs/logging.md shows."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs/logging.md"
APP = """
import logging

own = logging.StreamHandler()
own.setFormatter(logging.Formatter('{"own": "%(instance)s %(generation)s"}'))
logging.getLogger("shop").addHandler(own)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    logging.getLogger("shop").warning("called")
    if scope["path"] == "/boom":
        raise ValueError("two\\nlines \\udc80")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})
"""
CONF = "accesslog = '-'\naccess_log_skip = ['/healthz', '/static/*']\nlog_format = {!r}\n"


def lines(server: Server, begin: int = 0) -> list[dict[str, Any]]:
    """The log as JSON, from a line on; every line is."""
    return [json.loads(line) for line in server.log.splitlines()[begin:]]


def of(found: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [line for line in found if fields.items() <= line.items()]


def test_both_logs_become_json_at_a_reload(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.write("gunicorn.conf.py", CONF.format("text"))
    server.start("-w", "2", ready=2)
    server.get("/before")
    server.wait_logged(r'"GET /before HTTP/1.1" 200 2')
    server.write("gunicorn.conf.py", CONF.format("json"))
    server.signal(signal.SIGHUP)
    server.wait_logged('"message": "reload done')
    server.wait_logged("exited with code 0 after draining", count=2)
    begin = len(server.log.splitlines())
    for path in ("/a%20b?q=1", "/healthz", "/static/x", "/boom", "/last"):
        server.get(path)
    server.wait_logged('"GET /last')
    os.kill(server.worker_of(1), signal.SIGKILL)
    server.wait_logged('"kind": "exited"')
    server.wait_ready(5)
    server.ends_within(10)
    found = lines(server, begin)
    access = of(found, logger="gunicorn.access")
    assert [(it["path"], it.get("query"), it["status"]) for it in access] == [
        ("/a%20b", "q=1", 200),
        ("/boom", None, 500),
        ("/last", None, 200),
    ]
    for line in access:
        assert (line["instance"] in (0, 1), line["generation"], line["client"]) == (True, 2, "127.0.0.1")
        assert line["pid"] == server_pid(server, line["instance"], 2)
    (raised,) = of(found, logger="uvicorn.error", level="error")
    assert raised["exception"].endswith("ValueError: two\nlines \\udc80")
    (killed,) = of(found, kind="exited")
    assert (killed["instance"], killed["generation"], killed["pid"]) == (1, 2, server.pid)
    assert of(found, message="Shutting down: Master", instance=None, pid=server.pid)
    assert {line["own"] for line in found if "own" in line} <= {"0 2", "1 2"}


def server_pid(server: Server, instance: int, generation: int) -> int:
    (line, *_) = server.logged(rf"instance={instance} gen={generation} pid=\d+ ready")
    return int(re.findall(r"pid=(\d+)", line)[0])


def snippet(language: str, mark: str) -> str:
    """The block of code in the docs that has this text."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if mark in block)
    return found


@pytest.mark.parametrize("way", ["logconfig_json", "structlog"])
def test_the_configurations_of_the_docs(make_server: MakeServer, way: str) -> None:
    server = make_server()
    if way == "structlog":
        pytest.importorskip("structlog")
        server.write("gunicorn.conf.py", snippet("python", "import structlog"))
        server.start("-w", "1")
    else:
        server.write("logs.json", snippet("json", '"version": 1'))
        server.start("-w", "1", "--log-config-json", "logs.json")
    server.wait_logged("pid=.* ready after")
    server.get()
    wait_for(lambda: server.logged("GET / ?"), "an access line")
    found = lines(server)
    (access,) = (it for it in found if it["logger"] == "gunicorn.access")
    assert (access["instance"], access["generation"], access["level"]) == (0, 1, "info")
    assert access["pid"] != server.pid
    assert [it["pid"] for it in found if "ready after" in str(it)] == [server.pid]
