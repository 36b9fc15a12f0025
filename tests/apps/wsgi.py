"""A WSGI app that answers in every way that PEP 3333 allows."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.validate import validator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TEXT = [("Content-Type", "text/plain")]
barrier = threading.Barrier(2)


class Closing:
    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.blocks)

    def close(self) -> None:
        Path("closed").touch()


def failing() -> Iterator[bytes]:
    yield b"begun"
    raise RuntimeError("after the headers")


def held() -> Iterator[bytes]:
    """One block for each file that the test makes, and a flood when it wants one."""
    for number in range(100_000):
        while not Path(f"step{number}").exists() and not Path("flood").exists():
            time.sleep(0.01)
        yield b"block" * (2000 if Path("flood").exists() else 1)


def steps() -> Iterator[bytes]:
    """One block, and one more for each file that the test makes."""
    for step in itertools.count():
        yield b"step %d\n" % step
        go = Path(f"go{step}")
        while not (go.exists() and go.read_text()):  # a file is there before what is written to it
            time.sleep(0.01)
        if go.read_text() == "end":
            return


STREAMS: dict[str, Callable[[], Iterable[bytes]]] = {
    "/late": lambda: Closing(failing()),
    "/stream": lambda: Closing(held()),
    "/steps": steps,
    "/endless": lambda: Closing(itertools.repeat(b"x" * 10_000)),
}


def upload(environ: WSGIEnvironment) -> bytes:
    """The hash of the body."""
    return hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()


def body_sum(environ: WSGIEnvironment) -> bytes:
    data = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return f"{len(data)} {sum(data)}".encode()


def meet(environ: WSGIEnvironment) -> bytes:
    """Two requests at once, or never."""
    barrier.wait(5)
    return b"met"


ANSWERS: dict[str, Callable[[WSGIEnvironment], bytes]] = {
    "/upload": upload,
    "/body": body_sum,
    "/meet": meet,
    "/thread": lambda environ: threading.current_thread().name.encode(),
}


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise RuntimeError("before the headers")
    body = ANSWERS[path](environ) if path in ANSWERS else b"hello"
    if path == "/pid":
        body = str(os.getpid()).encode()
        start_response("200 OK", [*TEXT, ("Content-Length", str(len(body)))])
        return [body]
    write = start_response("200 OK", TEXT)
    if path == "/write":
        write(b"written ")
        write(b"directly ")
        return [b"and returned"]
    return STREAMS[path]() if path in STREAMS else [body]


checked = validator(application)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    # Not what fails or is cut short on purpose: the validator wants to see every end.
    validated = environ["PATH_INFO"] in ("/body", "/steps", "/checked")
    return (checked if validated else application)(environ, start_response)
