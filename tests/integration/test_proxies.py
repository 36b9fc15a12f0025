"""Behind a real nginx, and what counts of gunicorn's fields."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct

import httpx
import pytest
import websockets.sync.client

from tests.support.addresses import LOCAL
from tests.support.apps import SCOPE
from tests.support.parsers import PARSERS
from tests.support.proxies import TELLING, WSGI, MakeProxy, serve, told
from tests.support.raw_client import request
from tests.support.server import MakeServer
from tests.support.waiting import PATIENCE

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
parsers = pytest.mark.parametrize("http", PARSERS)


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


@parsers
@pytest.mark.parametrize("app", ["app:app", "app:wsgi"])
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
    (seen,) = server.wait_logged("SEEN .*/forged")
    assert '"client": "", "scheme": "http"' in seen


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
    server = serve(make_server, TELLING)
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
