"""Addresses, TLS, WebSockets, streams and the WSGI bridge, over real sockets."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.sync.client import connect as connect_websocket

from tests.support.addresses import free_port
from tests.support.apps import SCOPE, source
from tests.support.parsers import PARSERS
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE, wait_for

# --- addresses ---


def test_several_addresses(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    path = server.directory / "app.sock"
    other = free_port()
    server.start("-b", f"[::1]:{other}", "-b", f"unix:{path}", "-w", "2", ready=2)
    assert server.get().json()["server"] == ["127.0.0.1", server.port]
    assert httpx.get(f"http://[::1]:{other}").json()["server"][:2] == ["::1", other]
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        seen = client.get("http://unix/", headers={"x-forwarded-proto": "https"}).json()
        assert seen["scheme"] == "https"  # as in gunicorn, every unix socket is trusted
        # ... and that trust does not leak to the other addresses
        assert client.get("http://unix/").json()["scheme"] == "http"
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not path.exists()


def test_unix_socket_alone(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(SCOPE)
    server.start("-w", "1", "--forwarded-allow-ips", "10.0.0.1", bind="unix:app.sock", ready=1)
    connection = connect(str(server.directory / "app.sock"))
    answer = connection.send(request("/", "X-Forwarded-Proto: https", "X-Forwarded-For: 9.9.9.9")).answer()
    assert b'"scheme": "https"' in answer.body
    assert b'"client": ["9.9.9.9", 0]' in answer.body


def test_inherited_descriptor(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]
        server.start("-w", "1", bind=f"fd://{listener.fileno()}", ready=1, pass_fds=(listener.fileno(),))
    assert server.get().status_code == 200


def test_reuse_port_makes_one_listener(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "2", "--reuse-port", ready=2)
    listing = subprocess.run(
        ["ss", "-Hltn", f"sport = :{server.port}"], capture_output=True, text=True, check=True
    )
    assert len(listing.stdout.splitlines()) == 1
    assert server.get().status_code == 200


# --- TLS ---


def test_tls(
    make_server: MakeServer, connect: Connect, ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    """A certificate for the clients, one from them, and what ciphers they may use."""
    options = ["--ca-certs", "ca.pem", "--cert-reqs", "2", "--ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384"]
    server = make_server(SCOPE)
    server.start("--certfile", "../cert.pem", "--keyfile", "../key.pem", *with_directory(options), ready=1)
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2  # the ciphers of 1.3 are not chosen by this setting
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(server.port, tls=trusting).send(request()).answer()
    ca.issue_cert("client").configure_cert(trusting)
    connection = connect(server.port, tls=trusting)
    assert b'"scheme": "https"' in connection.send(request()).answer().body
    assert connection.tls_cipher() == "ECDHE-ECDSA-AES256-GCM-SHA384"


def with_directory(options: list[str]) -> list[str]:
    return [f"../{option}" if option.endswith(".pem") else option for option in options]


def test_ssl_context_hook(make_server: MakeServer, connect: Connect, trusting: ssl.SSLContext) -> None:
    server = make_server(SCOPE)
    server.write("gunicorn.conf.py", source("tls13"))
    server.start("--certfile", "../cert.pem", "--keyfile", "../key.pem", ready=1)
    assert connect(server.port, tls=trusting).send(request()).answer().status == 200
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        connect(server.port, tls=trusting)


def test_key_with_a_password(
    make_server: MakeServer, connect: Connect, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    locked = ["openssl", "pkey", "-in", "key.pem", "-aes256", "-passout", "pass:s3cret", "-out", "locked.pem"]
    subprocess.run(locked, cwd=tmp_path, check=True)
    server = make_server(SCOPE)
    env = {"UVICORN_SSL_KEYFILE_PASSWORD": "s3cret"}
    server.start("--certfile", "../cert.pem", "--keyfile", "../locked.pem", env=env, ready=1)
    assert connect(server.port, tls=trusting).send(request()).answer().status == 200


# --- WebSockets and server-sent events ---


@pytest.mark.parametrize(
    ("ws", "name"),
    [("auto", "WebSocket"), ("wsproto", "WSProtocol")],
)
def test_websockets(make_server: MakeServer, ws: str, name: str) -> None:
    if ws == "wsproto":
        pytest.importorskip("wsproto")
    server = make_server(SCOPE).start("-w", "1", env={"UVICORN_WS": ws}, ready=1)
    with connect_websocket(f"ws://127.0.0.1:{server.port}") as websocket:
        websocket.send(" says hello")
        assert re.fullmatch(rf"{name}\w* says hello", str(websocket.recv()))


def test_no_websockets(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(SCOPE).start("-w", "1", env={"UVICORN_WS": "none"}, ready=1)
    upgrade = request("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    assert connect(server.port).send(upgrade).answer().status == 200  # answered as plain HTTP
    server.wait_logged("Unsupported upgrade request")


def test_server_sent_events(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(source("events")).start("-w", "1", ready=1)
    connection = connect(server.port).send(request())
    assert connection.head().headers["content-type"] == "text/event-stream"
    for number in range(3):
        assert connection.chunk() == b"data: %d\n\n" % number
        server.write(f"event{number}", "")
    connection.close()
    wait_for((server.directory / "left").exists, "the app learns that its client left")


# --- the WSGI bridge ---

THREADS = pytest.mark.parametrize("threads", ["1", "4"])


def start_wsgi(make_server: MakeServer, threads: str, **env: str) -> Server:
    return make_server(source("wsgi")).start("-w", "1", "--threads", threads, env=env, ready=1)


def test_one_thread_is_the_loops_own(make_server: MakeServer) -> None:
    assert start_wsgi(make_server, "1").get("/thread").text == "MainThread"


def test_threads_run_at_the_same_time(make_server: MakeServer) -> None:
    server = start_wsgi(make_server, "2")
    answers: list[int] = []
    clients = [threading.Thread(target=lambda: answers.append(server.get("/meet").status_code)) for _ in "12"]
    for client in clients:
        client.start()
    for client in clients:
        client.join(PATIENCE)
    assert answers == [200, 200]


@THREADS
def test_wsgi_answers(make_server: MakeServer, connect: Connect, threads: str) -> None:
    server = start_wsgi(make_server, threads)
    assert server.get("/write").text == "written directly and returned"
    head = connect(server.port).send(request("/", method="HEAD"))
    assert head.answer(bodiless=True).headers["content-length"] == "5"
    assert head.send(request()).answer().body == b"hello"

    big = bytes(range(256)) * 20_000  # 5 MB: beyond what is kept in memory
    upload = connect(server.port)
    upload.send(request("/upload", f"Content-Length: {len(big)}", "Expect: 100-continue", method="POST"))
    assert upload.head().status == 100
    upload.send(big)
    assert upload.answer().body == hashlib.sha256(big).hexdigest().encode()

    assert server.get("/raise").status_code == 500
    server.wait_logged("RuntimeError: before the headers")
    late = connect(server.port).send(request("/late"))
    late.head()
    assert late.chunk() == b"begun"
    assert late.ends()  # cut: the client can tell that this is not all
    server.wait_logged("RuntimeError: after the headers")
    wait_for((server.directory / "closed").exists)


@THREADS
@pytest.mark.parametrize("http", PARSERS)
def test_wsgi_answers_a_client_that_sends_no_more(
    make_server: MakeServer, connect: Connect, threads: str, http: str
) -> None:
    server = start_wsgi(make_server, threads, UVICORN_HTTP=http)
    connection = connect(server.port).send(request("/steps"))
    connection.socket.shutdown(socket.SHUT_WR)
    connection.head()
    for step in range(2):
        assert connection.chunk() == b"step %d\n" % step
        (server.directory / f"go{step}").write_text("end" if step else "on")
    assert connection.chunk() == b""
    assert connection.ends()


@THREADS
def test_wsgi_streams(make_server: MakeServer, connect: Connect, threads: str) -> None:
    server = start_wsgi(make_server, threads)
    streamed = connect(server.port).send(request("/stream"))
    for number in range(3):
        server.write(f"step{number}", "")
        if number == 0:
            streamed.head()
        assert streamed.chunk() == b"block"
    streamed.close()
    server.write("flood", "")
    wait_for((server.directory / "closed").exists, "close() after the client left")
    assert server.get("/").text == "hello"


@THREADS
def test_wsgi_drains(make_server: MakeServer, connect: Connect, threads: str) -> None:
    server = start_wsgi(make_server, threads)
    half = connect(server.port).send(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
    streamed = connect(server.port).send(request("/stream"))
    server.write("step0", "")
    streamed.head()
    assert streamed.chunk() == b"block"
    pid = server.worker_of(0)
    os.kill(pid, signal.SIGTERM)
    server.write("step1", "")
    assert streamed.chunk() == b"block"
    streamed.close()
    server.write("flood", "")
    assert half.send(b"34").answer().body == hashlib.sha256(b"1234").hexdigest().encode()
    server.wait_logged(rf"pid={pid} exited with code 0")
