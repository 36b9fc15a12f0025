"""Behind a real HAProxy, which announces its clients by the PROXY protocol."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
from typing import Any

import httpx
import pytest
import trustme
import websockets.sync.client

from tests.support.addresses import LOCAL
from tests.support.apps import SCOPE
from tests.support.parsers import PARSERS
from tests.support.processes import gone
from tests.support.proxies import RUN, TELLING, WSGI, MakeProxy, Proxy, serve, told
from tests.support.raw_client import Connect, Connection, request
from tests.support.server import MakeServer
from tests.support.waiting import PATIENCE, wait_for

kinds = pytest.mark.parametrize("app", [SCOPE, WSGI], ids=["asgi", "wsgi"])
parsers = pytest.mark.parametrize("http", PARSERS)
commands = pytest.mark.parametrize("command", ["gunicorn", "run"])

SENDS = {"send-proxy": "v1", "send-proxy-v2": "v2"}
CLIENT = "127.0.0.9"  # none that is trusted
ON = "proxy_protocol = True\n"


def get(proxy: Proxy, path: str = "/", **options: Any) -> httpx.Response:
    """From an address that is not the proxy's."""
    transport = httpx.HTTPTransport(local_address=CLIENT)
    with httpx.Client(transport=transport, timeout=PATIENCE) as client:
        return client.get(f"{proxy.url}{path}", **options)


@kinds
@commands
@pytest.mark.parametrize("how", SENDS)
@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_haproxy_announces_its_client(
    make_server: MakeServer, make_haproxy: MakeProxy, app: str, command: str, how: str, mode: str
) -> None:
    conf = f"proxy_protocol = {SENDS[how]!r}\n"
    server = serve(make_server, app, "--access-logfile", "-", command=command, conf=conf)
    proxy = make_haproxy(server.port, how, mode=mode)
    transport = httpx.HTTPTransport(local_address=CLIENT)
    with httpx.Client(transport=transport, timeout=PATIENCE) as client:
        for number in range(3):
            answer = client.get(f"{proxy.url}/{number}")
            assert told(answer)["client"] == CLIENT
            if app == WSGI:
                seen = answer.json()
                assert seen["REMOTE_PORT"].isdecimal()
                assert (seen["PROXY_PROTOCOL"], seen["PROXY_PORT"]) == ("TCP4", str(proxy.port))
    server.wait_logged(rf'{CLIENT} - - .* "GET /2 HTTP/1.1" 200')


@kinds
@pytest.mark.parametrize("how", SENDS)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_haproxy_announces_its_client_before_tls(
    make_server: MakeServer, make_haproxy: MakeProxy, ca: trustme.CA, app: str, how: str, loop: str
) -> None:
    tls = "certfile = '../cert.pem'\nkeyfile = '../key.pem'\n"
    server = serve(make_server, app, conf=tls + ON, UVICORN_LOOP=loop)
    proxy = make_haproxy(server.port, f"{how} ssl verify none")
    seen = told(get(proxy))
    assert (seen["client"], seen["scheme"]) == (CLIENT, "https")
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    url = f"https://localhost:{server.port}"
    assert told(httpx.get(url, verify=trusting))["client"] == LOCAL  # and without a header


@kinds
@commands
def test_over_a_unix_socket(make_server: MakeServer, make_haproxy: MakeProxy, app: str, command: str) -> None:
    server = make_server(app)
    server.write("conf.py", "workers = 1\nproxy_allow_ips = ''\n" + ON)
    if command == "run":
        server.start("--config", "conf.py", "--uds", "app.sock", command=RUN, bind="", ready=1)
    else:
        server.start("--config", "conf.py", bind="unix:app.sock", ready=1)
    proxy = make_haproxy(f"unix@{server.directory}/app.sock", "send-proxy-v2")
    assert told(get(proxy))["client"] == CLIENT


@kinds
def test_a_client_cannot_be_somebody_else_by_a_field(
    make_server: MakeServer, make_haproxy: MakeProxy, app: str
) -> None:
    """HAProxy passes its fields on. That the proxy itself is trusted does not make its client so."""
    server = serve(make_server, app, conf=ON)
    proxy = make_haproxy(server.port, "send-proxy", inside="http-request set-header X-Forwarded-Proto https")
    seen = told(get(proxy, headers={"X-Forwarded-For": "6.6.6.6"}))
    assert (seen["client"], seen["scheme"]) == (CLIENT, "https")
    server = serve(make_server, app, "--forwarded-allow-ips", f"{LOCAL},{CLIENT}", conf=ON)
    proxy = make_haproxy(server.port, "send-proxy")
    assert told(get(proxy, headers={"X-Forwarded-For": "6.6.6.6"}))["client"] == "6.6.6.6"


def test_a_websocket_behind_haproxy(make_server: MakeServer, make_haproxy: MakeProxy) -> None:
    for ws in ("websockets", "wsproto", "websockets-sansio"):
        server = serve(make_server, TELLING, conf=ON, UVICORN_WS=ws)
        inside = "http-request set-header X-Forwarded-Proto https"
        proxy = make_haproxy(server.port, "send-proxy-v2", inside=inside)
        held = socket.create_connection((LOCAL, proxy.port), source_address=(CLIENT, 0))
        with websockets.sync.client.connect(f"ws://{LOCAL}:{proxy.port}/", sock=held) as client:
            seen = json.loads(client.recv(PATIENCE))
        assert (seen["client"], seen["scheme"]) == (CLIENT, "wss")


@kinds
@pytest.mark.parametrize("scheduling", ["least", "shared"])
def test_no_request_is_lost_in_a_reload(
    make_server: MakeServer, make_haproxy: MakeProxy, app: str, scheduling: str
) -> None:
    """Its connections do not move: each is told its end with a response, and HAProxy opens another."""
    server = serve(make_server, app, conf=ON, MULTICORE_SCHEDULING=scheduling)
    proxy = make_haproxy(server.port, "send-proxy-v2")
    first = server.worker_of(0)
    stop, failed, answered = threading.Event(), [], [0]

    def ask() -> None:
        transport = httpx.HTTPTransport(local_address=CLIENT)
        with httpx.Client(transport=transport, timeout=PATIENCE) as client:
            while not stop.is_set():
                seen = told(client.get(proxy.url))["client"]
                answered[0] += 1
                if seen != CLIENT:
                    failed.append(seen)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: answered[0] > 50, "answers")
    server.signal(signal.SIGHUP)
    wait_for(lambda: gone(first), "the end of the first worker")
    before = answered[0]
    wait_for(lambda: answered[0] > before + 50, "answers of the second")
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []


# --- the PROXY protocol without a proxy

LINE = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 80\r\n"


@kinds
@parsers
def test_it_is_refused_from_a_stranger(
    make_server: MakeServer, connect: Connect, app: str, http: str
) -> None:
    server = serve(make_server, app, "--proxy-allow-from", "10.0.0.1", conf=ON, UVICORN_HTTP=http)
    answer = connect(server.port).send(LINE + request("/")).answer()
    assert (answer.status, answer.is_last) == (403, True)
    server.wait_logged(r"refused with 403: 127.0.0.1 is not in proxy_allow_ips")
    assert connect(server.port).send(request("/")).answer().status == 200


@pytest.mark.parametrize("app", ["app:app", "app:wsgi"])
@pytest.mark.parametrize("scheduling", ["least", "shared"])
def test_whoever_gets_a_connection_knows_its_client(
    make_server: MakeServer, connect: Connect, app: str, scheduling: str
) -> None:
    """Also where its header comes when it has been given to another worker."""
    server = make_server(TELLING)
    server.write("conf.py", ON)
    env = {"MULTICORE_SCHEDULING": scheduling}
    server.start("-w", "3", "--config", "conf.py", app=app, env=env, ready=3)
    connections = [connect(server.port) for _ in range(60)]
    for number, connection in enumerate(connections):
        connection.send(b"PROXY TCP4 192.0.2.%d 192.0.2.2 1234 80\r\n" % number)
    for connection in connections:
        connection.send(request("/"))
    seen = [json.loads(connection.answer().body) for connection in connections]
    assert [it["client"] for it in seen] == [f"192.0.2.{number}" for number in range(60)]
    assert scheduling == "shared" or len({it["pid"] for it in seen}) == 3


@kinds
def test_it_is_off_unless_it_is_asked_for(make_server: MakeServer, connect: Connect, app: str) -> None:
    server = serve(make_server, app)
    assert connect(server.port).send(LINE + request("/")).answer().status == 400
    assert not server.logged("no effect")


def test_by_an_environment_variable(make_server: MakeServer, connect: Connect) -> None:
    server = serve(make_server, SCOPE, command="run", MULTICORE_PROXY_PROTOCOL="auto")
    answer = connect(server.port).send(LINE + request("/")).answer()
    assert json.loads(answer.body)["client"] == ["192.0.2.1", 1234]


def test_half_a_header_does_not_hold_up_others_nor_a_drain(make_server: MakeServer, connect: Connect) -> None:
    server = serve(make_server, SCOPE, conf=ON + "header_timeout = 2\n")
    silent, halves = connect(server.port), [connect(server.port).send(LINE[:20]) for _ in range(20)]
    assert told(server.get())["client"] == LOCAL
    assert {half.answer().status for half in halves} == {408}
    assert silent.ends()
    connect(server.port).send(LINE[:20])
    server.ends_within(10)


def test_in_a_drain_its_connection_ends_gently(make_server: MakeServer, connect: Connect) -> None:
    """Where another worker takes over: what moves has no header before it."""
    server = serve(make_server, SCOPE, conf=ON + "keepalive = 60\n")
    plain, announced = connect(server.port), connect(server.port)
    idle = connect(server.port).send(LINE + request("/"))
    assert idle.answer().status == 200
    assert client_of(plain.send(request("/"))) == LOCAL
    assert client_of(announced.send(LINE + request("/"))) == "192.0.2.1"
    first = server.worker_of(0)
    announced.send(request("/wait"))
    assert client_of(plain.send(request("/"))) == LOCAL  # what came before this is in the app's hand
    server.signal(signal.SIGHUP)
    server.wait_logged("draining")
    assert idle.ends()
    assert client_of(plain.send(request("/"))) == LOCAL
    server.write("release", "")
    last = announced.answer()
    assert (json.loads(last.body)["client"][0], last.is_last) == ("192.0.2.1", True)
    wait_for(lambda: gone(first), "the end of the first worker")
    assert json.loads(plain.send(request("/")).answer().body)["pid"] != first


def client_of(connection: Connection) -> str:
    host: str = json.loads(connection.answer().body)["client"][0]
    return host
