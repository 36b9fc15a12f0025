"""How to watch connections move: the apps ``connections`` and ``connections_wsgi`` say who answers whom."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.apps import source
from tests.support.parsers import HAS_ZTTP
from tests.support.raw_client import Connection, request
from tests.support.server import Server
from tests.support.waiting import wait_for

BIG = 60_000_000  # bytes that /big answers with

APP = source("connections")
WSGI = source("connections_wsgi")
APPS = {"asgi": APP, "wsgi": WSGI}
ENGINES = {
    "uvloop": {"UVICORN_LOOP": "uvloop", "UVICORN_HTTP": "httptools"},
    "asyncio": {"UVICORN_LOOP": "asyncio", "UVICORN_HTTP": "h11"},
    **({"zttp": {"UVICORN_HTTP": "zttp"}} if HAS_ZTTP else {}),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the app has seen of a request, and whether its response was the last."""

    pid: int
    client: tuple[str, int]
    path: str
    is_last: bool
    body: str


def answer(connection: Connection) -> Seen:
    got = connection.answer()
    assert got.status == 200
    fields = got.headers
    host, port = fields["x-client"].split()
    return Seen(int(fields["x-pid"]), (host, int(port)), fields["x-path"], got.is_last, got.body.decode())


def ask(connection: Connection, path: str = "/") -> Seen:
    return answer(connection.send(request(path)))


def stays(connection: Connection, path: str = "/") -> Seen:
    """Ask over a connection that is to be the same one still, as both ends see it."""
    seen = ask(connection, path)
    assert not seen.is_last
    assert seen.client == connection.socket.getsockname()
    return seen


def wait_moved(connection: Connection, old: int) -> int:
    """The next request may be there before it has moved; then it is answered by ``old`` once more."""
    return wait_for(lambda: pid if (pid := stays(connection).pid) != old else 0, "it moves")


def wait_drained(server: Server, pid: int) -> str:
    return server.wait_logged(rf"pid={pid} (exited|was killed)")[0]
