"""As much of ``connections.py`` as an app that runs inline can do; /stuck never answers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path in ("/hold", "/stuck"):
        Path("held").touch()
    while path == "/hold" and not Path("release").exists():
        time.sleep(0.01)
    if path == "/stuck":
        time.sleep(60)
    body = path.encode()
    headers = [
        ("Content-Length", str(len(body))),
        ("X-Pid", str(os.getpid())),
        ("X-Client", f"{environ['REMOTE_ADDR']} {environ['REMOTE_PORT']}"),
        ("X-Path", path),
    ]
    start_response("200 OK", headers)
    return [body]
