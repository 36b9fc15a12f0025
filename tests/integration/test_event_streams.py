"""Event streams of sse-starlette, with which every MCP server streams: a reload ends them in time."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.apps import source
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("patch", ["theirs", "none", "fails"])
def test_a_reload_does_not_wait_out_its_time(
    make_server: MakeServer, connect: Connect, patch: str, loop: str
) -> None:
    server = make_server(source("sse"))
    options = ("-w", "1", "--graceful-timeout", "40")
    server.start(*options, ready=1, env={"PATCH": patch, "UVICORN_LOOP": loop})
    stream = connect(server.port).send(request("/"))
    stream.head()
    assert stream.chunk() == b"data: tick\r\n\r\n"
    began = time.monotonic()
    server.signal(signal.SIGHUP)
    server.wait_logged("exited with code 0 after draining")
    assert time.monotonic() - began < 15
    assert len(server.logged("handle_exit was replaced, and failed")) == (patch == "fails")


# --- MCP

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-03-26",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@contextlib.contextmanager
def session(server: Server) -> Iterator[httpx.Response]:
    """The event stream of a session of its own, as every client of an MCP server holds one open."""
    accepted = "application/json, text/event-stream"
    with httpx.Client(base_url=server.url, headers={"accept": accepted}, timeout=PATIENCE) as client:
        begun = client.post("/mcp", json=INITIALIZE)
        assert '"serverInfo"' in begun.text
        client.headers["mcp-session-id"] = begun.headers["mcp-session-id"]
        client.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        with client.stream("GET", "/mcp") as stream:
            yield stream


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTERM])
def test_an_mcp_server_does_not_wait_out_its_time(make_server: MakeServer, how: signal.Signals) -> None:
    pytest.importorskip("mcp")
    server = make_server(source("mcp_server"))
    server.start("-w", "1", "--graceful-timeout", "40", ready=1)
    with session(server) as stream, contextlib.suppress(httpx.RemoteProtocolError):  # as under uvicorn
        assert stream.status_code == 200
        began = time.monotonic()
        server.signal(how)
        server.wait_logged("exited with code 0 after draining")
        assert time.monotonic() - began < 15
        assert not server.logged("cancelling them")
        stream.read()
