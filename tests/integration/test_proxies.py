"""Behind real proxies: nginx with gunicorn's fields, HAProxy with the PROXY protocol."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import websockets.sync.client

from tests.support import proxies
from tests.support.addresses import LOCAL
from tests.support.apps import SCOPE, source
from tests.support.processes import gone
from tests.support.proxies import MakeProxy, Proxy
from tests.support.raw_client import Connect, Connection, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE, wait_for

WSGI = source("wsgi_scope")
RUN = [sys.executable, "-m", "multicore_server", "run"]
FLASK = """
from flask import Flask, redirect, request, url_for

app = Flask(__name__)

@app.get("/go")
def go():
    return redirect(url_for("arrived", _external=True))

@app.get("/arrived")
def arrived():
    return f"{request.script_root} {request.path} {request.url}"
"""
STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import Route

async def go(request):
    return RedirectResponse(request.url_for("arrived"), 302)

async def arrived(request):
    root = request.scope["root_path"]
    return PlainTextResponse(f"{root} {request.scope['path'].removeprefix(root)} {request.url}")

app = Starlette(routes=[Route("/go", go), Route("/arrived", arrived)])
"""

kinds = pytest.mark.parametrize("app", [SCOPE, WSGI], ids=["asgi", "wsgi"])
parsers = pytest.mark.parametrize("http", ["httptools", "h11"])
commands = pytest.mark.parametrize("command", ["gunicorn", "run"])


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[MakeProxy]:
    made: list[Proxy] = []

    def make(inside: str) -> Proxy:
        made.append(proxies.nginx(tmp_path, inside))
        return made[-1]

    with proxies.ended(made):
        yield make


@pytest.fixture
def make_haproxy(tmp_path: Path) -> Iterator[MakeProxy]:
    made: list[Proxy] = []

    def make(*args: Any, **options: Any) -> Proxy:
        made.append(proxies.haproxy(tmp_path, *args, **options))
        return made[-1]

    with proxies.ended(made):
        yield make


def serve(
    make_server: MakeServer, app: str, *options: str, command: str = "gunicorn", conf: str = "", **env: str
) -> Server:
    """One worker, by either command; ``conf`` is its config file."""
    server = make_server(app)
    server.write("conf.py", f"workers = 1\n{conf}")
    more: dict[str, Any] = {}
    if command == "run":
        more = {"command": [*RUN, "--port", str(server.port)], "bind": ""}
    return server.start("--config", "conf.py", *options, ready=1, env=env, **more)


def told(answer: httpx.Response) -> dict[str, Any]:
    """What the app was told, by the names of a scope."""
    assert answer.status_code == 200, answer.text
    seen: dict[str, Any] = answer.json()
    if "client" in seen:
        return {**seen, "client": seen["client"][0]}
    headers = {name[5:].lower().replace("_", "-"): seen[name] for name in seen if name.startswith("HTTP_")}
    root = seen["SCRIPT_NAME"]
    return {
        "client": seen["REMOTE_ADDR"], "scheme": seen["wsgi.url_scheme"], "root_path": root,
        "path": root + seen["PATH_INFO"], "headers": headers,
    }  # fmt: skip


# --- nginx


@pytest.mark.parametrize("app", [FLASK, STARLETTE], ids=["flask", "starlette"])
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_an_app_below_wiki_behind_nginx(
    make_server: MakeServer, make_nginx: MakeProxy, app: str, over: str
) -> None:
    pytest.importorskip("flask" if app == FLASK else "starlette", exc_type=ImportError)
    server = make_server(app)
    bind = None if over == "tcp" else "unix:app.sock"
    server.start("-w", "1", bind=bind, ready=1)
    address = f"{LOCAL}:{server.port}" if bind is None else f"unix:{server.directory}/app.sock:"
    proxy = make_nginx(f"""
        location /wiki {{
            proxy_pass http://{address};
            proxy_set_header Host $http_host;
            proxy_set_header SCRIPT_NAME /wiki;
            proxy_set_header X-Forwarded-Ssl on;
        }}
    """)
    went = httpx.get(f"{proxy.url}/wiki/go")
    assert (went.status_code, went.headers["location"]) == (302, f"https://{LOCAL}:{proxy.port}/wiki/arrived")
    arrived = httpx.get(
        f"{proxy.url}/wiki/arrived?q=1", headers={"SCRIPT_NAME": "/evil", "Script-Name": "/evil"}
    )
    assert arrived.text == f"/wiki /arrived https://{LOCAL}:{proxy.port}/wiki/arrived?q=1"
    assert httpx.get(f"{proxy.url}/wiki/nothing").status_code == 404


@kinds
@parsers
def test_the_fields_of_a_proxy_count_as_with_gunicorn(make_server: MakeServer, app: str, http: str) -> None:
    server = serve(make_server, app, "--access-logfile", "-", UVICORN_HTTP=http)

    def scheme(*fields: tuple[str, str]) -> str:
        answer = httpx.get(server.url, headers=fields)
        return told(answer)["scheme"] if answer.status_code == 200 else str(answer.status_code)

    assert scheme() == "http"
    assert scheme(("X-Forwarded-Ssl", "on")) == "https"
    assert scheme(("X-Forwarded-Protocol", "ssl")) == "https"
    assert scheme(("X-Forwarded-Proto", "https"), ("X-Forwarded-Ssl", "on")) == "https"
    assert scheme(("X-Forwarded-Proto", "http"), ("X-Forwarded-Ssl", "on")) == "400"
    assert server.logged(r"\[WARNING\] a request from 127.0.0.1 is refused with 400: .* two schemes")
    seen = told(server.get("/wiki/a", headers={"SCRIPT_NAME": "/wiki", "X-Forwarded-For": "6.6.6.6"}))
    assert (seen["root_path"], seen["path"], seen["client"]) == ("/wiki", "/wiki/a", "6.6.6.6")
    server.wait_logged(r'6.6.6.6 - - .* "GET /wiki/a HTTP/1.1" 200')
    assert server.get("/other", headers={"SCRIPT_NAME": "/wiki"}).status_code == 500


@kinds
def test_nothing_of_it_counts_for_a_stranger(make_server: MakeServer, app: str) -> None:
    server = serve(make_server, app, "--forwarded-allow-ips", "10.0.0.1")
    fields = {
        "X-Forwarded-Ssl": "on",
        "SCRIPT_NAME": "/a",
        "REMOTE_USER": "root",
        "X-Forwarded-For": "6.6.6.6",
    }
    seen = told(server.get("/a", headers=fields))
    assert (seen["scheme"], seen["root_path"], seen["path"], seen["client"]) == ("http", "", "/a", LOCAL)
    assert app == SCOPE or not seen["headers"].keys() & {"script-name", "remote-user"}


TELLING = """
def wsgi(environ, start_response):
    print("SEEN", environ["PATH_INFO"], [environ["REMOTE_ADDR"]], environ["wsgi.url_scheme"], flush=True)
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    print("SEEN", scope["path"], [*(scope["client"] or [""])][:1], scope["scheme"], flush=True)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""


@parsers
@pytest.mark.parametrize("app", ["app:asgi", "app:wsgi"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_who_resets_its_connection_is_not_taken_for_a_unix_socket(
    make_server: MakeServer, app: str, http: str, loop: str
) -> None:
    """Its request is read when nobody can tell any more whose it is."""
    server = make_server(TELLING)
    env = {"UVICORN_HTTP": http, "UVICORN_LOOP": loop}
    server.start("-w", "1", "--forwarded-allow-ips", "10.0.0.1", app=app, env=env, ready=1)
    worker = server.worker_of(0)
    os.kill(worker, signal.SIGSTOP)
    try:
        client = socket.create_connection((LOCAL, server.port))
        client.sendall(request("/forged", "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https"))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    finally:
        os.kill(worker, signal.SIGCONT)
    assert server.get("/after").status_code == 200
    assert server.wait_logged("SEEN /after")
    assert all(line.endswith("[''] http") for line in server.logged("SEEN /forged"))


@kinds
def test_settings_of_its_own(make_server: MakeServer, app: str) -> None:
    conf = (
        'secure_scheme_headers = {"X-TLS": "yes"}\nforwarder_headers = "REMOTE_USER"\nheader_map = "refuse"\n'
    )
    server = serve(make_server, app, conf=conf)
    seen = told(server.get("/", headers={"X-Tls": "yes", "REMOTE_USER": "me"}))
    user = seen["headers"].get("remote_user", seen["headers"].get("remote-user"))
    assert (seen["scheme"], user) == ("https", "me")
    assert told(server.get("/", headers={"X-Forwarded-Proto": "https"}))["scheme"] == "http"
    assert server.get("/", headers={"SCRIPT_NAME": "/a"}).status_code == 400


@kinds
def test_under_run_they_count_where_they_are_set(make_server: MakeServer, app: str) -> None:
    fields = {"X-Forwarded-Ssl": "on", "X-Forwarded-Proto": "wss", "SCRIPT_NAME": "/a"}
    server = serve(make_server, app, command="run")
    seen = told(server.get("/a", headers=fields))
    assert (seen["scheme"], seen["root_path"]) == ("wss", "")  # as with uvicorn
    conf = 'secure_scheme_headers = {"X-Forwarded-Ssl": "on"}\nforwarder_headers = "SCRIPT_NAME"\n'
    server = serve(make_server, app, command="run", conf=conf)
    seen = told(server.get("/a", headers=fields))
    assert (seen["scheme"], seen["root_path"]) == ("https", "/a")


def test_a_websocket_behind_nginx(make_server: MakeServer, make_nginx: MakeProxy) -> None:
    server = serve(make_server, SOCKET)
    proxy = make_nginx(f"""
        location /wiki {{
            proxy_pass http://{LOCAL}:{server.port};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header SCRIPT_NAME /wiki;
            proxy_set_header X-Forwarded-Proto https;
        }}
    """)
    with websockets.sync.client.connect(f"ws://{LOCAL}:{proxy.port}/wiki/chat") as client:
        seen = json.loads(client.recv(PATIENCE))
    assert (seen["scheme"], seen["root_path"], seen["path"]) == ("wss", "/wiki", "/wiki/chat")


SOCKET = """
import json

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    seen = {name: scope[name] for name in ("scheme", "client", "root_path", "path")}
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": json.dumps(seen)})
    await send({"type": "websocket.close"})
"""


# --- HAProxy

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
        server = serve(make_server, SOCKET, conf=ON, UVICORN_WS=ws)
        inside = "http-request set-header X-Forwarded-Proto https"
        proxy = make_haproxy(server.port, "send-proxy-v2", inside=inside)
        held = socket.create_connection((LOCAL, proxy.port), source_address=(CLIENT, 0))
        with websockets.sync.client.connect(f"ws://{LOCAL}:{proxy.port}/", sock=held) as client:
            seen = json.loads(client.recv(PATIENCE))
        assert (seen["client"][0], seen["scheme"]) == (CLIENT, "wss")


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
