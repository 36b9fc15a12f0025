"""HTTP/2, which uvicorn speaks with zttp: counted, placed, limited, and ended without a loss."""

from __future__ import annotations

import signal
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import pytest

from tests.support.apps import SCOPE, source
from tests.support.deploying import hup, wait_workers
from tests.support.draining import LOOPS
from tests.support.monitored_server import MakeMonitored, by
from tests.support.parsers import HAS_ZTTP
from tests.support.proxies import MakeProxy, told
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.threads import running
from tests.support.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.skipif(
    not HAS_ZTTP or find_spec("h2") is None, reason="uvicorn's zttp, or h2 for the client, is not here"
)
CLIENT = "127.0.0.9"  # none that is trusted
HTTP2 = {"UVICORN_HTTP": "zttp", "UVICORN_HTTP2": "1"}
APP = source("connections")
loops = pytest.mark.parametrize("loop", LOOPS)


def client(verify: ssl.SSLContext | bool = False) -> httpx.Client:
    return httpx.Client(http1=False, http2=True, verify=verify, timeout=PATIENCE, trust_env=False)


@contextmanager
def held(server: Server, over: httpx.Client, number: int) -> Iterator[list[int]]:
    """So many requests at once, held by the app until the end of the block; their statuses then. They begin
    one after the other: httpx gives a stream's number to two that begin in one moment."""
    statuses: list[int] = []
    turn = threading.Semaphore()

    def begun(event: str, _: object) -> None:
        if event == "http2.send_request_body.complete":
            turn.release()

    def ask() -> None:
        assert turn.acquire(timeout=PATIENCE)
        statuses.append(over.get(f"{server.url}/hold", extensions={"trace": begun}).status_code)

    with running(*[ask] * number, end=(server.directory / "release").touch):
        wait_for((server.directory / "held").exists, "the app has one")
        yield statuses


@contextmanager
def asking(url: str, verify: ssl.SSLContext | bool = False) -> Iterator[list[int]]:
    """Strict clients that ask without pause; yields who answers. One request at a time in a connection: with
    several, httpx fails at a GOAWAY, though they would be answered."""
    done, pids, failures = threading.Event(), [], []

    def ask() -> None:
        try:
            with client(verify) as over:
                work(over)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a request lost
            failures.append(exc)

    def work(over: httpx.Client) -> None:
        while not done.is_set():
            answer = over.post(f"{url}/echo", content=b"x" * 1000)
            assert (answer.status_code, answer.http_version, len(answer.content)) == (200, "HTTP/2", 1000)
            pids.append(int(answer.headers["x-pid"]))

    with running(*[ask] * 4, end=done.set):
        yield pids
    assert failures == []


# --- counted


@loops
def test_each_stream_is_a_request(make_monitored: MakeMonitored, loop: str) -> None:
    monitored = make_monitored(APP)
    server = monitored.server
    monitored.start("-w", "1", "--access-logfile", "-", env={**HTTP2, **LOOPS[loop]}, ready=1)
    with client() as over:
        assert over.post(f"{server.url}/echo", content=b"abc").content == b"abc"
        with held(server, over, 3) as statuses:
            wait_for(
                lambda: sum(by(monitored.metrics(), "multicore_requests_in_progress").values()) == 3,
                "three in progress",
            )
            wait_for(
                lambda: sum(by(monitored.metrics(), "multicore_connections").values()) == 1, "one connection"
            )
        assert statuses == [200, 200, 200]
    metrics = monitored.wait_counted({"GET 2xx": 3, "POST 2xx": 1})
    assert metrics["multicore_http_request_duration_seconds_count"] == 4
    assert len(server.wait_logged(r'"GET /hold HTTP/2" 200 5', 3)) == 3


def test_a_request_without_a_body_is_complete(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "1", env=HTTP2, ready=1)
    with client() as over:
        assert over.get(f"{server.url}/echo").status_code == 200


def test_a_wsgi_app_is_served(make_server: MakeServer) -> None:
    server = make_server(source("wsgi")).start("-w", "2", app="app:app", env=HTTP2, ready=2)
    with client() as over:
        answers = [over.post(f"{server.url}/", content=b"x" * 100_000) for _ in range(5)]
    assert {answer.http_version for answer in answers} == {"HTTP/2"}
    assert {answer.status_code for answer in answers} == {200}


def test_one_port_speaks_both(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(APP).start("-w", "1", env=HTTP2, ready=1)
    connection = connect(server.port)
    assert connection.send(request("/a")).answer().body == b"/a"
    assert connection.send(request("/b")[:7]).send(request("/b")[7:]).answer().body == b"/b"
    odd = connect(server.port)
    assert odd.send(b"P").send(request("/", method="POST", body=b"x")[1:]).answer().status == 200
    with client() as over:
        assert over.get(f"{server.url}/c").content == b"/c"


# --- placed


@loops
def test_connections_go_to_the_worker_that_has_least(make_server: MakeServer, loop: str) -> None:
    server = make_server(APP).start("-w", "2", env={**HTTP2, **LOOPS[loop]}, ready=2)
    with client() as busy, held(server, busy, 1):
        pids = []
        for _ in range(3):
            with client() as other:
                pids.append(int(other.get(f"{server.url}/").headers["x-pid"]))
    assert len(set(pids)) == 1, "the busy worker got one, too"


@pytest.mark.parametrize("secure", [False, True])
def test_the_client_is_the_one_that_a_proxy_announces(
    make_server: MakeServer, make_haproxy: MakeProxy, trusting: ssl.SSLContext, secure: bool
) -> None:
    server = make_server(SCOPE)
    server.write("gunicorn.conf.py", "proxy_protocol = True\n")
    tls = ("--certfile", "../cert.pem", "--keyfile", "../key.pem") if secure else ()
    server.start("-w", "2", *tls, env=HTTP2, ready=2)
    proxy = make_haproxy(server.port, "send-proxy", mode="tcp")
    trusting.set_alpn_protocols(["h2"])
    transport = httpx.HTTPTransport(local_address=CLIENT, http1=False, http2=True, verify=trusting)
    with httpx.Client(transport=transport, timeout=PATIENCE) as over:
        for _ in range(3):
            answer = over.get(f"https://localhost:{proxy.port}/" if secure else proxy.url)
            assert (answer.http_version, told(answer)["client"]) == ("HTTP/2", CLIENT)


# --- limited


def test_heads_and_bodies_are_limited(make_server: MakeServer) -> None:
    options = ("--limit-request-line", "100", "--limit-request-fields", "20")
    server = make_server(APP)
    server.start("-w", "1", *options, env={**HTTP2, "MULTICORE_LIMIT_REQUEST_BODY": "1K"}, ready=1)
    with client() as over:
        assert over.get(f"{server.url}/{'x' * 150}").status_code == 414
        assert over.get(f"{server.url}/", headers={f"x-{n}": "y" for n in range(30)}).status_code == 431
        assert over.post(f"{server.url}/echo", content=b"x" * 2000).status_code == 413
        with pytest.raises(httpx.RemoteProtocolError):
            over.post(f"{server.url}/echo", content=iter([b"x" * 600] * 3))
        assert over.post(f"{server.url}/echo", content=b"x" * 500).status_code == 200


def test_header_map_counts(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "1", "--header-map", "refuse", env=HTTP2, ready=1)
    with client() as over:
        assert over.get(f"{server.url}/", headers={"x_y": "z"}).status_code == 400
        assert over.get(f"{server.url}/").status_code == 200


def test_a_connection_that_says_nothing_is_closed(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(APP).start("-w", "1", env={**HTTP2, "MULTICORE_HEADER_TIMEOUT": "1"}, ready=1)
    assert connect(server.port).ends()
    assert connect(server.port).send(b"PRI * HT").ends()


# --- ended


@loops
def test_no_request_is_lost_in_reloads(make_server: MakeServer, loop: str) -> None:
    server = make_server(APP).start("-w", "2", env={**HTTP2, **LOOPS[loop]}, ready=2)
    with asking(server.url) as pids:
        for _ in range(3):
            hup(server)
            wait_workers(server, 2)
            seen = len(pids)
            wait_for(lambda before=seen: len(pids) > before + 20, "requests")  # type: ignore[misc]
    assert len(set(pids)) >= 3
    assert server.logged("ERROR|Traceback") == []


def test_no_request_is_lost_in_reloads_over_tls(make_server: MakeServer, trusting: ssl.SSLContext) -> None:
    server = make_server(APP)
    options = ("-w", "2", "--certfile", "../cert.pem", "--keyfile", "../key.pem")
    server.start(*options, env=HTTP2, ready=2)
    trusting.set_alpn_protocols(["h2"])
    with asking(f"https://localhost:{server.port}", trusting) as pids:
        hup(server)
        wait_workers(server, 2)
        seen = len(pids)
        wait_for(lambda: len(pids) > seen + 20, "requests")
    assert len(set(pids)) >= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_streams_in_progress_are_answered_at_the_end(make_server: MakeServer, workers: int) -> None:
    server = make_server(APP).start("-w", str(workers), env=HTTP2, ready=workers)
    with client() as over:
        with held(server, over, 3) as statuses:
            server.signal(signal.SIGTERM)
            server.wait_logged("draining", workers)
        assert statuses == [200, 200, 200]
        assert server.wait_exit() == 0


def test_an_idle_connection_does_not_hold_up_the_end(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "1", "--keep-alive", "60", env=HTTP2, ready=1)
    with client() as over:
        assert over.get(f"{server.url}/").status_code == 200
        server.ends_within(5)


# --- what is said


def test_one_line_says_what_it_lacks(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "2", env=HTTP2, ready=2)
    assert len(server.logged("HTTP/2 connections end with their worker")) == 1


def test_zttp_alone_lacks_nothing(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "1", env={"UVICORN_HTTP": "zttp"}, ready=1)
    assert server.logged("WARNING") == []
