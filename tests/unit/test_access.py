"""The access log: every atom that gunicorn's documentation of access_log_format names."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from multicore_server.logs import JsonFormatter
from multicore_server.worker.access import AccessLog
from multicore_server.worker.loggers import writes_json
from multicore_server.worker.unlogged import Unlogged
from multicore_server.wsgi.bridge import WSGIBridge
from tests.unit.wsgi_client import Client, scope

ASGI = Callable[[Any, Any, Any], Awaitable[None]]


class Recorded(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's logger, with the lines kept."""

    def __init__(self, access_log_format: str, accesslog: str | None = "-") -> None:
        cfg = Config()
        cfg.set("accesslog", accesslog)
        cfg.set("access_log_format", access_log_format)
        super().__init__(cfg)
        self.lines: list[str] = []
        self.access_log = self
        self.disabled = False

    def info(self, message: str, atoms: Any) -> None:
        self.lines.append(message % atoms)


def answer(status: int = 200, *bodies: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> ASGI:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def logged(form: str, app: Any = None, request: Any = None, client: Client | None = None) -> str:
    """Return the one line that a request gave."""
    log = Recorded(form)
    served = client or Client()

    async def main() -> None:
        await AccessLog(app or answer(200, b"hello"), log)(request or scope(), served.receive, served.send)

    with suppress(ZeroDivisionError):  # what the apps here raise
        asyncio.run(main())
    assert len(log.lines) == 1
    line: str = log.lines[0]
    return line


BASIC = b"Basic " + b64encode(b"ann:secret")
REQUEST = scope(
    "POST",
    query_string=b"q=1",
    raw_path=b"/caf%C3%A9",
    headers=[
        (b"host", b"example.org"),
        (b"referer", b"http://from/"),
        (b"user-agent", b'a "quoted" agent'),
        (b"authorization", BASIC),
        (b"x-asked", b"yes"),
    ],
)


@pytest.mark.parametrize(
    ("atom", "expected"),
    [
        ("h", r"10\.0\.0\.9"),
        ("l", "-"),
        ("u", "ann"),
        ("t", r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"),
        ("r", r"POST /caf%C3%A9\?q=1 HTTP/1\.1"),
        ("m", "POST"),
        ("U", "/caf\xc3\xa9"),
        ("q", "q=1"),
        ("H", r"HTTP/1\.1"),
        ("s", "201"),
        ("b", "8"),
        ("B", "8"),
        ("f", "http://from/"),
        ("a", r'a \\"quoted\\" agent'),
        ("T", "0"),
        ("D", r"\d+"),
        ("M", r"\d+"),
        ("L", r"0\.\d{6}"),
        ("p", r"<\d+>"),
        ("{x-asked}i", "yes"),
        ("{X-Asked}i", "yes"),
        ("{x-given}o", "gift"),
        ("{server_name}e", r"127\.0\.0\.1"),
        ("{x-none}i", "-"),
    ],
)
def test_atoms(atom: str, expected: str) -> None:
    app = answer(201, b"four", b"more", headers=[(b"X-Given", b"gift")])
    assert re.fullmatch(expected, logged(f"%({atom})s", app, REQUEST))


def test_the_default_format() -> None:
    cfg = Config()
    line = logged(cfg.access_log_format)
    assert re.fullmatch(r'10\.0\.0\.9 - - \[.*\] "GET /a HTTP/1\.1" 200 5 "-" "-"', line)


def test_an_environ_variable_that_a_wsgi_app_set() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["REMOTE_USER"] = "bob"
        environ["REMOTE_ADDR"] = "faked"
        start_response("200 OK", [])
        return [b"x"]

    assert logged("%({remote_user}e)s %({wsgi.url_scheme}e)s %(h)s", WSGIBridge(app)) == "bob http 10.0.0.9"


def test_the_peer_is_the_one_that_connected() -> None:
    async def proxied(scope: Any, receive: Any, send: Any) -> None:
        scope["client"] = ("192.0.2.1", 0)
        await answer(200)(scope, receive, send)

    assert logged("%(h)s", proxied) == "10.0.0.9"


def test_duration_is_to_the_last_body_event() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(200)(scope, receive, send)
        assert log.lines == ["200"]  # before the work that the app does afterwards

    log = Recorded("%(s)s")
    client = Client()
    asyncio.run(_serve(AccessLog(app, log), client))
    assert log.lines == ["200"]


async def _serve(app: ASGI, client: Client) -> None:
    await app(scope(), client.receive, client.send)


async def raises_at_once(scope: Any, receive: Any, send: Any) -> None:
    raise ZeroDivisionError


async def raises_in_the_middle(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"12345", "more_body": True})
    raise ZeroDivisionError


async def forgets(scope: Any, receive: Any, send: Any) -> None:
    pass


async def learns_that_the_client_left(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "http.disconnect"


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (raises_at_once, "500 21"),
        (raises_in_the_middle, "200 5"),
        (forgets, "500 21"),
        (answer(299), "299 0"),
        (WSGIBridge(lambda environ, start_response: 1 / 0), "500 21"),  # type: ignore[arg-type, return-value]
    ],
)
def test_failures(app: Any, expected: str) -> None:
    assert logged("%(s)s %(b)s", app) == expected


@pytest.mark.parametrize("app", [learns_that_the_client_left])
def test_a_client_that_left_unanswered(app: Any) -> None:
    client = Client()
    client.left.set()
    assert logged("%(s)s %(b)s", app, client=client) == "499 0"


class Cycle(Client):
    """uvicorn's cycle: after a disconnect it drops what it is given to send."""

    disconnected = True


@pytest.mark.parametrize("app", [answer(200, b"unseen"), raises_at_once, forgets])
def test_what_uvicorn_dropped_is_not_logged_as_sent(app: Any) -> None:
    assert logged("%(s)s %(b)s", app, client=Cycle()) == "499 0"


def test_head_has_no_body() -> None:
    assert logged("%(s)s %(b)s", answer(200, b"hello"), scope("HEAD")) == "200 0"


def test_websockets_lifespan_and_a_log_that_is_off_pass_through() -> None:
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append((receive, send))

    async def main() -> None:
        for log, request in (
            (Recorded("x"), {"type": "websocket"}),
            (Recorded("x"), {"type": "lifespan"}),
            (Off("x", None), scope()),
        ):
            client = Client()
            await AccessLog(app, log)(request, client.receive, client.send)
            assert passed.pop() == (client.receive, client.send)
            assert log.lines == []

    asyncio.run(main())


class Off(Recorded):
    access_log_enabled = False  # as gunicorn 26 has it; before, access() looked by itself


class Counting(Recorded):
    """As gunicorn's statsd logger: more happens in access() than the line."""

    access_log_enabled = False
    seen: tuple[Any, ...] = ()

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        self.seen = (resp.status, resp.status_code, req.method, req.uri, req.path, req.query, req.version)


def test_a_logger_class_of_its_own_is_always_called() -> None:
    log = Counting("x", None)
    asyncio.run(_serve(AccessLog(answer(200), log), Client()))
    assert log.seen == ("200 OK", 200, "GET", "/a", "/a", "", (1, 1))


# --- access_log_skip


@pytest.mark.parametrize(
    ("path", "root", "admitted"),
    [
        ("/healthz", "", False),
        ("/healthz/", "", True),
        ("/static/a.css", "", False),
        ("/static/", "", False),
        ("/static", "", True),
        ("/api/healthz", "/api", False),
        ("/api/healthz", "", True),
        ("/", "", True),
    ],
)
def test_paths_that_are_not_logged(path: str, root: str, admitted: bool) -> None:
    unlogged = Unlogged(["/healthz", "/static/*"])
    request = scope(path=path, raw_path=path.encode(), root_path=root)
    log, passed = Recorded("%(U)s"), Passed()

    async def main() -> None:
        client = Client()
        await AccessLog(passed, log, unlogged=unlogged)(request, client.receive, client.send)
        assert (passed.send == client.send) is not admitted  # nothing is noted of them either

    asyncio.run(main())
    assert bool(log.lines) is admitted
    target = f"{path.removeprefix(root)}?a=b"
    args = ("127.0.0.1:5", "GET", target, "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "", args, None)
    assert unlogged.admits(record) is ({"path": target[:-4]} not in unlogged)


class Passed:
    """An app that keeps what it was given to send with."""

    send: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.send = send
        await answer(200)(scope, receive, send)


def test_what_is_not_logged_is_counted_and_hooked() -> None:
    """By a logger class of its own, statsd say, and by hooks."""

    class Statsd(Recorded):
        counted = 0

        def access(self, *about: Any) -> None:
            self.counted += 1
            super().access(*about)

    log, called = Statsd("x"), []
    hooks: Any = SimpleNamespace(before=lambda _: None, after=lambda *_: called.append(1))
    asyncio.run(_serve(AccessLog(answer(200), log, hooks, Unlogged(["/a"])), Client()))
    assert (log.counted, log.disabled, called) == (1, False, [1])
    written = logging.getLogger("gunicorn.access")
    written.addHandler(kept := Kept())
    log.access_log = written  # type: ignore[assignment]  # as gunicorn's own has it
    asyncio.run(_serve(AccessLog(answer(200), log, None, Unlogged(["/a"])), Client()))
    assert (log.counted, kept.lines) == (2, [])


# --- JSON


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


def logged_as_json(log: Logger, request: Any, **how: Any) -> dict[str, Any]:
    kept = Kept()
    log.access_log.handlers = [kept]
    assert writes_json(log)
    app = answer(201, b"four", b"more")
    asyncio.run(AccessLog(app, log, **how)(request, Client().receive, Client().send))
    (line,) = kept.lines
    return line


def test_the_fields_of_a_request() -> None:
    """The same of gunicorn's atoms and without them."""
    cfg = Config()
    cfg.set("accesslog", "-")
    log = Logger(cfg)
    lines = {how: logged_as_json(log, dict(REQUEST), as_fields=how) for how in (True, False)}
    for how, line in lines.items():
        request = {
            "client": "10.0.0.9", "user": "ann", "method": "POST", "path": "/caf%C3%A9", "query": "q=1",
            "protocol": "HTTP/1.1", "status": 201, "bytes": 8, "referer": "http://from/",
            "user_agent": 'a "quoted" agent', "level": "info", "logger": "gunicorn.access",
        }  # fmt: skip
        assert request.items() <= line.items(), how
        assert 0 < line["duration"] < 1
    assert lines[True]["message"] == "POST /caf%C3%A9 201"
    assert lines[False]["message"].startswith("10.0.0.9 - ann [")
    headers = [field for field in REQUEST["headers"] if field[0] != b"authorization"]
    bare = scope(headers=headers[:1])
    first, second = (logged_as_json(log, dict(bare), as_fields=how) for how in (True, False))
    assert first.keys() == second.keys()
    assert not {"user", "query", "referer", "user_agent"} & first.keys()


def test_a_logger_class_of_its_own_makes_its_own_line() -> None:
    cfg = Config()
    cfg.set("accesslog", "-")

    class Own(Logger):  # type: ignore[misc]  # gunicorn has no types
        def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
            self.access_log.info("mine %s", resp.status)

    line = logged_as_json(Own(cfg), scope(), as_fields=True)
    assert line["message"] == "mine 201 Created"
