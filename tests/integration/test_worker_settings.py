"""gunicorn's settings and uvicorn's environment variables, as the worker obeys them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.apps import SCOPE, source
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for


def lines_of(server: Server, name: str, count: int) -> list[str]:
    """The lines of a file that the server writes, when there are so many."""
    path = server.directory / name

    def read() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        return lines if len(lines) >= count else []

    return wait_for(read, f"{count} lines in {name}")


def file_with(server: Server, name: str, text: str) -> str:
    """What a file that the server writes holds, when this text is in it."""
    path = server.directory / name

    def read() -> str:
        found = path.read_text() if path.exists() else ""
        return found if text in found else ""

    return wait_for(read, f"{text!r} in {name}")


# --- uvicorn's environment variables ---


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, {"loop": "uvloop", "http": "uvicorn.protocols.http.httptools_impl", "asgi": "3.0"}),
        ({"UVICORN_LOOP": "asyncio"}, {"loop": "asyncio.unix_events"}),
        ({"UVICORN_HTTP": "h11"}, {"http": "uvicorn.protocols.http.h11_impl"}),
        ({"UVICORN_ROOT_PATH": "/sub"}, {"root_path": "/sub", "path": "/sub/"}),
        ({"UVICORN_PROXY_HEADERS": "0"}, {"scheme": "http"}),
        ({"UVICORN_PROXY_HEADERS": "1"}, {"scheme": "https"}),
    ],
)
def test_uvicorn_environment(make_server: MakeServer, env: dict[str, str], expected: dict[str, Any]) -> None:
    server = make_server(SCOPE).start("-w", "1", env=env, ready=1)
    seen = server.get(headers={"x-forwarded-proto": "https"}).json()
    assert seen | expected == seen


def test_headers_that_uvicorn_adds(make_server: MakeServer) -> None:
    plain = make_server(SCOPE).start("-w", "1", ready=1)
    headers = plain.get().headers
    assert headers["server"] == "uvicorn"
    assert "date" in headers
    env = {"UVICORN_HEADERS": "X-A:1 X-B:b:c", "UVICORN_SERVER_HEADER": "0", "UVICORN_DATE_HEADER": "false"}
    server = make_server(SCOPE).start("-w", "1", env=env, ready=1)
    headers = server.get().headers
    assert (headers["x-a"], headers["x-b"]) == ("1", "b:c")
    assert "server" not in headers
    assert "date" not in headers


def test_gunicorns_names_for_uvicorns_options(make_server: MakeServer) -> None:
    options = ["--asgi-loop", "asyncio", "--root-path", "/sub", "--asgi-lifespan", "off"]
    server = make_server(SCOPE).start("-w", "1", *options, ready=1)
    seen = server.get().json()
    assert (seen["loop"], seen["root_path"]) == ("asyncio.unix_events", "/sub")


def test_a_bad_value_stops_the_start(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", env={"UVICORN_WS_MAX_SIZE": "big"})
    assert server.wait_exit() == 1
    assert server.logged("UVICORN_WS_MAX_SIZE: .*'big' is not a valid integer")


def test_lifespan_on_without_lifespan_is_a_failed_boot(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", env={"UVICORN_LIFESPAN": "on"})
    assert server.wait_exit() == 3
    assert server.logged("no worker could boot: the app's lifespan startup failed")
    assert server.logged("NotImplementedError")


def test_config_kwargs_of_a_subclass(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    server.write(
        "mine.py",
        "from multicore_server import Worker\n"
        "class MyWorker(Worker):\n"
        "    CONFIG_KWARGS = {'loop': 'asyncio', 'http': 'h11', 'headers': [('X-Mine', '1')],\n"
        "                     'timeout_keep_alive': 9, 'forwarded_allow_ips': '10.0.0.1'}\n",
    )
    server.start("-k", "mine.MyWorker", "-w", "1", env={"UVICORN_LOOP": "uvloop"}, ready=1)
    answer = server.get(headers={"x-forwarded-proto": "https"})
    seen = answer.json()
    assert (seen["loop"], seen["http"]) == ("asyncio.unix_events", "uvicorn.protocols.http.h11_impl")
    assert (answer.headers["x-mine"], seen["scheme"]) == ("1", "http")


# --- connections ---


def test_keepalive(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(SCOPE).start("-w", "1", "--keep-alive", "1", ready=1)
    connection = connect(server.port)
    for _ in range(2):
        assert not connection.send(request()).answer().is_last
    assert connection.ends()


def test_keepalive_0_closes(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(SCOPE).start("-w", "1", "--keep-alive", "0", ready=1)
    connection = connect(server.port)
    assert connection.send(request()).answer().is_last
    assert connection.ends()


@pytest.mark.parametrize(("options", "status"), [(["--worker-connections", "2"], 503), ([], 200)])
def test_worker_connections(
    make_server: MakeServer, connect: Connect, options: list[str], status: int
) -> None:
    server = make_server(SCOPE).start("-w", "1", *options, ready=1)
    waiting = [connect(server.port).send(request("/wait")) for _ in range(2)]
    assert connect(server.port).send(request()).answer().status == status
    server.write("release", "")
    assert [connection.answer().status for connection in waiting] == [200, 200 if status == 200 else 503]


def test_backlog(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", "--backlog", "7", ready=1)
    port = f":{server.port:04X}"
    wait_for(lambda: backlog_of(server.port) == 7, f"a backlog of 7 on {port}")


def backlog_of(port: int) -> int:
    listing = subprocess.run(["ss", "-ltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return int(listing.stdout.splitlines()[1].split()[2])


@pytest.mark.parametrize(
    ("allowed", "scheme", "client"),
    [(None, "https", "10.9.8.7"), ("127.0.0.0/8", "https", "10.9.8.7"), ("10.0.0.1", "http", "127.0.0.1")],
)
def test_forwarded_allow_ips(make_server: MakeServer, allowed: str | None, scheme: str, client: str) -> None:
    options = ["--forwarded-allow-ips", allowed] if allowed else []
    server = make_server(SCOPE).start("-w", "1", *options, ready=1)
    seen = server.get(headers={"x-forwarded-proto": "https", "x-forwarded-for": "10.9.8.7"}).json()
    assert (seen["scheme"], seen["client"][0]) == (scheme, client)


# --- logs ---

COMBINED = r'127\.0\.0\.1 - - \[.*\] "GET /a\?b=c HTTP/1\.1" 200 \d+ "-" "python-httpx/.*"'


def test_access_log(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", "--access-logfile", "-", ready=1)
    server.get("/a?b=c")
    server.wait_logged(COMBINED)


def test_access_log_format(make_server: MakeServer) -> None:
    form = "%(h)s %(m)s %(U)s %(q)s %(s)s %({x-a}i)s %({content-type}o)s"
    server = make_server(SCOPE)
    server.start("-w", "1", "--access-logfile", "access.log", "--access-logformat", form, ready=1)
    server.get("/a?b=c", headers={"x-a": "1"})
    assert lines_of(server, "access.log", 1) == ["127.0.0.1 GET /a b=c 200 1 application/json"]


def test_usr1_reopens_the_logs(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    server.start("-w", "1", "--access-logfile", "access.log", "--log-file", "error.log", ready=None)
    file_with(server, "error.log", "ready after")
    server.get("/before")
    lines_of(server, "access.log", 1)
    for name in ("access.log", "error.log"):
        (server.directory / name).rename(server.directory / f"{name}.1")
    server.signal(signal.SIGUSR1)

    def reopened() -> bool:
        server.get("/after")
        path = server.directory / "access.log"
        return path.exists() and bool(path.read_text())

    wait_for(reopened, "the access log is reopened")
    server.get("/raise")
    file_with(server, "error.log", "the app's mistake")
    assert "/raise" not in (server.directory / "access.log.1").read_text()


def test_the_error_log_gets_the_apps_traceback(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", "--error-logfile", "error.log")
    file_with(server, "error.log", "ready after")
    assert server.get("/raise").status_code == 500
    file_with(server, "error.log", "RuntimeError: the app's mistake")
    assert server.log == ""


NOTE = quote("print('noted by', environ['PATH_INFO'], file=environ['wsgi.errors'])")


def test_the_error_log_gets_what_a_wsgi_app_writes_to_it(make_server: MakeServer) -> None:
    server = make_server(source("ask_wsgi")).start("-w", "1", "--error-logfile", "error.log")
    file_with(server, "error.log", "ready after")
    server.get(f"/before?{NOTE}")
    file_with(server, "error.log", "noted by /before\n")
    (server.directory / "error.log").rename(server.directory / "error.log.1")
    server.signal(signal.SIGUSR1)
    wait_for((server.directory / "error.log").exists)
    wait_for(
        lambda: (
            server.get(f"/after?{NOTE}") and "noted by /after" in (server.directory / "error.log").read_text()
        )
    )


def test_capture_output(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", "--error-logfile", "error.log", "--capture-output")
    file_with(server, "error.log", "ready after")
    server.get("/print")
    file_with(server, "error.log", "said by the app")
    assert "said by the app" not in server.log


def test_log_level_debug_shows_uvicorns_own(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start("-w", "1", "--log-level", "debug", ready=1)
    server.wait_logged("Application startup|ASGI 'lifespan' protocol appears unsupported")


def test_logconfig_dict(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"mine": {"format": "MINE %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "mine.log", "formatter": "mine"}},
        "root": {"level": "INFO", "handlers": ["file"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
            "gunicorn.access": {"level": "INFO", "handlers": [], "propagate": True},
        },
    }
    server.write("gunicorn.conf.py", f"logconfig_dict = {config!r}\nerrorlog = None\n")
    server.start("-w", "1")
    file_with(server, "mine.log", "ready after")
    server.get("/raise")
    text = file_with(server, "mine.log", "the app's mistake")
    assert re.search(r"MINE ERROR uvicorn\.error Exception in ASGI application", text)
    assert re.search(r'MINE INFO gunicorn\.access .* "GET /raise HTTP/1.1" 500', text)


# --- hooks ---


@pytest.mark.parametrize(
    ("number", "of_worker"),
    [
        (signal.SIGTERM, ["worker_exit"]),
        (signal.SIGQUIT, ["worker_int", "worker_exit"]),
        (signal.SIGABRT, ["worker_abort", "worker_exit"]),
    ],
)
def test_hooks(make_server: MakeServer, number: signal.Signals, of_worker: list[str]) -> None:
    server = make_server(SCOPE)
    server.write("gunicorn.conf.py", source("hooks"))
    server.start("-w", "1", ready=1)
    arbiter, worker = server.pid, server.worker_of(0)
    os.kill(worker, number)
    server.wait_ready(2)
    wait_for(lambda: f"child_exit {arbiter} 1 {worker}" in lines_of(server, "hooks.log", 1))
    second = server.worker_of(0)
    server.signal(signal.SIGTERM)
    server.wait_exit()
    called = lines_of(server, "hooks.log", 1)
    assert [line for line in called if line.endswith(f" 1 {worker}")] == [
        f"post_fork {worker} 1 {worker}",
        f"post_worker_init {worker} 1 {worker}",
        *(f"{hook} {worker} 1 {worker}" for hook in of_worker),
        f"child_exit {arbiter} 1 {worker}",
    ]
    ends = ["on_starting", "when_ready", "on_exit"]
    assert [line for line in called if line.split()[0] in ends] == [f"{hook} {arbiter}" for hook in ends]
    assert called[2].startswith(f"pre_fork {arbiter} 1 ")
    assert f"worker_exit {second} 2 {second}" in called


# --- warnings ---


def test_a_default_start_warns_of_nothing(make_server: MakeServer) -> None:
    server = make_server(SCOPE).start(ready=1)
    server.get()
    assert server.logged(r"\[(WARNING|ERROR|CRITICAL)\]|[Ww]arning") == []


def test_what_is_perhaps_not_meant_is_said_in_one_line_each(server: Server) -> None:
    server.write("conf.py", "timeot = 40\nmin_uptime = 1000\nAPP_NAME = 'mine'\n")
    server.start("-w", "2", "-c", "conf.py", ready=2)
    unit, typo = server.logged("WARNING")
    assert re.search(r"timeot \(in the config .*conf\.py\) is not a setting: did you mean timeout\?$", typo)
    assert "min_uptime" in unit
    assert unit.endswith("if these are PM2's milliseconds, give 1000ms, otherwise 1000s")


def test_what_has_no_effect_is_said_in_one_line_each(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    server.write("gunicorn.conf.py", "casefold_http_method = True\nstrip_header_spaces = True\n")
    server.start("-w", "2", "--threads", "3", ready=2)
    server.get()
    server.signal(signal.SIGTERM)
    server.wait_exit()
    warnings = server.logged("WARNING")
    assert len(warnings) == 3, warnings
    for name in ("threads", "casefold_http_method", "strip_header_spaces"):
        assert sum(f" {name} " in line and "has no effect" in line for line in warnings) == 1


def test_threads_of_a_wsgi_app_warn_of_nothing(make_server: MakeServer) -> None:
    server = make_server(source("ask_wsgi")).start("-w", "1", "--threads", "3", ready=1)
    assert json.loads(server.get("/?environ['wsgi.multithread']").text) is True
    assert not server.logged("WARNING")
