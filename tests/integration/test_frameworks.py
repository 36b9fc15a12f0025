"""Apps of every shape, real frameworks, and the examples by their own commands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.apps import source
from tests.support.server import MakeServer, Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("app", "answer", "env"),
    [
        ("app:asgi3_function", "ASGI 3.0", {}),
        ("app:ASGI3Class", "ASGI 3.0", {}),
        ("app:asgi3_instance", "ASGI 3.0", {}),
        ("app:ASGI2Class", "ASGI 2.0", {}),
        ("app:asgi2_function", "ASGI 2.0", {}),
        ("app:create()", "ASGI 3.0", {}),
        ("app:create", "ASGI 3.0", {}),
        ("app:create", "ASGI 3.0", {"UVICORN_FACTORY": "1"}),
        ("app:wsgi_function", "WSGI 1.0", {}),
        ("app:wsgi_function", "WSGI 1.0", {"UVICORN_INTERFACE": "wsgi"}),
        ("app:WSGIClass", "WSGI 1.0", {}),
        ("app:wsgi_instance", "WSGI 1.0", {}),
        ("app:create_wsgi('y')", "WSGI 1.0", {}),
    ],
)
def test_shapes(make_server: MakeServer, app: str, answer: str, env: dict[str, str]) -> None:
    server = make_server(source("shapes")).start("-w", "1", app=app, env=env, ready=1)
    assert server.get().text == answer
    assert not server.logged("WARNING|ERROR")


@pytest.mark.parametrize("package", ["starlette", "litestar"])
def test_frameworks(make_server: MakeServer, package: str) -> None:
    pytest.importorskip(package)
    server = make_server(source(f"{package}_app")).start("-w", "1", ready=1)
    assert server.get().text == "hello"
    assert not server.logged("WARNING|ERROR")


# --- the examples ---


def commands(path: str) -> list[list[str]]:
    """The gunicorn commands in the docstring of an example."""
    found = re.findall(r"``(gunicorn [^`]*)``", (EXAMPLES / path).read_text())
    assert found
    return [command.split() for command in found]


@pytest.fixture
def run_example(make_server: MakeServer) -> Callable[..., Server]:
    """Run a command as it is written, in a copy of the examples; only its address is ours."""

    def run(command: list[str], *options: str, directory: str = ".") -> Server:
        server = make_server()
        shutil.copytree(EXAMPLES, server.directory / "examples", ignore=shutil.ignore_patterns("*.sqlite3*"))
        *start, app = command
        server.directory = server.directory / directory
        return server.start(*options, "-w", "2", command=[sys.executable, "-m", *start], app=app, ready=2)

    return run


def answers(server: Server, path: str = "/") -> list[dict[str, object]]:
    """What both workers say."""
    with httpx.Client(base_url=server.url, headers={"connection": "close"}) as client:
        return [client.get(path).raise_for_status().json() for _ in range(6)]


@pytest.mark.parametrize(("package", "path"), [("fastapi", "/?name=you"), ("flask", "/?name=you")])
def test_example(run_example: Callable[..., Server], package: str, path: str) -> None:
    pytest.importorskip(package)
    server = run_example(commands(f"{package}_app.py")[0])
    said = answers(server, path)
    assert {answer["text"] for answer in said} == {"Hello, you"}
    assert {answer["worker"] for answer in said} <= {0, 1}
    assert not server.logged("WARNING|ERROR")


@pytest.mark.parametrize("threads", ["1", "4"])
def test_flask_async_view(run_example: Callable[..., Server], threads: str) -> None:
    pytest.importorskip("flask")
    pytest.importorskip("asgiref")
    server = run_example(commands("flask_app.py")[0], "--threads", threads)
    assert answers(server, "/async")[0]["text"] == "Hello from an async view"


@pytest.mark.parametrize("interface", ["asgi", "wsgi", "wsgi threads"])
def test_django(run_example: Callable[..., Server], interface: str) -> None:
    pytest.importorskip("django")
    of_asgi, of_wsgi = commands("django_project/mysite/__init__.py")
    options = ["--threads", "4"] if interface == "wsgi threads" else []
    server = run_example(of_asgi if interface == "asgi" else of_wsgi, *options)
    migrate = [sys.executable, "examples/django_project/manage.py", "migrate", "-v", "0"]
    subprocess.run(migrate, cwd=server.directory, check=True)
    for path in ("/", "/async/"):
        visits = [int(str(answer["visits"])) for answer in answers(server, path)]
        assert visits == sorted(visits)
    assert visits[-1] == 12
    assert not server.logged("WARNING|ERROR")


def test_dockerfile(run_example: Callable[..., Server]) -> None:
    text = (EXAMPLES / "docker" / "Dockerfile").read_text()
    command = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[-1])
    assert command[-3:-1] == ["-b", "0.0.0.0:8000"]
    assert "EXPOSE 8000" in text
    server = run_example([*command[:-3], command[-1]], directory="examples/docker")
    assert re.fullmatch(r"Hello from worker [01]\n", server.get().text)
    assert not server.logged("WARNING|ERROR")
