"""The servers that gunicorn's suites for containers expect, started here, with our worker class."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.server import Server
from tests.support.waiting import wait_for

# The name of the framework's folder, and its app.
FRAMEWORKS = {
    "django": "asgi:application",
    "fastapi": "app:app",
    "starlette": "app:app",
    "quart": "app:app",
    "litestar": "app:app",
    "blacksheep": "app:app",
}
ENVIRONMENT = {"django": {"DJANGO_SETTINGS_MODULE": "settings"}}


@contextlib.contextmanager
def frameworks(folder: Path, loop: str) -> Iterator[dict[str, str]]:
    """One server for each framework, with one worker: some tests count on its memory."""
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, app in FRAMEWORKS.items():
            servers[name] = started(folder / "frameworks" / f"{name}_app", stack)
            servers[name].start("-w", "1", app=app, env={"UVICORN_LOOP": loop, **ENVIRONMENT.get(name, {})})
        wait_all(list(servers.values()), 1)
        yield {"PEERS_SERVICES": json.dumps({name: server.url for name, server in servers.items()})}


@contextlib.contextmanager
def compliance(folder: Path, loop: str) -> Iterator[dict[str, str]]:
    """A server without TLS and one with, and nginx before them where it is installed."""
    with contextlib.ExitStack() as stack:
        plain, secure = started(folder, stack), started(folder, stack)
        environment = {"UVICORN_LOOP": loop}
        plain.start("-w", "2", app="apps.main_app:app", env=environment)
        tls = ("--certfile", "certs/server.crt", "--keyfile", "certs/server.key")
        secure.start("-w", "2", *tls, app="apps.main_app:app", env=environment)
        wait_all([plain, secure], 2)
        urls = {"gunicorn_http": plain.url, "gunicorn_https": secure.url.replace("http:", "https:")}
        if shutil.which("nginx"):
            urls |= nginx(folder, stack, plain.port)
        yield {"PEERS_SERVICES": json.dumps(urls)}


def started(directory: Path, stack: contextlib.ExitStack) -> Server:
    server = Server(directory, module="unused")
    server.log_path = directory / f"{server.port}.log"
    stack.callback(server.end)
    return server


def wait_all(servers: list[Server], workers: int) -> None:
    for server in servers:
        try:
            server.wait_ready(workers)
        except AssertionError as exc:
            raise RuntimeError(server.log) from exc


def nginx(folder: Path, stack: contextlib.ExitStack, port: int) -> dict[str, str]:
    """The suite's own configuration, for the nginx that is installed and for one machine."""
    plain, secure = free_port(), free_port()
    text = (folder / "nginx.conf").read_text()
    for theirs, ours in {
        "listen 8080;": f"listen {LOCAL}:{plain};",
        "listen 8444 ssl;": f"listen {LOCAL}:{secure} ssl http2;",
        "    http2 on;\n": "",  # of nginx 1.25 and later
        "resolver 127.0.0.11 ipv6=off valid=10s;": "",
        "server gunicorn-asgi:8000 ": f"server {LOCAL}:{port} ",
        "server gunicorn-asgi-ssl:8443 ": f"server {LOCAL}:{port} ",  # it is not asked
        "/certs/": f"{folder}/certs/",
        "/var/log/nginx/": f"{folder}/nginx-",
        "/var/run/": f"{folder}/",
        "include /etc/nginx/mime.types;": "",
    }.items():
        text = text.replace(theirs, ours)
    configuration = folder / "nginx-here.conf"
    configuration.write_text(text)
    process = subprocess.Popen(["nginx", "-c", configuration, "-p", folder, "-g", "daemon off;"])
    stack.callback(process.wait)
    stack.callback(process.terminate)
    wait_for(lambda: not refuses(plain) and not refuses(secure), "nginx")
    return {"nginx_http": f"http://{LOCAL}:{plain}", "nginx_https": f"https://{LOCAL}:{secure}"}
