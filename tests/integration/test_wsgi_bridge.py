"""The WSGI bridge under a real uvicorn.Server, and real frameworks on it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path

import httpx
import pytest

from multicore_server.worker.interface import detect
from tests.support.addresses import free_port
from tests.support.waiting import PATIENCE, wait_for

SERVE = """
import sys
import uvicorn
from multicore_server.wsgi.bridge import WSGIBridge
import app

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print("serving", flush=True)

port, threads, http, loop = sys.argv[1:]
bridge = WSGIBridge(app.app, threads=int(threads), spool_dirs=["."])
config = uvicorn.Config(
    bridge, port=int(port), http=http, loop=loop, lifespan="off", interface="asgi3",
    timeout_graceful_shutdown=1,
)
Server(config).run()
"""

APP = '''
import itertools, os, pathlib, time
from wsgiref.validate import validator

TEXT = [("Content-Type", "text/plain")]

class Closing:
    def __init__(self, blocks):
        self.blocks = blocks
    def __iter__(self):
        return iter(self.blocks)
    def close(self):
        pathlib.Path("closed").touch()

def failing():
    yield b"begun"
    raise RuntimeError("boom in the middle")

def steps():
    """One block per file that the test makes."""
    for step in itertools.count():
        yield b"step %d\\n" % step
        go = pathlib.Path(f"go{step}")
        while not (go.exists() and go.read_text()):  # a file is there before what is written to it
            time.sleep(0.01)
        if go.read_text() == "end":
            return

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fails":
        raise RuntimeError("boom at once")
    start_response("200 OK", TEXT)
    if path == "/steps":
        return steps()
    if path == "/endless":
        return Closing(itertools.repeat(b"x" * 10_000))
    if path == "/failing":
        return Closing(failing())
    if path == "/body":
        source = environ["wsgi.input"]
        data = source.read(int(environ["CONTENT_LENGTH"]))
        return [f"{len(data)} {sum(data)}".encode()]
    return [b"hello"]

checked = validator(application)

def app(environ, start_response):
    # Not what fails or is cut short on purpose: the validator wants to see every end.
    validated = environ["PATH_INFO"] in ("/body", "/steps", "/checked")
    return (checked if validated else application)(environ, start_response)
'''


class Served:
    """A uvicorn.Server with the bridge around an app, in a process of its own."""

    def __init__(self, directory: Path, app: str, threads: int, http: str, loop: str) -> None:
        self.directory = directory
        self.port = free_port()
        (directory / "app.py").write_text(app)
        (directory / "serve.py").write_text(SERVE)
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "serve.py", str(self.port), str(threads), http, loop],
                cwd=directory,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=log,
            )

        self.opened: list[HTTPConnection] = []

    def wait_ready(self) -> Served:
        wait_for(lambda: "serving" in self.log or self.process.poll() is not None, "the server")
        assert self.process.poll() is None, self.log
        return self

    def end(self) -> None:
        for connection in self.opened:
            connection.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        print(f"--- log ---\n{self.log}")  # pytest shows it on failure only

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def ask(self, method: str, path: str, body: bytes | Iterator[bytes] | None = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        self.opened.append(connection)
        connection.request(method, path, body)
        return connection.getresponse()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE)

    def connect(self, request: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(request)
        return connection


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    started: list[Served] = []

    def start(app: str = APP, threads: int = 1, http: str = "httptools", loop: str = "uvloop") -> Served:
        started.append(Served(tmp_path, app, threads, http, loop))
        return started[-1].wait_ready()

    yield start
    for served in started:
        served.end()


@pytest.fixture(
    params=[(1, "httptools", "uvloop"), (1, "h11", "asyncio"), (4, "httptools", "uvloop")],
    ids=["inline", "inline-h11-asyncio", "threads"],
)
def served(request: pytest.FixtureRequest, serve: Serve) -> Served:
    threads, http, loop = request.param
    return serve(threads=threads, http=http, loop=loop)


def test_responses(served: Served) -> None:
    response = served.get("/")
    assert (response.status_code, response.text, response.headers["content-length"]) == (200, "hello", "5")

    assert served.get("/checked").text == "hello"

    head = served.ask("HEAD", "/")
    assert (head.status, head.read(), head.headers["content-length"]) == (200, b"", "5")

    streamed = served.ask("GET", "/steps")
    # The first block is here before the app is allowed to go on to the second.
    assert streamed.readline() == b"step 0\n"
    (served.directory / "go0").write_text("on")
    assert streamed.readline() == b"step 1\n"
    (served.directory / "go1").write_text("end")
    assert streamed.read() == b""


def test_request_bodies(served: Served) -> None:
    big = b"\x01" * 3_000_000
    expected = b"3000000 3000000"
    assert served.ask("POST", "/body", big).read() == expected
    assert served.ask("POST", "/body", iter([big[:1_000_000]] * 3)).read() == expected  # chunked
    assert served.ask("POST", "/body", b"").read() == b"0 0"


def test_100_continue(served: Served) -> None:
    head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    with served.connect(head) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"\x01\x01\x01")
        received = b""
        while b"3 3" not in received:
            block = connection.recv(1000)
            assert block, received
            received += block


def test_failures(served: Served) -> None:
    response = served.get("/fails")
    assert (response.status_code, response.headers["connection"]) == (500, "close")
    wait_for(lambda: "boom at once" in served.log, "the traceback")
    assert served.log.count("Error handling request GET /fails") == 1

    cut = served.ask("GET", "/failing")
    assert cut.status == 200
    with pytest.raises(IncompleteRead):
        cut.read()
    assert "boom in the middle" in served.log
    assert (served.directory / "closed").exists()


@pytest.mark.parametrize("reads", [True, False])
def test_an_endless_response_ends_with_its_client(served: Served, reads: bool) -> None:
    """The client leaves while blocks flow; or while the app waits for it, since it reads nothing."""
    connection = served.connect(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    if reads:
        assert connection.recv(1000)
    connection.close()
    wait_for((served.directory / "closed").exists, "close()")
    assert served.get("/").text == "hello"  # and the next request has its turn


def test_other_requests_go_on_beside_a_thread(serve: Serve) -> None:
    served = serve(threads=4)
    streamed = served.ask("GET", "/steps")
    assert streamed.readline() == b"step 0\n"
    assert served.get("/").text == "hello"
    (served.directory / "go0").write_text("end")
    assert streamed.read() == b""


DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(
    ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
)
django.setup()
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

class Word(models.Model):
    text = models.TextField()
    class Meta:
        app_label = "words"

with connection.schema_editor() as editor:
    editor.create_model(Word)
connection.close()

def words(request):
    Word.objects.create(text="word")
    return HttpResponse(f"{Word.objects.count()} words")

def stream(request):
    return StreamingHttpResponse(f"{word.text};" for word in Word.objects.all().iterator())

async def asynchronous(request):
    return HttpResponse(f"{await Word.objects.acount()} words")

urlpatterns = [path("words", words), path("stream", stream), path("async", asynchronous)]
app = get_wsgi_application()
"""


@pytest.mark.parametrize("threads", [1, 4])
def test_django(serve: Serve, threads: int) -> None:
    served = serve(DJANGO, threads)
    assert [served.get("/words").text for _ in range(3)] == ["1 words", "2 words", "3 words"]
    assert served.get("/stream").text == "word;word;word;"
    assert served.get("/async").text == "3 words"


FLASK = """
import asyncio
from flask import Flask
app = Flask(__name__)

@app.get("/async")
async def asynchronous():
    await asyncio.sleep(0.001)
    return "from an async view"

@app.get("/run")
def run():
    return asyncio.run(answer())

async def answer():
    await asyncio.sleep(0.001)
    return "from a loop of the view's own"
"""


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_flask(serve: Serve, threads: int, loop: str) -> None:
    served = serve(FLASK, threads, loop=loop)
    for _ in range(3):
        assert served.get("/async").text == "from an async view"
        assert served.get("/run").text == "from a loop of the view's own"
    served.process.terminate()  # the loop that the view ran has not taken the signals with it
    wait_for(lambda: served.process.poll() is not None, "the end")
    assert "Finished server process" in served.log


def test_interfaces_of_frameworks() -> None:
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from fastapi import FastAPI
    from flask import Flask
    from starlette.applications import Starlette
    from starlette.middleware.gzip import GZipMiddleware

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # litestar's own, at import
        from litestar import Litestar

    # Not constructed, those that would want settings for this whole process.
    bare = (ASGIHandler.__new__(ASGIHandler), Litestar.__new__(Litestar))
    for app in (FastAPI(), Starlette(), GZipMiddleware(Starlette()), *bare):
        assert detect(app) == "asgi3", app
    assert detect(Flask(__name__)) == "wsgi"
    assert detect(WSGIHandler.__new__(WSGIHandler)) == "wsgi"
    assert detect(Starlette) == "factory"
