"""gunicorn's raw requests, right and wrong ones, sent to our server: run by `python -m tests.peers gunicorn`.

What each of them means stands beside it. gunicorn's parser asks for no Host field; RFC 9112 does, so one is
added where there is none.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_raw_requests import everything, statuses
from tests.support.addresses import LOCAL
from tests.support.server import Server
from tests.support.waiting import wait_for

TESTS = Path(os.environ["PEERS_SOURCES"]) / "tests"
QUIET = 0.4  # seconds in which nothing comes any more
PARSERS = ("httptools", "h11")
sys.path.append(str(TESTS))
treq: Any = importlib.import_module("treq")

VALID = sorted((TESTS / "requests" / "valid").glob("*.http"))
INVALID = sorted((TESTS / "requests" / "invalid").glob("*.http"))
HOST = b"Host: added\r\n"
ANNOUNCED = rb"(?:PROXY [^\r\n]*\r\n)?"
HEAD = re.compile(rb"(?:(?<=\r\n\r\n)|^)(" + ANNOUNCED + rb"[^\r\n]* HTTP/1\.1\r\n)((?:[^\r\n]+\r\n)*\r\n)")

ServerFor = Callable[[str, dict[str, Any]], Server]


@pytest.fixture(scope="session")
def server_for(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFor]:
    """A server with this parser and these settings; the same one each time."""
    servers: dict[str, Server] = {}

    def make(parser: str, settings: dict[str, Any]) -> Server:
        key = f"{parser} {sorted(settings.items())}"
        if key not in servers:
            source = (Path(__file__).parent / "witness.py").read_text()
            server = servers[key] = Server(tmp_path_factory.mktemp("raw"), source)
            server.write("gunicorn.conf.py", "".join(f"{name} = {settings[name]!r}\n" for name in settings))
            environment = {"UVICORN_HTTP": parser, "UVICORN_LOOP": os.environ["PEERS_LOOP"]}
            server.start("-w", "1", "--keep-alive", "60", env=environment, ready=1)
        return servers[key]

    yield make
    for server in servers.values():
        server.end()


def settings_of(env: dict[str, Any]) -> dict[str, Any]:
    """Those that a request is to be sent with, and that are not gunicorn's defaults."""
    found = env["cfg"].settings.items()
    return {
        name: it.get() for name, it in found if name != "http_parser" and it.get() != type(it).default
        and isinstance(it.get(), str | int | bool)
    }  # fmt: skip


def with_host(data: bytes, heads: int) -> bytes:
    """In so many heads of HTTP/1.1 at most: what looks like one may be a body."""

    def add(match: re.Match[bytes]) -> bytes:
        has = b"\r\nhost:" in (b"\r\n" + match[2]).lower()
        return match[1] + (b"" if has else HOST) + match[2]

    return HEAD.sub(add, data, count=heads) if heads else data


def became(server: Server, data: bytes) -> tuple[list[str], bool, list[dict[str, Any]]]:
    """The statuses of the answers, whether the connection was closed, and what the app has seen."""
    with socket.create_connection((LOCAL, server.port), 10) as connection:
        port = connection.getsockname()[1]
        with contextlib.suppress(OSError):  # refused half-way
            connection.sendall(data)
        said, closed = all_of(connection)
    return statuses(said), closed, seen_by(server, port)


def seen_by(server: Server, port: int) -> list[dict[str, Any]]:
    """Asked for with the least that a request is made of: some servers have narrow limits."""
    with socket.create_connection((LOCAL, server.port), 10) as connection:
        connection.sendall(b"GET /seen?%d HTTP/1.0\r\n\r\n" % port)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    seen: list[dict[str, Any]] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return seen


def all_of(connection: socket.socket) -> tuple[bytes, bool]:
    """What comes until there is nothing more for a while, and whether that is the end."""
    said = b""
    while True:
        try:
            found = wait_for(lambda: some(connection), "more", QUIET)
        except AssertionError:
            return said, False
        assert found is not None
        more, closed = found
        said += more
        if closed:
            return said, True


def some(connection: socket.socket) -> tuple[bytes, bool] | None:
    more, closed = everything(connection)
    return (more, closed) if more or closed else None


@pytest.mark.parametrize("path", VALID, ids=lambda it: it.stem)
@pytest.mark.parametrize("parser", PARSERS)
def test_valid(server_for: ServerFor, parser: str, path: Path) -> None:
    env = treq.load_py(str(path.with_suffix(".py")))
    request = treq.request(str(path), env["request"])
    heads = sum(each["version"] == (1, 1) for each in request.expect)
    answers, _, seen = became(server_for(parser, settings_of(env)), with_host(request.data, heads))
    assert not (what := differences(answers, seen, request.expect)), what


def differences(answers: list[str], seen: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    """In one line; empty where the app has seen what was meant."""
    found = [] if answers == ["200"] * len(wanted) else [f"answers {answers}"]
    for ours, theirs in zip(map(told, seen), map(expected, wanted), strict=False):
        names = (name for name in ours if ours[name] != theirs[name])
        found += [f"{name} {ours[name]!r} and not {theirs[name]!r}" for name in names]
    return "; ".join(found)


def told(seen: dict[str, Any]) -> dict[str, Any]:
    headers = [(name, value) for name, value in seen["headers"] if [name, value] != ["host", "added"]]
    return {
        **{name: seen[name] for name in ("method", "path", "query", "version", "body")},
        "headers": headers,
    }


def expected(request: dict[str, Any]) -> dict[str, Any]:
    uri = request["uri"]
    return {
        "method": request["method"],
        "path": uri["path"],
        "query": uri["query"],
        "version": ".".join(map(str, request["version"])),
        "body": decoded(request["body"]),
        "headers": [(name.lower(), value) for name, value in request["headers"]],
    }


def decoded(body: bytes | str) -> str:
    return body if isinstance(body, str) else body.decode("latin-1")


@pytest.mark.parametrize("path", INVALID, ids=lambda it: it.stem)
@pytest.mark.parametrize("parser", PARSERS)
def test_invalid(server_for: ServerFor, parser: str, path: Path) -> None:
    """It is refused, or its rest is waited for, also where the app was asked before that."""
    env = treq.load_py(str(path.with_suffix(".py")))
    data = with_host(treq.badrequest(str(path)).data, heads=9)
    answers, closed, seen = became(server_for(parser, settings_of(env)), data)
    assert not answers or answers[-1] >= "400", f"the app has seen {seen}"
    assert closed or not answers
