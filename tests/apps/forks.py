"""Forks children at request: they sleep, each in its own way."""

from __future__ import annotations

import os
import signal
import time
from typing import Any


def child(own_session: bool, deaf: bool) -> None:
    if own_session:
        os.setsid()
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def fork(path: str) -> int:
    pid = os.fork()
    if not pid:
        try:
            child("session" in path, "deaf" in path)
        finally:
            os._exit(1)
    return pid


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    path = scope["path"]
    if path.startswith("/terminate/"):
        os.kill(int(path.rpartition("/")[2]), signal.SIGTERM)
    body = str(fork(path) if path.startswith("/fork") else os.getpid()).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
