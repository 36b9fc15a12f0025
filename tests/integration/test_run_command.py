"""``multicore-server run`` with real servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from multicore_server.machine.cpu import usable_cpus
from tests.support.apps import PLAIN, SCOPE
from tests.support.processes import processes_in
from tests.support.refused_start import BAD_SETTING, NO_BOOT
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE, wait_for

MODULE = [sys.executable, "-m", "multicore_server", "run"]
SCRIPT = [str(Path(sys.executable).parent / "multicore-server"), "run"]
USAGE = 2


def start(server: Server, *options: str, ready: int | None = 1, **more: Any) -> Server:
    address = [] if more.pop("elsewhere", False) else ["--port", str(server.port)]
    command = more.pop("command", MODULE)
    workers = [] if more.pop("workers", None) == "" else ["--workers", str(ready)]
    return server.start(*workers, *address, *options, command=command, bind="", ready=ready, **more)


def end(server: Server) -> int:
    server.signal(signal.SIGTERM)
    return server.wait_exit()


# --- options


@pytest.mark.smoke
def test_uvicorns_options(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    options = ["--http", "h11", "--loop", "asyncio", "--root-path", "/r", "--no-server-header"]
    options += ["--header", "X-A: b", "--no-proxy-headers", "--host", "localhost", "--no-access-log"]
    start(server, *options, ready=2)
    answer = server.get("/x", headers={"x-forwarded-proto": "https"})
    told = answer.json()
    assert (told["http"], told["loop"]) == ("uvicorn.protocols.http.h11_impl", "asyncio.unix_events")
    assert (told["root_path"], told["scheme"]) == ("/r", "http")
    assert answer.headers["x-a"] == "b"
    assert "server" not in answer.headers
    assert server.logged('"GET') == []
    assert end(server) == 0


def test_workers_max(server: Server) -> None:
    count = usable_cpus()
    start(server, "--workers", "max", workers="", ready=count, command=SCRIPT)
    assert len(server.workers()) == count
    server.get()
    assert server.wait_logged('"GET / HTTP/1.1" 200')  # the access log is on, as in uvicorn


def test_the_command_line_is_above_all_others(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    server.write("conf.py", "asgi_loop = 'uvloop'\nkeepalive = 9\nmax_restarts = 5\nbind = '127.0.0.1:1'\n")
    env = {
        "UVICORN_ACCESS_LOG": "0",
        "UVICORN_HTTP": "h11",
        "MULTICORE_MAX_RESTARTS": "nonsense",
        "UVICORN_LOOP": "uvloop",
    }
    start(server, "--config", "conf.py", "--loop", "asyncio", "--max-restarts", "3", env=env)
    told = server.get().json()
    assert (told["http"], told["loop"]) == ("uvicorn.protocols.http.h11_impl", "asyncio.unix_events")


def test_config_files(server: Server) -> None:
    """None is found by itself; one that is named may say what the command line does not."""
    server.write("gunicorn.conf.py", "raise RuntimeError('read')")
    server.write("conf.py", f"bind = '127.0.0.1:{server.port}'\naccesslog = None\n")
    start(server, "--config", "conf.py", elsewhere=True)
    assert server.get().status_code == 200
    assert server.logged('RuntimeError|"GET') == []


def test_gunicorns_settings_from_the_environment(make_server: MakeServer) -> None:
    """Weaker than the command line, stronger than UVICORN_* and the config file."""
    server = make_server(SCOPE)
    server.write("conf.py", "timeout = '1m'\ngraceful_timeout = '7s'\nkeepalive = 1\n")
    env = {
        "MULTICORE_CONFIG": "conf.py",
        "MULTICORE_BIND": f"127.0.0.1:{server.port}",
        "MULTICORE_TIMEOUT": "2m",
        "MULTICORE_MAX_REQUESTS": "1",
        "MULTICORE_ACCESSLOG": "access.log",
        "MULTICORE_ACCESS_LOG_FORMAT": "LINE %(m)s %(U)s",
        "MULTICORE_PRELOAD_APP": "true",
        "UVICORN_PORT": "1",
    }
    start(server, "--max-requests", "0", env=env, elsewhere=True)
    for _ in range(3):
        server.get("/x")
    assert not server.logged("no setting|not a setting|max_requests")
    wait_for(lambda: (server.directory / "access.log").read_text() == "LINE GET /x\n" * 3, "the access log")


def test_unix_socket(server: Server) -> None:
    start(server, "--uds", "s.sock", elsewhere=True)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.directory / "s.sock"))) as client:
        assert client.get("http://x/").status_code == 200
    assert end(server) == 0
    assert not (server.directory / "s.sock").exists()


def test_descriptor(server: Server) -> None:
    with socket.create_server(("127.0.0.1", server.port)) as listener:
        fd = listener.fileno()
        start(server, "--fd", str(fd), elsewhere=True, pass_fds=(fd,))
        assert server.get().status_code == 200


def test_tls(server: Server, ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    start(server, "--ssl-keyfile", "../key.pem", "--ssl-certfile", "../cert.pem", "--ssl-version", "17")
    answer = httpx.get(f"https://localhost:{server.port}/", verify=trusting, timeout=PATIENCE)
    assert answer.status_code == 200


def test_factory_and_app_dir(make_server: MakeServer) -> None:
    server = make_server("raise RuntimeError('the wrong one')")
    (server.directory / "inner").mkdir()
    (server.directory / "inner" / "app.py").write_text(PLAIN)
    start(server, "--app-dir", "inner", "--factory", app="app:make")
    assert server.get().text == "ok"


def test_environment_file(make_server: MakeServer) -> None:
    server = make_server(SCOPE)
    server.write("vars", "MULTICORE_METRICS_PATH=/m\nUVICORN_ROOT_PATH=/late\nWEB_CONCURRENCY=2\n")
    start(server, "--env-file", "vars", workers="", ready=2)
    assert server.get("/m").text.startswith("# HELP")
    assert server.get().json()["root_path"] == ""


def test_limits(server: Server) -> None:
    start(server, "--limit-max-requests", "3", "--timeout-keep-alive", "1", "--min-uptime", "0")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(PATIENCE)
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        while connection.recv(65536):  # until the idle connection is closed
            pass
    for _ in range(2):
        server.get()
    server.wait_logged("max_requests")
    server.wait_ready(2)


def test_pid_name_and_daemon(server: Server, ending: list[int]) -> None:
    start(server, "--daemon", "--pid", "pid", "--error-logfile", "err", ready=None, workers="")
    assert server.wait_exit() == 0
    pid = int((server.directory / "pid").read_text())
    ending.append(pid)
    assert "ready after" in (server.directory / "err").read_text()  # it has waited for that
    assert server.get().status_code == 200
    assert server.log == ""
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not (server.directory / "pid").exists(), "the end")


@pytest.mark.parametrize("log", [[], ["--error-logfile", "err"]])
@pytest.mark.parametrize(
    ("app", "options", "status", "said"),
    [
        ("import databse", [], NO_BOOT, "Reason: no worker could boot: no module named 'databse'|databse"),
        (PLAIN, ["--metrics-bind", "nonsense"], BAD_SETTING, "metrics_bind: 'nonsense' .* is not an address"),
        (PLAIN, ["--user", "root", "--pid", "no/pid"], BAD_SETTING, "cannot start|pid"),
        ("import os; os._exit(5)", ["--preload"], 1, "the server exited while it started"),
    ],
    ids=["no app", "a bad setting", "no pidfile", "a sudden end"],
)
def test_a_daemon_says_why_it_does_not_run(
    make_server: MakeServer, app: str, options: list[str], status: int, said: str, log: list[str]
) -> None:
    server = make_server(app)
    start(server, "--daemon", *options, *log, ready=None, workers="")
    assert server.wait_exit() == status
    assert server.logged(said)
    wait_for(lambda: processes_in(server.directory) == [], "the end of what was started")


def test_log_config(make_server: MakeServer) -> None:
    """uvicorn's file: its access lines in its form, and the server's own lines where uvicorn's would be."""
    server = make_server(PLAIN)
    from uvicorn.config import LOGGING_CONFIG

    config = json.loads(json.dumps(LOGGING_CONFIG))
    config["formatters"]["default"]["fmt"] = "MINE %(message)s"
    config["formatters"]["access"]["fmt"] = "ACCESS %(client_addr)s %(status_code)s"
    server.write("log.json", json.dumps(config))
    start(server, "--log-config", "log.json")
    server.get()
    assert server.wait_logged(r"^ACCESS 127.0.0.1:\d+ 200")
    assert server.logged("^MINE .* ready after")
    assert server.logged('"GET /') == []


def test_reload(make_server: MakeServer) -> None:
    server = make_server(PLAIN)
    start(server, "--reload", workers="")
    server.write("app.py", PLAIN.replace('b"ok"', 'b"OK"'))
    os.utime(server.directory / "app.py", (2e9, 2e9))
    wait_for(lambda: server.get().text == "OK", "the new code")


def test_from_python(make_server: MakeServer) -> None:
    """`multicore_server.run` takes uvicorn's names."""
    server = make_server(SCOPE)
    options = f"port={server.port}, http='h11', workers=1, headers=[('x-a', 'b')], timeout_keep_alive=3"
    program = f"import multicore_server\nmulticore_server.run('app:app', {options})\n"
    server.write("program.py", program)
    server.start(command=[sys.executable, "program.py"], bind="", app="", ready=1)
    answer = server.get()
    assert answer.json()["http"] == "uvicorn.protocols.http.h11_impl"
    assert answer.headers["x-a"] == "b"


# --- bad input


def refused(server: Server, status: int, said: str, *options: str, **more: Any) -> None:
    start(server, *options, ready=None, workers="", **more)
    assert server.wait_exit() == status
    assert len([line for line in server.log.splitlines() if said in line]) == 1
    assert "Traceback" not in server.log
    assert processes_in(server.directory) == []


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--uds", "s.sock", "--fd", "3"], USAGE, "--fd and --uds are two addresses; give one of them"),
        (["--max-memory-restart", "lots"], BAD_SETTING, "--max-memory-restart) is not a size; give"),
        (["--timeout", "-1"], USAGE, "'--timeout': '-1' is not a duration; give whole seconds"),
        (["--timeout", "soon"], USAGE, "'--timeout': 'soon' is not a duration; give whole seconds"),
        (["--check-config", "--min-uptime", "soon"], BAD_SETTING, "--min-uptime) is not a duration"),
        (["--fd", "77"], BAD_SETTING, "cannot listen on fd://77: Bad file descriptor"),
        (["--config", "missing.py"], BAD_SETTING, "missing.py' doesn't exist"),
        (["--ssl-certfile", "missing.pem"], BAD_SETTING, "'missing.pem' does not exist"),
    ],
)
def test_bad_options(server: Server, options: list[str], status: int, said: str) -> None:
    refused(server, status, said, *options)


def test_taken_port(server: Server) -> None:
    with socket.create_server(("127.0.0.1", server.port)):
        refused(server, BAD_SETTING, "the address is in use")


@pytest.mark.parametrize("app", ["app.py", "./app.py", "app", "app.py:app"])
def test_an_app_that_is_no_module_and_name(make_server: MakeServer, app: str) -> None:
    server = make_server(PLAIN)
    refused(server, USAGE, "give ", app=app)
    assert server.logged("Error: .*[; ]give .*app:app$")
    assert not server.logged("Starting|Shutting down")


def test_check_config(make_server: MakeServer) -> None:
    server = make_server(PLAIN)
    start(server, "--check-config", "--max-memory-restart", "80%", ready=None, workers="")
    assert server.wait_exit() == 0
    assert server.log == ""


@pytest.mark.parametrize("app", ["missing:app", "app:missing"])
def test_unknown_app(server: Server, app: str) -> None:
    refused(server, NO_BOOT, "Reason: no worker could boot", app=app)
