"""`metrics_path`: one path is passed on to the monitor, the rest goes to the app untouched."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from multicore_server.worker import metrics_path
from multicore_server.worker.metrics_path import MetricsPath


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the app's own"})


def ask(socket_path: Path, path: str = "/metrics", method: str = "GET", **headers: str) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(MetricsPath(app, "/metrics", str(socket_path)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(asked())


@contextlib.contextmanager
def answering(path: Path, *parts: bytes, hold: threading.Event | None = None) -> Iterator[list[bytes]]:
    """Somebody at the monitor's socket who sends this to whoever comes; the requests that came."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                requests.append(connection.recv(65536))
                for part in parts:
                    connection.sendall(part)
                if hold is not None:
                    hold.wait(20)

        thread = threading.Thread(target=answer)
        thread.start()
        yield requests
        if hold is not None:
            hold.set()
        thread.join()


GOOD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: 4\r\n",
    b"Server: secret\r\nVary: accept\r\nConnection: close\r\n\r\n",
    b"a 1\n",
)


def test_the_answer_is_the_monitors(tmp_path: Path) -> None:
    with answering(tmp_path / "s", *GOOD) as requests:
        answer = ask(tmp_path / "s", accept="text/plain", cookie="session=secret", authorization="secret")
    assert (answer.status_code, answer.content) == (200, b"a 1\n")
    assert dict(answer.headers) == {
        "content-type": "text/plain; version=0.0.4",
        "content-length": "4",
        "vary": "accept",
    }
    assert requests[0].startswith(b"GET /metrics HTTP/1.0\r\n")
    assert b"accept: text/plain\r\n" in requests[0]
    assert b"secret" not in requests[0]


def test_many_clients_ask_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four hundred of them used up the monitor's connections."""
    asking, most = 0, 0

    async def slow(self: MetricsPath, scope: Any) -> metrics_path.MonitorResponse:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0.001)
        asking -= 1
        return metrics_path.MonitorResponse(200, [], b"a 1\n")

    monkeypatch.setattr(MetricsPath, "_ask", slow)

    async def all_of_them() -> list[int]:
        transport = httpx.ASGITransport(MetricsPath(app, "/metrics", str(tmp_path / "s")))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answers = await asyncio.gather(*(client.get("/metrics") for _ in range(400)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(all_of_them()) == [200] * 400
    assert most == metrics_path.MOST_AT_ONCE


def test_head(tmp_path: Path) -> None:
    with answering(tmp_path / "s", *GOOD):
        answer = ask(tmp_path / "s", method="HEAD")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "4")


def test_another_status_is_passed_on(tmp_path: Path) -> None:
    with answering(tmp_path / "s", b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno"):
        answer = ask(tmp_path / "s")
    assert (answer.status_code, answer.content) == (500, b"no")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/metrics/"),
        ("GET", "/metrics/x"),
        ("POST", "/metrics"),
        ("OPTIONS", "/metrics"),
    ],
)
def test_everything_else_is_the_apps(tmp_path: Path, method: str, path: str) -> None:
    assert ask(tmp_path / "none", path, method).content == b"the app's own"


def test_what_the_app_is_called_with_is_untouched() -> None:
    passed: list[Any] = []

    def plain(*arguments: Any) -> str:
        passed.extend(arguments)
        return "what the app returns"

    arguments: list[Any] = [{"type": "lifespan"}, object(), object()]
    middleware = MetricsPath(plain, "/metrics", "/none")
    returned: Any = middleware(*arguments)
    assert returned == "what the app returns"
    assert all(a is b for a, b in zip(passed, arguments, strict=True))
    websocket = {"type": "websocket", "path": "/metrics"}
    returned = middleware(websocket, None, None)
    assert returned == "what the app returns"


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"HTTP/1.1 200 OK\r\n",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\na 1\n",),  # cut short
        (b"HTTP/1.1 200 OK\r\n\r\na 1\n",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",),
        (b"SSH-2.0-OpenSSH\r\n\r\n",),
    ],
)
def test_half_an_answer_is_none(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    with answering(tmp_path / "s", *parts):
        answer = ask(tmp_path / "s")
    assert answer.status_code == 503
    assert answer.text == "the monitor does not answer: it is starting or has failed, see the log\n"


def test_without_a_monitor(tmp_path: Path) -> None:
    assert ask(tmp_path / "none").status_code == 503
    (tmp_path / "file").touch()
    assert ask(tmp_path / "file").status_code == 503


def test_a_monitor_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_path, "PATIENCE", 0.2)
    hold = threading.Event()
    with answering(tmp_path / "s", GOOD[0], hold=hold):
        assert ask(tmp_path / "s").status_code == 503
        hold.set()


def test_an_answer_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_path, "MAX_ANSWER", 1000)
    with answering(tmp_path / "s", GOOD[0] + b"\r\n" + b"x" * 5000):
        assert ask(tmp_path / "s").status_code == 503


def test_a_header_cannot_smuggle_another(tmp_path: Path) -> None:
    scope = {
        "type": "http", "method": "GET", "path": "/metrics",
        "headers": [(b"accept", b"a\r\nx: y"), (b"accept-encoding", b"g" * 5000), (b"accept", b"b")],
    }  # fmt: skip
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> None:
        raise AssertionError("there is nothing to receive")

    async def called() -> None:
        await MetricsPath(app, "/metrics", str(tmp_path / "s"))(scope, receive, send)

    with answering(tmp_path / "s", *GOOD) as requests:
        asyncio.run(called())
    assert requests == [b"GET /metrics HTTP/1.0\r\nhost: monitor\r\naccept: b\r\n\r\n"]
    assert sent[0]["status"] == 200
