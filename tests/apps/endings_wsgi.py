"""As ``endings.py``, as far as a WSGI app can."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def failing() -> Iterator[bytes]:
    yield b"some"
    raise RuntimeError("the app's mistake, halfway")


def endless() -> Iterator[bytes]:
    try:
        while True:
            yield b"part" * 100
            time.sleep(0.01)
    finally:
        print("left", flush=True)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    streams = {"/raise-late": failing, "/stream": lambda: [b"part"] * 5, "/endless": endless}
    if path == "/raise":
        raise RuntimeError("the app's mistake")
    if path == "/silent":
        return []
    if path in streams:
        start_response("200 OK", [])
        return streams[path]()
    if path == "/sleep":
        print("sleeping", flush=True)
        time.sleep(float(query))
    status = query if path == "/status" else "200"
    start_response(status + " Status", [] if status == "204" else [("Content-Length", "2")])
    return [] if status == "204" or environ["REQUEST_METHOD"] == "HEAD" else [b"ok"]
