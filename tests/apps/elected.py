"""What one worker does for all: jobs that write their pid and the time, and a migration."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from multicore_server import cluster

INTERVAL = 0.01  # seconds


def note(name: str, line: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


@cluster.run_on_primary
async def job() -> None:
    while True:
        note("job", f"{os.getpid()} {time.monotonic()}")
        await asyncio.sleep(INTERVAL)


@cluster.run_on_primary
def thread_job() -> None:
    while not cluster.draining:
        note("thread_job", f"{os.getpid()} {time.monotonic()}")
        time.sleep(INTERVAL)


def migrate() -> str:
    note("migrations", str(os.getpid()))
    if os.path.exists("fails"):  # noqa: PTH110 - it is as short
        raise ValueError("no database")
    if os.path.exists("crashes"):  # noqa: PTH110
        os.remove("crashes")  # noqa: PTH107
        os._exit(9)
    time.sleep(0.3)
    return "migrated"


AT_IMPORT = cluster.once_sync("import", migrate) if os.environ.get("AT_IMPORT") else ""
migrated: list[Any] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        cluster.start()
        try:
            migrated.append(await cluster.once("migrate", migrate))
        except Exception as exc:
            await send({"type": "lifespan.startup.failed", "message": repr(exc)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = f"{cluster.is_primary} {migrated} {AT_IMPORT}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-pid", b"%d" % os.getpid())]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [f"{cluster.is_primary} {AT_IMPORT} {threading.active_count()}".encode()]
