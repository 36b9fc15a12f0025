"""From gunicorn's configuration to uvicorn's: whose headers count, what is logged, what is said."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config as GunicornConfig
from gunicorn.glogging import Logger
from uvicorn import Config

from multicore_server.connections.protocol import MovableProtocol
from multicore_server.logs import JsonFormatter
from multicore_server.settings.table import SettingError
from multicore_server.worker import engine
from multicore_server.worker.proxied import Proxied
from multicore_server.worker.wsgi_errors import WsgiErrors


async def app(scope: Any, receive: Any, send: Any) -> None: ...


def wsgi(environ: Any, start_response: Any) -> Any: ...


def gunicorn_config(**settings: Any) -> GunicornConfig:
    cfg = GunicornConfig()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


@pytest.fixture(autouse=True)
def _no_uvicorn_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UVICORN_HTTP", "UVICORN_LOOP", "UVICORN_INTERFACE"):
        monkeypatch.delenv(name, raising=False)


class Log:
    error_log = logging.getLogger("tests.engine")
    access = Logger.access


def make(target: Any = app, overrides: dict[str, Any] | None = None, **settings: Any) -> tuple[Config, str]:
    cfg = gunicorn_config(**settings)
    made = engine.make_config(cfg, Log(), target, overrides or {}, lambda inner, _: inner)
    return made.config, made.interface


# --- the configuration


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_uvicorns_protocols_are_movable(http: str) -> None:
    config, interface = make(overrides={"http": http})
    assert interface == "asgi3"
    assert issubclass(config.http_protocol_class, MovableProtocol)
    assert engine.about_protocol(config) == ""


def test_a_protocol_that_is_not_known_is_named_in_one_line() -> None:
    config, _ = make(overrides={"http": asyncio.Protocol})
    assert engine.about_protocol(config) == (
        "multicore_server does not know the HTTP protocol asyncio.protocols.Protocol: it is served, "
        "its requests are not counted, and its connections end with their worker"
    )


def test_gunicorns_settings_are_the_weakest_and_the_overrides_the_strongest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UVICORN_ROOT_PATH", "/environment")
    assert make()[0].root_path == "/environment"
    assert make(root_path="/gunicorn")[0].root_path == "/gunicorn"
    assert make(root_path="/gunicorn", overrides={"root_path": "/override"})[0].root_path == "/override"


def test_keepalive_0_closes_each_connection() -> None:
    assert (b"connection", b"close") in make(keepalive=0)[0].encoded_headers
    assert (b"connection", b"close") not in make(keepalive=2)[0].encoded_headers


def test_a_wsgi_app_has_no_lifespan_and_no_websockets() -> None:
    config, interface = make(wsgi)
    assert (interface, config.lifespan, config.ws_protocol_class) == ("wsgi", "off", None)


def test_an_asgi_2_app_is_adapted() -> None:
    def two(scope: Any) -> Any: ...

    config, interface = make(two, {"interface": "asgi2"})
    assert (interface, config.interface, config.asgi_version) == ("asgi2", "asgi2", "2.0")


def test_an_app_whose_interface_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="UVICORN_INTERFACE"):
        make(lambda *_: None)


def test_a_bad_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_HTTP", "none-such")
    with pytest.raises(SettingError, match="UVICORN_HTTP"):
        make()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, True),
        ({"proxy_headers": True}, True),
        ({"proxy_headers": False}, False),
        ({"proxy_headers": "x-forwarded"}, True),
        ({"proxy_headers": "none"}, False),
        ({"no_proxy_headers": True}, False),
        ({"no_proxy_headers": False}, True),
    ],
)
def test_proxy_headers_are_wanted_unless_an_option_says_no(options: dict[str, Any], wanted: bool) -> None:
    assert engine._wants_proxy_headers(options) is wanted
    assert options == {}


# --- the access log


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, False),
        ({"accesslog": "-"}, True),
        ({"logconfig_dict": {"version": 1}}, True),
        ({"syslog": True}, True),
        ({"syslog": True, "disable_redirect_access_to_syslog": True}, False),
    ],
)
def test_the_access_log_is_written_where_gunicorn_would(settings: dict[str, Any], wanted: bool) -> None:
    log = Logger.__new__(Logger)
    assert engine.wants_access_log(gunicorn_config(**settings), log) is wanted


def test_a_logger_class_with_an_access_of_its_own_is_always_asked() -> None:
    class Own(Logger):  # type: ignore[misc]  # gunicorn has no types
        def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None: ...

    assert engine.wants_access_log(gunicorn_config(), Own.__new__(Own))


# --- wsgi.errors


def test_wsgi_errors_go_where_the_error_log_goes() -> None:
    logger = logging.Logger("errors")
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    errors = WsgiErrors(logger)
    assert errors.writable()
    assert errors.write("text") == 4
    logger.handlers[0].stream = reopened = io.StringIO()  # type: ignore[attr-defined]  # a StreamHandler
    errors.write("more")
    assert (stream.getvalue(), reopened.getvalue()) == ("text", "more")


def test_wsgi_errors_go_to_stderr_where_the_log_has_no_stream(capsys: pytest.CaptureFixture[str]) -> None:
    WsgiErrors(logging.Logger("errors")).write("text")
    assert capsys.readouterr().err == "text"


def test_wsgi_errors_are_records_where_the_error_log_is_json() -> None:
    logger = logging.Logger("errors")
    stream, raw = io.StringIO(), io.StringIO()
    logger.handlers = [logging.StreamHandler(stream), logging.StreamHandler(raw)]
    logger.handlers[0].setFormatter(JsonFormatter())
    errors = WsgiErrors(logger)
    for text in ("a ", "line\nand", " another\n\n", "begun"):
        errors.write(text)
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(it["message"], it["logger"], it["level"]) for it in said] == [
        ("a line", "wsgi.errors", "error"),
        ("and another", "wsgi.errors", "error"),
    ]
    assert raw.getvalue() == "a line\nand another\n\nbegun"


# --- the client's address


def address(client: Any, trusted: Any, *headers: tuple[bytes, bytes]) -> tuple[Any, str]:
    """What an app sees of a request from this peer."""
    found: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        found.append((scope["client"], scope["scheme"]))

    scope = {"type": "http", "client": client, "scheme": "http", "headers": list(headers)}
    asyncio.run(engine._plain(Proxied(inner, trusted))(scope, None, None))
    seen: tuple[Any, str] = found[0]
    return seen


CHAIN = (b"x-forwarded-for", b"6.6.6.6, 10.0.0.9")


@pytest.mark.parametrize("client", [None, ("127.0.0.1", 5)])
@pytest.mark.parametrize(
    ("trusted", "chain", "seen"),
    [
        ("127.0.0.1", b"6.6.6.6, 10.0.0.9", "10.0.0.9"),
        ("127.0.0.1,10.0.0.0/8", b"6.6.6.6, 10.0.0.9", "6.6.6.6"),
        ("127.0.0.1,10.0.0.0/8", b"1.1.1.1, 6.6.6.6, 10.0.0.9", "6.6.6.6"),
        ("127.0.0.1", b"6.6.6.6", "6.6.6.6"),
        ("127.0.0.1,*", b"6.6.6.6", "6.6.6.6"),
        ("*", b"6.6.6.6, 10.0.0.9", "6.6.6.6"),
    ],
)
def test_a_unix_sockets_chain_is_walked_as_any_other(
    client: Any, trusted: str, chain: bytes, seen: str
) -> None:
    assert address(client, trusted, (b"x-forwarded-for", chain))[0][0] == seen


def test_a_unix_socket_is_trusted_without_any_list() -> None:
    assert address(None, "", CHAIN, (b"x-forwarded-proto", b"https")) == (("10.0.0.9", 0), "https")


def test_several_fields_are_one_chain() -> None:
    two = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"10.0.0.9")]
    assert address(None, "127.0.0.1", *two)[0][0] == "10.0.0.9"


def test_a_peer_that_is_not_trusted_is_not_believed() -> None:
    assert address(("9.9.9.9", 5), "127.0.0.1", CHAIN) == (("9.9.9.9", 5), "http")


def test_without_proxy_headers_nothing_changes() -> None:
    assert address(None, "127.0.0.1") == (None, "http")


# --- what the arbiter imports ahead

AHEAD = """
import json, sys
from gunicorn.config import Config
from multicore_server.worker.engine import import_ahead
before = set(sys.modules)
import_ahead(Config(), json.loads(sys.argv[1]))
print(json.dumps(sorted(sys.modules.keys() - before)))
"""


def imported_ahead(overrides: dict[str, Any], environ: dict[str, str]) -> set[str]:
    command = [sys.executable, "-c", AHEAD, json.dumps(overrides)]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_what_every_worker_would_import_is_imported_ahead() -> None:
    found = imported_ahead({}, {})
    assert {"uvloop", "websockets", "uvicorn.loops.uvloop", "uvicorn.protocols.http.auto"} <= found


def test_what_this_configuration_does_not_use_is_not() -> None:
    assert not {"uvloop", "websockets"} & imported_ahead({"ws": "none"}, {"UVICORN_LOOP": "asyncio"})


@pytest.mark.parametrize("name", ["http", "ws", "loop"])
def test_what_the_user_has_named_is_left_to_the_worker(tmp_path: Path, name: str) -> None:
    (tmp_path / "theirs.py").write_text("class Theirs: ...")
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    found = imported_ahead({name: "theirs:Theirs"}, environ)
    assert found
    assert "theirs" not in found


def test_what_cannot_be_imported_is_the_workers_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn.loops.auto", None)
    monkeypatch.setitem(sys.modules, "uvicorn.protocols.websockets.auto", None)
    engine.import_ahead(gunicorn_config(), {"http": ["not", "a", "name"]})
