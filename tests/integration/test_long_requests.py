"""Requests that take long: named in the log while they do, and ended at request_timeout."""

from __future__ import annotations

import re
import time
from importlib.util import find_spec
from threading import Thread

import httpx
import pytest

from tests.support.parsers import HAS_ZTTP, PARSERS
from tests.support.raw_client import Connect, request
from tests.support.scraping import Scraped
from tests.support.server import Server
from tests.support.waiting import wait_for

ASGI = """
import asyncio, time

log = []

async def stuck():
    await asyncio.sleep(60)

async def reply(send, body, status=200):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(1.5)
        await send({"type": "websocket.send", "text": "still here"})
        return
    path = scope["path"]
    if path == "/stuck":
        try:
            await stuck()
        finally:
            log.append("cancelled")
    elif path == "/stubborn":
        try:
            await stuck()
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)
            log.append((await receive())["type"])
            await reply(send, b"late")
            log.append("went on")
    elif path == "/own":
        try:
            await stuck()
        except asyncio.CancelledError:
            await reply(send, b"own", 418)
    elif path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in b"abc":
            await send({"type": "http.response.body", "body": bytes([part]), "more_body": True})
            await asyncio.sleep(0.6)
        await send({"type": "http.response.body"})
    elif path == "/brief":
        await asyncio.sleep(0.4)
        await reply(send, b"brief")
    elif path == "/about":
        await asyncio.sleep(float(scope["query_string"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        await send({"type": "http.response.body", "body": b"cd"})
    elif path == "/slow":
        await asyncio.sleep(1)
        await reply(send, b"slow")
    elif path == "/blocks/for-long":
        time.sleep(2)
        await reply(send, b"blocks")
    elif path == "/blocks":
        time.sleep(0.6)
        await reply(send, b"blocks")
    elif path == "/log":
        await reply(send, repr(log).encode())
    else:
        while (await receive()).get("more_body"):
            pass
        await reply(send, b"ok")
"""
WSGI = """
import time

log = []

def stuck(environ):
    end = time.monotonic() + float(environ["QUERY_STRING"] or 60)
    while time.monotonic() < end:
        time.sleep(0.01)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/stuck":
        stuck(environ)
        write = start_response("200 OK", [("Content-Length", "4")])
        try:
            write(b"late")
        except BrokenPipeError:
            log.append("left")
            raise
        return []
    if path == "/about":
        stuck(environ)
        start_response("200 OK", [("Content-Length", "4")])
        return iter([b"ab", b"cd"])
    if path == "/brief":
        time.sleep(0.4)
    start_response("200 OK", [])
    if path == "/stream":
        return (time.sleep(0.6) or part for part in (b"", b"a", b"b", b"c") if part)
    return [repr(log).encode() if path == "/log" else b"ok"]
"""
LIMIT = 0.5  # seconds: a stream's first byte may come sooner, its last one does not
EXACT = 0.3  # seconds behind the limit: those of a heartbeat, and of a loaded machine
protocols = pytest.mark.parametrize("http", PARSERS)
loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def start(server: Server, app: str, *options: str, **env: str) -> Server:
    server.write("app.py", app)
    given = {"MULTICORE_REQUEST_TIMEOUT": f"{LIMIT}s"} | {name.upper(): value for name, value in env.items()}
    return server.start("-w", "1", *options, env=given, ready=1)


def logged(server: Server) -> str:
    return server.get("/log").text


@protocols
@loops
def test_no_response_within_the_limit_is_504(server: Server, connect: Connect, http: str, loop: str) -> None:
    scraped = Scraped(server)
    env = {"uvicorn_http": http, "uvicorn_loop": loop, "multicore_metrics_bind": scraped.address}
    start(server, ASGI, "--access-logfile", "-", **env)
    time.sleep(1.5)  # the worker rests by now
    began = time.monotonic()
    client = connect(server.port).send(request("/stuck?token=secret"))
    answer = client.answer()
    assert LIMIT <= time.monotonic() - began < LIMIT + EXACT
    assert (answer.status, answer.body, answer.is_last) == (504, b"Gateway Timeout\n", True)
    assert client.ends()
    server.wait_logged(
        r"request_timeout: GET /stuck, no response after 0.[5-7] s; answered 504, and its task is cancelled; "
        r"it is here:"
    )
    wait_for(lambda: "in stuck" in server.log and "await asyncio.sleep(60)" in server.log)
    server.wait_logged(r'"GET /stuck\?token=secret HTTP/1.1" 504')
    assert logged(server) == "['cancelled']"
    assert "Exception in ASGI application" not in server.log
    wait_for(scraped.reachable)
    samples = scraped.scrape()
    assert samples.value("multicore_request_timeouts_total", worker="0") == 1
    assert samples.value("multicore_http_requests_total", code="5xx", method="GET") == 1


@protocols
@pytest.mark.parametrize("path", ["/stubborn", "/own"])
def test_the_app_s_own_answer_comes_too_late(server: Server, connect: Connect, http: str, path: str) -> None:
    start(server, ASGI, uvicorn_http=http)
    client = connect(server.port).send(request(path))
    assert client.answer().status == 504
    assert client.ends()
    if path == "/stubborn":
        wait_for(lambda: logged(server) == "['http.disconnect', 'went on']")
    assert "Traceback" not in server.log


@protocols
def test_a_response_that_has_begun_may_last(server: Server, connect: Connect, http: str) -> None:
    start(server, ASGI, uvicorn_http=http)
    assert connect(server.port).send(request("/stream")).answer().body == b"abc"
    assert connect(server.port).send(request("/brief")).answer().body == b"brief"
    assert "request_timeout:" not in server.log


def test_a_websocket_may_last(server: Server) -> None:
    from websockets.sync.client import connect

    start(server, ASGI)
    with connect(f"ws://127.0.0.1:{server.port}/") as client:
        assert client.recv(timeout=10) == "still here"


@protocols
def test_a_body_that_does_not_come_in_whole(server: Server, connect: Connect, http: str) -> None:
    start(server, ASGI, uvicorn_http=http)
    client = connect(server.port).send(request("/", "Content-Length: 10", method="POST") + b"half")
    assert client.answer().status == 504
    assert client.ends()
    assert server.get("/").text == "ok"
    assert "Traceback" not in server.log


@protocols
def test_what_is_pipelined_behind_it_is_the_client_s_to_repeat(
    server: Server, connect: Connect, http: str
) -> None:
    start(server, ASGI, uvicorn_http=http)
    client = connect(server.port).send(request("/brief") + request("/stuck") + request("/"))
    assert client.answer().body == b"brief"
    answer = client.answer()
    assert (answer.status, answer.is_last) == (504, True)
    assert client.ends()


@protocols
def test_a_client_that_has_left(server: Server, connect: Connect, http: str) -> None:
    start(server, ASGI, uvicorn_http=http)
    connect(server.port).send(request("/stuck")).close()
    server.wait_logged(r"request_timeout: GET /stuck, .*; its client has left, and its task is cancelled")
    assert logged(server) == "['cancelled']"


@pytest.mark.skipif(
    not HAS_ZTTP or find_spec("h2") is None, reason="uvicorn's zttp, or h2 for the client, is not here"
)
def test_other_streams_of_the_connection_go_on(server: Server) -> None:
    start(server, ASGI, uvicorn_http="zttp", uvicorn_http2="1")
    with httpx.Client(http1=False, http2=True, timeout=20, trust_env=False) as client:
        ended = Thread(target=lambda: statuses.append(client.get(f"{server.url}/stuck").status_code))
        statuses: list[int] = []
        ended.start()
        while ended.is_alive():
            assert client.get(f"{server.url}/brief").text == "brief"
        ended.join()
        assert statuses == [504]
        assert client.get(f"{server.url}/log").text == "['cancelled']"
    assert len(server.logged("Traceback|failed")) == 0


def test_a_drain_does_not_wait_for_it(server: Server, connect: Connect) -> None:
    start(server, ASGI, "--graceful-timeout", "30", multicore_request_timeout="2s")
    client = connect(server.port).send(request("/stuck"))
    time.sleep(0.5)
    began = time.monotonic()
    server.process.terminate()  # type: ignore[union-attr]  # it has been started
    assert client.answer().status == 504
    assert server.wait_exit() == 0
    assert time.monotonic() - began < 10


@protocols
def test_a_thread_goes_on_for_nobody(server: Server, connect: Connect, http: str) -> None:
    start(server, WSGI, "--threads", "2", "--access-logfile", "-", uvicorn_http=http)
    began = time.monotonic()
    client = connect(server.port).send(request("/stuck?1.2"))
    answer = client.answer()
    assert LIMIT <= time.monotonic() - began < LIMIT + EXACT
    assert (answer.status, answer.is_last) == (504, True)
    assert client.ends()
    server.wait_logged(
        r"request_timeout: GET /stuck, no response after 0.[5-7] s; answered 504, and its task is cancelled; "
        r"its thread goes on; it is here:"
    )
    wait_for(lambda: "in stuck" in server.log and "time.sleep(0.01)" in server.log)
    server.wait_logged(r'"GET /stuck\?1.2 HTTP/1.1" 504')
    wait_for(lambda: logged(server) == "['left']")
    assert connect(server.port).send(request("/brief")).answer().body == b"ok"


@protocols
@pytest.mark.parametrize("app", [ASGI, WSGI], ids=["asgi", "wsgi"])
def test_about_the_limit_each_request_has_one_response(
    server: Server, connect: Connect, http: str, app: str
) -> None:
    start(server, app, "--threads", "60", uvicorn_http=http)
    clients = []
    for number in range(50):
        seconds = LIMIT + (number - 20) * 0.005
        clients.append(connect(server.port).send(request(f"/about?{seconds:.3f}") + request("/log")))
    answers = [client.answer() for client in clients]
    assert {answer.status for answer in answers} == {200, 504}
    for client, answer in zip(clients, answers, strict=True):
        if answer.status == 200:
            assert (answer.body, client.answer().status) == (b"abcd", 200)
        else:
            assert client.ends()
    assert "Traceback" not in server.log


def test_a_request_for_which_no_thread_is_free(server: Server, connect: Connect) -> None:
    start(server, WSGI, "--threads", "2")
    clients = [connect(server.port).send(request("/stuck?1.2")) for _ in range(3)]
    assert [client.answer().status for client in clients] == [504] * 3
    wait_for(lambda: logged(server) == "['left', 'left']")  # the third one has never begun
    assert len(server.logged("; its thread goes on; it is here")) == 2


def test_a_streaming_wsgi_app_may_last(server: Server, connect: Connect) -> None:
    start(server, WSGI, "--threads", "2", multicore_request_timeout="1s")
    assert connect(server.port).send(request("/stream")).answer().body == b"abc"


def test_an_inline_app_is_ended_by_gunicorn_s_timeout(server: Server, connect: Connect) -> None:
    start(server, WSGI, "--timeout", "2")
    assert connect(server.port).send(request("/brief")).answer().body == b"ok"
    assert len(server.logged("request_timeout has no effect on a WSGI app that runs inline")) == 1
    client = connect(server.port).send(request("/stuck?1"))
    assert client.answer().body == b"late"
    connect(server.port).send(request("/stuck"))
    server.wait_logged(r"in progress: GET /stuck for")
    assert "request_timeout:" not in server.log


# --- slow_request ---


def slow(server: Server, app: str, *options: str, **env: str) -> Server:
    return start(
        server, app, *options, multicore_request_timeout="none", multicore_slow_request="300ms", **env
    )


@protocols
def test_a_slow_request_is_named_while_it_runs_and_when_it_ends(
    server: Server, connect: Connect, http: str
) -> None:
    slow(server, ASGI, uvicorn_http=http)
    assert connect(server.port).send(request("/slow?secret")).answer().body == b"slow"
    assert connect(server.port).send(request("/")).answer().body == b"ok"
    running = server.wait_logged(
        r"instance=0 gen=1 pid=\d+ slow request: GET /slow, no response after 0\.[3-6] s"
    )
    assert running[0].endswith("; it is here:")
    assert re.search(r'it is here:\n  File ".*app.py", line \d+, in app\n', server.log)
    ended = server.wait_logged(r"instance=0 gen=1 pid=\d+ slow request: GET /slow, answered 200 after 1.[01]")
    assert (len(running), len(ended), len(server.logged("slow request"))) == (1, 1, 2)
    assert "secret" not in server.log


@protocols
def test_a_slow_request_s_time_in_the_queue_is_named(server: Server, connect: Connect, http: str) -> None:
    slow(server, ASGI, uvicorn_http=http)
    start = f"X-Request-Start: t={time.time() - 7:.3f}"
    assert connect(server.port).send(request("/slow", start)).answer().body == b"slow"
    server.wait_logged(
        r"slow request: GET /slow, no response after 0\.[3-6] s and 7\.\d s in the queue; it is"
    )
    server.wait_logged(r"slow request: GET /slow, answered 200 after 1.[01] s and 7\.\d s in the queue$")


def test_so_is_what_the_kernel_knows(server: Server, connect: Connect) -> None:
    slow(server, ASGI)
    blocking = connect(server.port).send(request("/blocks/for-long"))
    server.wait_logged("slow request: GET /blocks/for-long, no response")  # what comes now waits for its end
    waiting = connect(server.port).send(request("/slow"))
    assert (blocking.answer().body, waiting.answer().body) == (b"blocks", b"slow")
    server.wait_logged(r"slow request: GET /slow, answered 200 after 1.[01] s and [01]\.\d s in the queue$")


def test_a_stream_is_not_slow(server: Server, connect: Connect) -> None:
    slow(server, ASGI)
    assert connect(server.port).send(request("/stream")).answer().body == b"abc"
    assert connect(server.port).send(request("/brief")).answer().body == b"brief"
    server.wait_logged("slow request: GET /brief, answered")
    assert "/stream" not in server.log


def test_a_blocked_loop_s_request_is_named_meanwhile(server: Server, connect: Connect) -> None:
    slow(server, ASGI)
    assert connect(server.port).send(request("/blocks")).answer().body == b"blocks"
    server.wait_logged("slow request: GET /blocks, answered 200 after 0.6")
    assert len(server.logged(r"slow request: GET /blocks, no response after 0\.[3-6] s; it is here:")) == 1
    assert re.search(r"it is here:\n  File .*, in app\n    time.sleep\(0.6\)", server.log)


@pytest.mark.parametrize("threads", ["1", "2"], ids=["inline", "threads"])
@pytest.mark.parametrize("access", [(), ("--access-logfile", "-")], ids=["direct", "logged"])
def test_a_slow_wsgi_app(server: Server, connect: Connect, threads: str, access: tuple[str, ...]) -> None:
    slow(server, WSGI, "--threads", threads, *access)
    assert connect(server.port).send(request("/stuck?0.6")).answer().body == b"late"
    server.wait_logged(r"slow request: GET /stuck, answered 200 after 0.[67]")
    assert len(server.logged(r"slow request: GET /stuck, no response after 0\.[3-6] s; it is here:")) == 1
    assert re.search(r"it is here:\n  File .*, in app\n.*\n  File .*, in stuck\n", server.log)
