"""Raw requests, right and wrong ones, through both HTTP implementations to ASGI and WSGI apps."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.addresses import LOCAL
from tests.support.apps import source
from tests.support.parsers import PARSERS
from tests.support.raw_requests import RAW_REQUESTS, RawRequest
from tests.support.server import Server

QUIET = 0.5  # seconds in which nothing comes any more
SERVERS = [(http, app) for http in PARSERS for app in ("app:app", "app:wsgi")]


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a raw request: the outcome as in the table, what the app has seen."""

    outcome: str
    app: tuple[str, ...]
    fields: tuple[list[str], ...]


@pytest.fixture(scope="module", params=SERVERS, ids=lambda it: f"{it[0]}-{it[1].rpartition(':')[2]}")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """By the name of each raw request; all of them are sent at the same time."""
    http, app = request.param
    server = Server(tmp_path_factory.mktemp("raw"), source("witness"))
    try:
        server.start("-w", "1", "--keep-alive", "60", app=app, env={"UVICORN_HTTP": http}, ready=1)
        yield {"server": f"{http} {app}", **all_outcomes(server)}
    finally:
        server.end()
        print(server.log)


def all_outcomes(server: Server) -> dict[str, Seen]:
    connections = {}
    for raw in RAW_REQUESTS:
        connections[raw.name] = socket.create_connection((LOCAL, server.port), 10)
        connections[raw.name].sendall(raw.data)
    time.sleep(QUIET)
    return {name: became(server, connection) for name, connection in connections.items()}


def became(server: Server, connection: socket.socket) -> Seen:
    with connection:
        port = connection.getsockname()[1]
        said, closed = everything(connection)
        seen = json.loads(server.get(f"/seen?{port}").content)
    app = tuple(f"{it['method']} {it['path']} {it['body'] or ''}" for it in seen)
    words = [*statuses(said), *(["closed"] if closed else [])]
    return Seen(" ".join(words), app, tuple(field for it in seen for field in it["fields"]))


def everything(connection: socket.socket) -> tuple[bytes, bool]:
    """What has come by now, and whether it is all that ever will."""
    said = b""
    connection.setblocking(False)
    try:
        while data := connection.recv(65536):
            said += data
    except BlockingIOError:
        return said, False
    except ConnectionResetError:
        pass
    return said, True


def statuses(said: bytes) -> list[str]:
    return [status.decode() for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]


@pytest.mark.parametrize("raw", RAW_REQUESTS, ids=str)
def test_raw_request(outcomes: dict[str, Any], raw: RawRequest) -> None:
    seen: Seen = outcomes[raw.name]
    allowed = [(outcome, raw.app) for outcome in raw.outcomes]
    allowed += [
        (known.outcome, known.app) for known in raw.known if outcomes["server"].startswith(known.server)
    ]
    assert any(seen.outcome == outcome and seen.app == app[: len(seen.app)] for outcome, app in allowed), seen
    assert seen.outcome.count("200") <= len(seen.app)
