"""The examples for nginx and HAProxy, before a server whose workers and arbiters come and go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import websockets.sync.client

from tests.support.addresses import LOCAL, free_port
from tests.support.apps import ASK
from tests.support.deploying import hup, usr2s_arbiter
from tests.support.load import Load
from tests.support.processes import wait_gone
from tests.support.proxies import TELLING, Proxy, ended, example_haproxy, example_nginx
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE, wait_for

WAYS: dict[str, Callable[[Server, Path, int], Proxy]] = {
    "nginx over TCP": lambda server, path, _: example_nginx(path, f"{LOCAL}:{server.port}"),
    "nginx over a unix socket": lambda server, path, _: example_nginx(
        path, f"unix:{server.directory}/app.sock"
    ),
    "HAProxy over TCP": lambda server, path, metrics: example_haproxy(
        path, f"{LOCAL}:{server.port}", metrics
    ),
    "HAProxy over a unix socket": lambda server, path, metrics: example_haproxy(
        path, f"unix@{server.directory}/app.sock", metrics
    ),
}


@contextlib.contextmanager
def behind(
    server: Server, ways: list[str], directory: Path, metrics: int, *options: str
) -> Iterator[list[Proxy]]:
    """Start the server with two workers, and proxies before it."""
    env = {"MULTICORE_METRICS_BIND": f"{LOCAL}:{metrics}"}
    server.start("-w", "2", "-b", "unix:app.sock", "--keep-alive", "75", *options, env=env, ready=2)
    made: list[Proxy] = []
    with ended(made):
        for way in ways:
            made.append(WAYS[way](server, directory, metrics))
            wait_for(lambda: httpx.get(f"{made[-1].url}/?1").status_code == 200, f"an answer through {way}")
        yield made


def posting(proxy: Proxy) -> Load:
    """Requests that no proxy sends twice."""
    load = Load((LOCAL, proxy.port))
    load.request = load.request.replace(b"GET ", b"POST ").replace(
        b"\r\n\r\n", b"\r\ncontent-length: 0\r\n\r\n"
    )
    return load


def test_no_request_fails_while_workers_and_arbiters_come_and_go(
    make_server: MakeServer, tmp_path: Path, ending: list[int]
) -> None:
    server = make_server(ASK)
    recycling = ("--max-requests", "60", "--max-requests-jitter", "40")
    with (
        behind(server, list(WAYS), tmp_path, free_port(), *recycling) as proxies,
        contextlib.ExitStack() as loads,
    ):
        answered = [loads.enter_context(posting(proxy)).answers for proxy in proxies]
        for _ in range(2):
            hup(server)
        server.wait_logged(r"draining \(max_requests\)", 12)
        server.signal(signal.SIGUSR2)
        ending.append(usr2s_arbiter(server))
        server.wait_logged(rf"\[{ending[0]}\] .* ready after", 2)
        server.signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        before = [sum(answers.values()) for answers in answered]
        wait_for(
            lambda: all(sum(now.values()) > then + 50 for now, then in zip(answered, before, strict=True)),
            "requests that the new arbiter's workers answer",
        )
    os.kill(ending[0], signal.SIGTERM)
    wait_gone(ending[0])


@pytest.mark.parametrize("way", ["nginx over a unix socket", "HAProxy over a unix socket"])
def test_what_the_app_is_told_and_a_websocket(make_server: MakeServer, tmp_path: Path, way: str) -> None:
    server, metrics = make_server(TELLING), free_port()
    with behind(server, [way], tmp_path, metrics) as (proxy,):
        with websockets.sync.client.connect(f"ws://{LOCAL}:{proxy.port}/chat") as client:
            seen = json.loads(client.recv(PATIENCE))
        assert (seen["scheme"], seen["path"], seen["client"]) == ("ws", "/chat", LOCAL)
        for _ in range(3):
            seen = httpx.get(f"{proxy.url}/a", headers={"X-Forwarded-Proto": "https"}).json()
            assert (seen["scheme"], seen["client"]) == ("http", LOCAL)
        # Over a unix socket, the time in the queue is known by the proxy's field alone.
        shown = httpx.get(f"http://{LOCAL}:{metrics}/metrics").text
        count = re.search(r"^multicore_http_request_queue_seconds_count (\S+)$", shown, re.MULTILINE)
        assert count is not None
        assert float(count[1]) >= 3
        # Connections to the server are used again.
        assert (
            float(re.findall(r"^multicore_connections_accepted_total\S* (\S+)$", shown, re.MULTILINE)[0]) <= 4
        )
