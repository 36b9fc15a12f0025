"""nginx and HAProxy, as Debian has them, before a server under test."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.apps import source
from tests.support.programs import program
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

WSGI = source("wsgi_scope")
TELLING = source("telling")
RUN = [sys.executable, "-m", "multicore_server", "run"]

EXAMPLES = Path(__file__).parents[2] / "examples"
NGINX = """
daemon off;
user root;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {servers}
}}
"""
NGINX_SERVER = """
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    server {{
        listen {local}:{port};
        {inside}
    }}
"""
HAPROXY = """
defaults
    mode {mode}
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend in
    bind {local}:{port}
    {inside}
    default_backend out
backend out
    server app {address} {back}
"""


class Proxy:
    """A proxy that runs, before one server."""

    def __init__(self, directory: Path, name: str, configuration: str, port: int, *options: str) -> None:
        self.port = port
        path = directory / f"{name}-{port}.conf"
        path.write_text(configuration)
        self.log_path = path.with_suffix(".out")
        command = [program(name), *options, str(path)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        wait_for(self._listens, f"{name} listens")

    @property
    def url(self) -> str:
        return f"http://{LOCAL}:{self.port}"

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log_path.read_text()
        return not refuses(self.port)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(20)


MakeProxy: TypeAlias = Callable[..., Proxy]


def nginx(directory: Path, inside: str) -> Proxy:
    """``inside`` stands in its server."""
    port = free_port()
    return _nginx(directory, NGINX_SERVER.format(local=LOCAL, port=port, inside=inside), port)


def _nginx(directory: Path, servers: str, port: int) -> Proxy:
    text = NGINX.format(directory=directory, servers=servers)
    return Proxy(directory, "nginx", text, port, "-p", str(directory), "-c")


def haproxy(directory: Path, address: str | int, back: str, inside: str = "", mode: str = "http") -> Proxy:
    """``back`` are the options of its server; ``inside`` stands in its frontend."""
    if isinstance(address, int):
        address = f"{LOCAL}:{address}"
    port = free_port()
    text = HAPROXY.format(address=address, back=back, inside=inside, mode=mode, local=LOCAL, port=port)
    return Proxy(directory, "haproxy", text, port, "-db", "-f")


def changed(name: str, changes: dict[str, str]) -> str:
    """An example with other addresses."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def example_nginx(directory: Path, address: str) -> Proxy:
    """That of examples/nginx before a server's address: ``host:port`` or ``unix:PATH``."""
    port = free_port()
    changes = {
        "listen 80;": f"listen {LOCAL}:{port};",
        "\n    server 127.0.0.1:8000 ": f"\n    server {address} ",
    }
    return _nginx(directory, changed("nginx/api.conf", changes), port)


def example_haproxy(directory: Path, address: str, metrics: int) -> Proxy:
    """That of examples/haproxy before ``host:port`` or ``unix@PATH``; the monitor listens on ``metrics``."""
    port = free_port()
    changes = {
        "bind :80": f"bind {LOCAL}:{port}",
        "port 9464": f"port {metrics}",
        "\n    server api 127.0.0.1:8000": f"\n    server api {address}",
    }
    return Proxy(directory, "haproxy", changed("haproxy/haproxy.cfg", changes), port, "-db", "-f")


@contextlib.contextmanager
def ended(proxies: list[Proxy]) -> Iterator[None]:
    """End them in any case."""
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.end()


# --- the server behind it


def serve(
    make_server: MakeServer, app: str, *options: str, command: str = "gunicorn", conf: str = "", **env: str
) -> Server:
    """One worker, by either command; ``conf`` is its config file."""
    server = make_server(app)
    server.write("conf.py", f"workers = 1\n{conf}")
    more: dict[str, Any] = {}
    if command == "run":
        more = {"command": [*RUN, "--port", str(server.port)], "bind": ""}
    return server.start("--config", "conf.py", *options, ready=1, env=env, **more)


def told(answer: httpx.Response) -> dict[str, Any]:
    """What the app was told (`SCOPE` or `WSGI`), by the names of a scope."""
    assert answer.status_code == 200, answer.text
    seen: dict[str, Any] = answer.json()
    if "client" in seen:
        return {**seen, "client": seen["client"][0]}
    headers = {name[5:].lower().replace("_", "-"): seen[name] for name in seen if name.startswith("HTTP_")}
    root = seen["SCRIPT_NAME"]
    return {
        "client": seen["REMOTE_ADDR"], "scheme": seen["wsgi.url_scheme"], "root_path": root,
        "path": root + seen["PATH_INFO"], "headers": headers,
    }  # fmt: skip
