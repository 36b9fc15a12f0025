"""A program: ``serve.py PORT THREADS HTTP LOOP`` runs the WSGI app in ``app.py`` on the bridge alone."""

from __future__ import annotations

import importlib
import socket
import sys

import uvicorn

from multicore_server.wsgi.bridge import WSGIBridge


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("serving", flush=True)


def main() -> None:
    port, threads, http, loop = sys.argv[1:]
    bridge = WSGIBridge(importlib.import_module("app").app, threads=int(threads), spool_dirs=["."])
    config = uvicorn.Config(
        bridge,
        port=int(port),
        http=http,
        loop=loop,
        lifespan="off",
        interface="asgi3",
        timeout_graceful_shutdown=1,
    )
    Server(config).run()


if __name__ == "__main__":
    main()
