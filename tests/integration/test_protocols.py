"""Every HTTP and WebSocket implementation that uvicorn has, and users' own, are counted."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from uvicorn.config import WS_PROTOCOLS, Config
from websockets.sync.client import connect as connect_websocket

from tests.support.apps import source
from tests.support.monitored_server import MakeMonitored, by
from tests.support.parsers import PARSERS
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

APP = source("connections")
OWN = """
from uvicorn.protocols.http import h11_impl, httptools_impl
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

class OwnH11(h11_impl.H11Protocol): ...
class OwnHttpTools(httptools_impl.HttpToolsProtocol):
    def on_response_complete(self):
        super().on_response_complete()
class OwnWebSocket(WSProtocol): ...

def make_http(*args, **given):
    return httptools_impl.HttpToolsProtocol(*args, **given)

def make_websocket(*args, **given):
    return WSProtocol(*args, **given)
"""
WEBSOCKETS = [
    *(name for name in WS_PROTOCOLS if name not in ("none", "auto") and find_spec(name.partition("-")[0])),
    "auto",
    "own:OwnWebSocket",
    "own:make_websocket",
]


def echoes(server: Server) -> None:
    with connect_websocket(f"ws://127.0.0.1:{server.port}/") as websocket:
        websocket.send("hello")
        assert websocket.recv() == "hello"


@pytest.mark.parametrize("http", PARSERS)
@pytest.mark.parametrize("websocket", WEBSOCKETS)
def test_websockets_are_counted(make_monitored: MakeMonitored, http: str, websocket: str) -> None:
    monitored = make_monitored(APP)
    server = monitored.server
    server.write("own.py", OWN)
    monitored.start("-w", "1", env={"UVICORN_HTTP": http, "UVICORN_WS": websocket}, ready=1)
    with connect_websocket(f"ws://127.0.0.1:{server.port}/") as open_one:
        open_one.send("hello")
        assert open_one.recv() == "hello"
        metrics = monitored.metrics()
        assert metrics['multicore_websockets{worker="0"}'] == 1
        assert metrics['multicore_requests_in_progress{worker="0"}'] == 0
        wait_for(
            lambda: by(monitored.metrics(), "multicore_connections") == {"0": 1},
            "it is among the connections",
        )
    monitored.wait_idle()
    assert server.logged("ERROR|Traceback") == []


@pytest.mark.parametrize("http", ["own:OwnH11", "own:OwnHttpTools", "own:make_http"])
def test_http_protocols_of_ones_own(make_monitored: MakeMonitored, http: str) -> None:
    monitored = make_monitored(APP)
    server = monitored.server
    server.write("own.py", OWN)
    monitored.start("-w", "1", env={"UVICORN_HTTP": http}, ready=1)
    for _ in range(3):
        assert server.get("/a").content == b"/a"
    echoes(server)
    unknown = http == "own:make_http"
    monitored.wait_counted({} if unknown else {"GET 2xx": 3})
    assert bool(server.logged("are not counted, and its connections end")) is unknown
    server.ends_within(5)


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"UVICORN_HTTP": "zttpp"}, "UVICORN_HTTP: 'zttpp' (from the environment) is not known; give auto, "),
        ({"UVICORN_WS": "sansio"}, "UVICORN_WS: 'sansio' (from the environment) is not known; give auto, "),
        ({"UVICORN_HTTP2": "1"}, "HTTP/2 requires the `zttp` HTTP protocol. Install it with `pip"),
    ],
)
def test_one_that_is_not_there_is_said_in_one_line(
    make_server: MakeServer, env: dict[str, str], line: str
) -> None:
    server = make_server(APP)
    if "UVICORN_HTTP2" in env and not hasattr(Config("own:app"), "http2"):
        pytest.skip("this uvicorn has no HTTP/2")
    server.start("-w", "1", env=env)
    assert server.wait_exit() in (1, 3)
    assert line in server.log
    assert "Traceback" not in server.log
