"""The WSGI bridge's environ and request bodies."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from multicore_server.connections.known_heads import Known
from multicore_server.wsgi.bridge import WSGIBridge
from multicore_server.wsgi.environ import _KEYS, FORWARDED, Forwarded, environ
from tests.unit.wsgi_client import OK, TEXT, Client, both, call, hello, scope

# environ


def test_environ_is_complete_and_a_copy_each_time() -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        return hello(environ, start_response)

    errors = io.StringIO()
    bridge = WSGIBridge(app, errors=errors)

    async def main() -> None:
        for _ in range(2):
            client = Client()
            await bridge(scope(query_string=b"x=%20\xe9"), client.receive, client.send)

    asyncio.run(main())
    first, second = seen
    assert first is not second
    assert first["wsgi.errors"] is errors
    assert first["wsgi.input"].closed  # once the request is over
    assert {key: value for key, value in first.items() if not key.startswith(("wsgi.", "SERVER_SOFT"))} == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a",
        "QUERY_STRING": "x=%20\xe9",
        "RAW_URI": "/a?x=%20\xe9",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "10.0.0.9",
        "REMOTE_PORT": "4321",
        "HTTP_HOST": "example.org",
    }
    flags = ("multithread", "multiprocess", "run_once", "input_terminated", "version", "url_scheme")
    assert [first["wsgi." + flag] for flag in flags] == [False, True, False, True, (1, 0), "http"]
    assert first["SERVER_SOFTWARE"].startswith("gunicorn/")  # whose worker this is: apps sniff it


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "another connection": {"client": ("192.0.2.1", 1), "server": ("192.0.2.2", 2), "scheme": "https"},
    "a unix socket": {"client": None, "server": ("/run/app.sock", None)},
    "fields were dropped": {"headers": [(b"host", b"example.org")]},
    "a proxy has mounted it": {
        "root_path": "/a", "path": "/a", FORWARDED: Forwarded(frozenset({b"script_name"}), "/a")
    },
}  # fmt: skip


@pytest.mark.parametrize("first", CHANGES)
@pytest.mark.parametrize("second", CHANGES)
def test_a_head_that_has_come_before_makes_the_same_environ(first: str, second: str) -> None:
    headers = [(b"host", b"example.org"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"script_name", b"/a")]
    scopes = [scope(**{"headers": list(headers), **CHANGES[change]}) for change in (first, second)]
    bridge, known = WSGIBridge(hello), Known(scope(headers=headers, asgi={}), keep_alive=True)
    expected = [bridge.environ(each) for each in scopes]
    for _ in range(2):
        made = [bridge.environ(each, known) for each in scopes]
        assert made == expected
        made[0].clear()  # it is the app's


def test_half_of_an_environ_is_not_kept() -> None:
    bridge, known = WSGIBridge(hello, script_name="/\udcff"), Known(scope(asgi={}), keep_alive=True)
    for _ in range(3):
        with pytest.raises(UnicodeEncodeError):
            bridge.environ(scope(), known)


def test_of_a_known_head_its_part_of_the_environ_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, known = WSGIBridge(hello), Known(scope(asgi={}), keep_alive=True)
    expected = bridge.environ(scope(), known)
    monkeypatch.setattr(WSGIBridge, "_add_request", None)
    assert bridge.environ(scope(), known) == expected


@pytest.mark.parametrize(
    ("raw", "root", "expected"),
    [
        (b"/caf%C3%A9", "", ("", "/caf\xc3\xa9", "/caf%C3%A9")),
        (b"/%ff%2Fx", "", ("", "/\xff/x", "/%ff%2Fx")),
        (b"/api/x", "/api", ("/api", "/x", "/x")),  # uvicorn put the root path there
        (b"http://h/x", "", ("", "/x", "/x")),  # h11 leaves the absolute form
        (b"http://h", "", ("", "/", "/")),
        (b"*", "", ("", "*", "*")),
    ],
)
def test_paths(raw: bytes, root: str, expected: tuple[str, str, str]) -> None:
    env = environ(scope(raw_path=raw, root_path=root))
    assert (env["SCRIPT_NAME"], env["PATH_INFO"], env["RAW_URI"]) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/mnt/x", "/x"),  # the proxy passes the prefix on
        (b"/x", "/x"),  # the proxy takes it off
        (b"/mnt", ""),
        (b"/mnty", "/mnty"),
    ],
)
def test_script_name(raw: bytes, expected: str) -> None:
    env = environ(scope(raw_path=raw), script_name="/mnt")
    assert (env["SCRIPT_NAME"], env["PATH_INFO"]) == ("/mnt", expected)


def test_without_raw_path() -> None:
    request = scope(path="/caf\xe9")
    del request["raw_path"]
    assert environ(request)["PATH_INFO"] == "/caf\xc3\xa9"


def test_headers() -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", b"3"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"x-twice", b"3"),
        (b"cookie", b"a=1"),
        (b"cookie", b"b=2"),
        (b"x_real_ip", b"faked"),
        (b"x-latin", b"\xe9"),
    ]
    env = environ(scope(headers=headers))
    assert (env["CONTENT_TYPE"], env["CONTENT_LENGTH"]) == ("text/plain", "3")
    assert env["HTTP_X_TWICE"] == "1,2,3"
    assert env["HTTP_COOKIE"] == "a=1; b=2"
    assert env["HTTP_X_LATIN"] == "\xe9"
    assert "HTTP_X_REAL_IP" not in env
    assert environ(scope(headers=headers), drop_underscores=False)["HTTP_X_REAL_IP"] == "faked"


def test_made_up_header_names_are_not_kept_for_ever() -> None:
    environ(scope(headers=[(b"x-%d" % number, b"") for number in range(2000)]))
    assert len(_KEYS[True]) <= 512


@pytest.mark.parametrize(
    ("server", "host", "scheme", "expected"),
    [
        (("/run/s.sock", None), b"example.org:81", "http", ("example.org", "81")),
        (("/run/s.sock", None), b"[::1]", "https", ("[::1]", "443")),
        (None, b"", "http", ("localhost", "80")),
        (("::1", 8000), b"example.org", "http", ("::1", "8000")),
    ],
)
def test_unix_sockets(server: Any, host: bytes, scheme: str, expected: tuple[str, str]) -> None:
    env = environ(scope(server=server, client=None, scheme=scheme, headers=[(b"host", host)]))
    assert (env["SERVER_NAME"], env["SERVER_PORT"]) == expected
    assert env["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in env
    assert env.get("HTTPS") == ("on" if scheme == "https" else None)


# request bodies


def reading(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    data = environ["wsgi.input"].read(-1)
    start_response(OK, TEXT)
    return [f"{type(environ['wsgi.input']).__name__} {environ['CONTENT_LENGTH']} ".encode(), data]


@both
def test_bodies(threads: int, tmp_path: Path) -> None:
    chunked = scope("POST", headers=[(b"transfer-encoding", b"chunked")])
    assert call(reading, chunked, Client(b"ab", b"", b"cd"), threads=threads).body == b"BytesIO 4 abcd"
    pieces = [b"x" * 600_000] * 4
    client = call(reading, chunked, Client(*pieces), threads=threads, spool_dirs=[str(tmp_path)])
    assert not client.body.startswith(b"BytesIO 2400000")
    assert client.body.endswith(b" 2400000 " + b"x" * 2_400_000)


def test_receive_is_not_called_without_a_body() -> None:
    for headers in ([], [(b"content-length", b"0")]):
        assert call(hello, scope(headers=headers)).received == 0
    assert call(hello, scope(http_version="2"), Client(b"")).received == 1


def test_a_client_that_leaves_with_its_body() -> None:
    client = Client()
    client.left.set()
    request = scope("POST", headers=[(b"content-length", b"5")])
    assert call(lambda *_: pytest.fail("called"), request, client).messages == []
