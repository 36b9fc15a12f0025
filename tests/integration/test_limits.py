"""What clients may send and how long they may take, by raw sockets to real servers: ASGI and WSGI."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.apps import SCOPE, source
from tests.support.parsers import PARSERS
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

WSGI = source("wsgi_scope")
RUN = [sys.executable, "-m", "multicore_server", "run"]

both = pytest.mark.parametrize("http", PARSERS)
apps = pytest.mark.parametrize("app", [SCOPE, WSGI], ids=["asgi", "wsgi"])


def start(make_server: MakeServer, app: str, http: str, *options: str, **more: Any) -> Server:
    env = {"UVICORN_HTTP": http, **more.pop("env", {})}
    return make_server(app).start("-w", "1", *options, ready=1, env=env, **more)


def to_end(port: int, data: bytes) -> bytes:
    """Send all that is taken, then read to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
        answer = b""
        try:
            while part := client.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def clients_of(server: Server) -> set[int]:
    """The ports of the clients whose connections the workers hold."""
    connections = [each for pid in server.workers() for each in psutil.Process(pid).net_connections()]
    return {each.raddr.port for each in connections if each.raddr}


# --- who the client is


@apps
@both
def test_over_a_unix_socket_the_chain_of_proxies_is_walked_from_the_right(
    app: str, http: str, make_server: MakeServer, connect: Connect
) -> None:
    server = start(make_server, app, http, "--forwarded-allow-ips", "", bind="unix:app.sock")
    connection = connect(str(server.directory / "app.sock"))
    answer = connection.send(
        request("/", "X-Forwarded-For: 6.6.6.6, 10.0.0.9", "X-Forwarded-Proto: https")
    ).answer()
    seen = json.loads(answer.body)
    assert (seen["client"][0] if "client" in seen else seen["REMOTE_ADDR"]) == "10.0.0.9"
    assert seen.get("scheme", seen.get("wsgi.url_scheme")) == "https"


@apps
@both
def test_trailers_do_not_become_headers(app: str, http: str, make_server: MakeServer) -> None:
    server = start(make_server, app, http)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"X-Forwarded-For: 6.6.6.6\r\nX-Remote-User: mallory\r\n"
    answer = to_end(server.port, head + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"mallory" not in answer
    assert b"6.6.6.6" not in answer


# --- sizes


@apps
@both
@pytest.mark.parametrize("command", ["gunicorn", "run"])
def test_heads_are_limited(app: str, http: str, command: str, make_server: MakeServer) -> None:
    more: dict[str, Any] = {}
    server = make_server(app)
    if command == "run":
        more = {"command": [*RUN, "--port", str(server.port), "--http", http], "bind": ""}
    server.start("-w", "1", ready=1, env={"UVICORN_HTTP": http}, **more)
    line = b"GET /%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    wide = http != "zttp"  # which has a limit of its own for the number of fields
    fields = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + b"X-Y: z\r\n" * 200 + b"\r\n"
    assert to_end(server.port, line % (b"x" * 3000))[:12] == b"HTTP/1.1 200"
    assert to_end(server.port, line % (b"x" * 5000))[:12] == (
        b"HTTP/1.1 414" if command == "gunicorn" else b"HTTP/1.1 200"
    )
    let_through = command == "run" and wide
    assert to_end(server.port, fields)[:12] == (b"HTTP/1.1 200" if let_through else b"HTTP/1.1 431")
    worker = server.children()[0]
    before = resident(worker)
    flood = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-Y: %s\r\n" % (b"z" * 7000) * 3000
    assert to_end(server.port, flood)[:12] in (b"HTTP/1.1 431", b"")
    assert resident(worker) - before < 8_000_000
    assert to_end(server.port, line % b"after")[:12] == b"HTTP/1.1 200"


@pytest.mark.parametrize("http", ["httptools", "h11"])  # zttp's limit is not to be set
def test_uvicorns_option_is_the_limit_of_a_head(http: str, make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    options = ["--port", str(server.port), "--http", http, "--h11-max-incomplete-event-size", "200000"]
    server.start("-w", "1", ready=1, command=[*RUN, *options], bind="")
    field = b"X-Y: %s\r\n" % (b"z" * 993)
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n"
    assert to_end(server.port, head % (field * 100))[:12] == b"HTTP/1.1 200"
    assert to_end(server.port, head % (field * 300))[:12] == b"HTTP/1.1 431"


@both
def test_gunicorns_settings_are_read(http: str, make_server: MakeServer) -> None:
    server = start(make_server, SCOPE, http, "--limit-request-line", "100", "--limit-request-fields", "5")
    line = b"GET /%s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert to_end(server.port, line % (b"x" * 150))[:12] == b"HTTP/1.1 414"
    assert to_end(server.port, line % b"x")[:12] == b"HTTP/1.1 200"
    many = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 5 + b"\r\n"
    assert to_end(server.port, many)[:12] == b"HTTP/1.1 431"
    assert "has no effect" not in server.log


@apps
@both
def test_bodies_are_limited(app: str, http: str, make_server: MakeServer) -> None:
    server = start(make_server, app, http, env={"MULTICORE_LIMIT_REQUEST_BODY": "100K"})
    announced = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
    counted = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert to_end(server.port, announced)[:12] == b"HTTP/1.1 413"
    if app is WSGI:  # the other one answers from the head alone
        assert to_end(server.port, counted + b"4000\r\n%s\r\n" % (b"x" * 0x4000) * 20)[:12] == b"HTTP/1.1 413"
    within = (
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    )
    assert to_end(server.port, within)[:12] == b"HTTP/1.1 200"


def test_an_app_in_threads_is_asked_before_its_body_has_arrived(
    make_server: MakeServer, connect: Connect
) -> None:
    server = start(make_server, WSGI, "httptools", "--threads", "2")
    connection = connect(server.port)
    connection.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 1000)
    assert connection.answer().status == 200
    connection = connect(server.port)
    connection.send(request("/", "Expect: 100-continue", "Content-Length: 500000", method="POST"))
    assert connection.head().status == 100
    assert json.loads(connection.send(b"x" * 500_000).answer().body)["read"] == 500_000


# --- times


@both
def test_slow_clients_are_refused_and_do_not_stay_in_the_load(
    http: str, make_server: MakeServer, connect: Connect
) -> None:
    env = {"MULTICORE_HEADER_TIMEOUT": "2s", "MULTICORE_BODY_TIMEOUT": "2s"}
    server = start(make_server, WSGI, http, env=env)
    silent = connect(server.port)
    head = connect(server.port).send(b"GET / HTTP/1.1\r\nHost: a")
    body = connect(server.port).send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    started = time.monotonic()
    assert head.answer().status == 408
    assert body.answer().status == 408
    assert silent.socket.recv(1) == b""
    assert 1.5 < time.monotonic() - started < 10
    assert connect(server.port).send(request("/")).answer().status == 200


@pytest.mark.quiet
@apps
def test_a_client_that_takes_nothing_is_dropped(app: str, make_server: MakeServer, connect: Connect) -> None:
    large = """
BODY = b"x" * 30_000_000

async def asgi(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": BODY})

def wsgi(environ, start_response):
    start_response("200 OK", [])
    return (BODY[start : start + 100_000] for start in range(0, len(BODY), 100_000))
"""
    name = "asgi" if app is SCOPE else "wsgi"
    server = make_server(large)
    server.start("-w", "1", ready=1, app=f"app:{name}", env={"MULTICORE_SEND_TIMEOUT": "2s"})
    stuck = connect(server.port).send(request("/"))
    started = time.monotonic()
    answer = to_end(server.port, b"GET / HTTP/1.0\r\n\r\n")
    assert len(answer) > 30_000_000
    assert time.monotonic() - started < 15
    client = stuck.socket.getsockname()[1]
    wait_for(lambda: client not in clients_of(server), "the end of the connection")
    stuck.socket.settimeout(20)
    taken = 0
    try:
        while part := stuck.socket.recv(2**20):
            taken += len(part)
    except ConnectionResetError:
        pass
    assert taken < 30_000_000


# --- HTTP/1.0, Host, header_map, upgrades


@both
def test_http_1_0_gets_no_chunks(http: str, make_server: MakeServer) -> None:
    server = start(make_server, WSGI, http)
    head, _, body = to_end(server.port, b"GET /stream HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert body == b"onetwo"
    assert b"chunked" not in head.lower()


@apps
@both
def test_two_hosts_are_refused(app: str, http: str, make_server: MakeServer) -> None:
    server = start(make_server, app, http)
    assert to_end(server.port, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")[:12] == b"HTTP/1.1 400"


@apps
@both
def test_header_map_refuse(app: str, http: str, make_server: MakeServer) -> None:
    server = start(make_server, app, http, "--header-map", "refuse")
    assert to_end(server.port, b"GET / HTTP/1.1\r\nHost: a\r\nX_Y: z\r\n\r\n")[:12] == b"HTTP/1.1 400"


@both
def test_a_body_arrives_though_an_upgrade_is_offered(http: str, make_server: MakeServer) -> None:
    server = start(make_server, WSGI, http)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + offer + b"Content-Length: 5\r\n\r\n"
    after = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answer = to_end(server.port, head + b"hello" + after)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b'{"read": 5' in answer
