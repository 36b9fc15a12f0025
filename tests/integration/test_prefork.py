"""``uvicorn app:app --loop multicore_server:prefork``, with the real script."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.apps import source
from tests.support.processes import processes_in
from tests.support.refused_start import NO_BOOT
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

SCRIPT = [str(Path(sys.executable).parent / "uvicorn")]
MODULE = [sys.executable, "-m", "uvicorn"]
PREFORK = ("--loop", "multicore_server:prefork")
INSTEAD = "run instead: multicore-server run APP"


def start(server: Server, command: list[str], *options: str, ready: int = 2, **more: Any) -> Server:
    env = {"MULTICORE_WORKERS": str(ready), "UVICORN_PORT": str(server.port), **more.pop("env", {})}
    return server.start(*options, command=command, bind="", env=env, ready=ready, **more)


def in_workers(server: Server) -> list[dict[str, Any]]:
    """What the app has told there; uvicorn may import it too, before it asks for its loop."""
    told = [json.loads(line) for line in (server.directory / "imports").read_text().splitlines()]
    return [each for each in told if each["pid"] != server.pid]


@pytest.mark.smoke
def test_takes_the_place_of_the_script(make_server: MakeServer) -> None:
    server = make_server(source("scope", "tell_import"))
    start(
        server,
        SCRIPT,
        *PREFORK,
        "--no-access-log",
        "--root-path",
        "/sub",
        "--header",
        "X-Mine: yes",
        "--http=h11",
    )
    answer = server.get("/x")
    assert answer.json()["pid"] in server.workers()
    assert answer.json()["root_path"] == "/sub"
    assert answer.json()["http"] == "uvicorn.protocols.http.h11_impl"
    assert answer.json()["loop"] == "uvloop"  # auto
    assert answer.headers["x-mine"] == "yes"
    assert server.logged('"GET') == []
    assert server.process is not None
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert processes_in(server.directory) == []


def test_module_and_interpreter_flags(make_server: MakeServer) -> None:
    server = make_server(source("scope", "tell_import"))
    command = [sys.executable, "-OB", "-m", "uvicorn"]
    start(
        server,
        command,
        "--loop=multicore_server:prefork",
        env={"PYTHONDONTWRITEBYTECODE": ""},
    )
    assert server.get().status_code == 200
    assert len(in_workers(server)) == 2
    assert all(told["flags"] == [True, 1] for told in in_workers(server))
    assert server.wait_logged('"GET / HTTP/1.1" 200')  # the access log is on, as in uvicorn


def test_named_by_the_environment(make_server: MakeServer) -> None:
    """There is no second take-over, and none in a worker. MULTICORE_WORKERS is above UVICORN_WORKERS."""
    server = make_server(source("scope", "tell_import"))
    start(server, SCRIPT, env={"UVICORN_LOOP": "multicore_server:prefork", "UVICORN_WORKERS": "1"})
    assert server.get().json()["loop"] == "uvloop"
    server.signal(signal.SIGHUP)
    server.wait_ready(4)
    assert server.get().json()["loop"] == "uvloop"


def test_descriptor(server: Server) -> None:
    with socket.create_server(("127.0.0.1", server.port)) as listener:
        fd = listener.fileno()
        start(server, MODULE, *PREFORK, "--fd", str(fd), ready=1, pass_fds=(fd,))
        assert server.get().status_code == 200


def test_environment_file(make_server: MakeServer) -> None:
    """For the app, once; uvicorn has read its own variables before."""
    server = make_server(source("scope", "tell_import"))
    server.write("vars", "MINE=first\nUVICORN_ROOT_PATH=/late\nUVICORN_ENV_FILE=other\n")
    start(server, MODULE, *PREFORK, "--env-file", "vars")
    assert server.get().json()["root_path"] == ""
    assert [told["mine"] for told in in_workers(server)] == ["first", "first"]
    assert len(server.logged("Loading environment")) == 1


def test_a_secret_is_not_repeated_on_the_command_line(make_server: MakeServer) -> None:
    server = make_server(source("scope", "tell_import"))
    start(server, SCRIPT, *PREFORK, "--ssl-keyfile-password", "s3cret")
    assert len(in_workers(server)) == 2
    assert "s3cret" not in json.dumps(in_workers(server))


@pytest.mark.parametrize(
    ("options", "env"), [(["--workers", "2"], {}), (["--reload"], {}), ([], {"WEB_CONCURRENCY": "2"})]
)
def test_in_children_of_uvicorn(make_server: MakeServer, options: list[str], env: dict[str, str]) -> None:
    server = make_server()
    arguments = [*PREFORK, "--port", str(server.port), *options]
    server.start(*arguments, command=SCRIPT, bind="", env=env)
    server.wait_exit()
    lines = server.logged(INSTEAD)
    assert lines
    assert set(lines) == {lines[0]}
    assert server.logged("Traceback|never awaited") == []
    wait_for(lambda: processes_in(server.directory) == [], "everything gone")


def test_exit_status_of_a_child(server: Server) -> None:
    server.write("program.py", source("uvicorn_child"))
    server.start(command=[sys.executable, "program.py"], bind="", app="")
    assert server.wait_exit() == NO_BOOT
    assert len(server.logged(INSTEAD)) == 1


def test_called_from_python(server: Server) -> None:
    program = f"import uvicorn; uvicorn.run('app:app', port={server.port}, loop='multicore_server:prefork')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=server.directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if INSTEAD in line and "RuntimeError" in line]) == 1


def test_an_app_that_cannot_be_imported(server: Server) -> None:
    server.start(*PREFORK, "--port", str(server.port), command=SCRIPT, bind="", app="app:missing")
    assert server.wait_exit() in (1, NO_BOOT)  # uvicorn's own word, or ours where it loads the app later
    assert server.logged("missing")
    assert processes_in(server.directory) == []


def test_usr2_after_the_take_over(server: Server, ending: list[int]) -> None:
    """The new server is started with the command that has taken over."""
    start(server, SCRIPT, *PREFORK, "--no-date-header", ready=1)
    server.signal(signal.SIGUSR2)
    server.wait_ready(2)
    new = next(
        child
        for child in psutil.Process(server.pid).children()
        if child.children() and child.pid != server.pid
    )
    ending.append(new.pid)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    answer = server.get()
    assert int(answer.text) in [child.pid for child in new.children()]
    assert "date" not in answer.headers
