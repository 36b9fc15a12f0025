"""Event streams of sse-starlette, with which every MCP server streams: a reload ends them in time."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support.apps import source
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer

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
