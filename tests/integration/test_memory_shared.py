"""What the processes of a server share: what the arbiter has imported when it forks, and what it has not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.server import Server
from tests.support.waiting import wait_for

CONFIG = """
import gc, json, sys
from pathlib import Path

def post_fork(server, worker):
    sys.inherited = set(sys.modules)

def on_worker_ready(server, worker):
    found = {"modules": sorted(sys.modules), "frozen": gc.get_freeze_count()}
    Path("new.json").write_text(json.dumps(found))
    Path("new.json").rename("arbiter.json")
"""
APP = """
import json, sys

async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = json.dumps(sorted(sys.modules.keys() - sys.inherited - sys.stdlib_module_names)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
# Of the command line, of other worker classes, of tools, of the app: megabytes in every process.
NOT_NEEDED = {
    "prometheus_client", "starlette.applications", "starlette.requests", "psutil", "difflib", "rich", "yaml",
    "jinja2", "app",
}  # fmt: skip


@pytest.fixture
def started(server: Server) -> Server:
    server.write("gunicorn.conf.py", CONFIG)
    server.write("app.py", APP)
    return server.start("-w", "1", ready=1)


def test_a_worker_imports_nothing_but_its_app(started: Server) -> None:
    assert started.get().json() == ["app"]


def test_the_arbiter_holds_nothing_that_it_does_not_need(started: Server) -> None:
    def told() -> Any:
        path = started.directory / "arbiter.json"
        return json.loads(path.read_text()) if path.exists() else None

    arbiter = wait_for(told, "the hook's file")
    assert sorted(NOT_NEEDED & set(arbiter["modules"])) == []
    # What was there before the fork is no longer written to by the collector, in none of the processes.
    assert arbiter["frozen"] > 10_000
