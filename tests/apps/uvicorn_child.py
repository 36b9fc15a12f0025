"""A program: a child of uvicorn's own supervisor that names prefork as its loop; its exit status is ours."""

from __future__ import annotations

import signal

import uvicorn
from uvicorn._subprocess import get_subprocess

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config("app:app", loop="multicore_server:prefork")
    child = get_subprocess(config, uvicorn.Server(config).run, [])
    child.start()
    child.join()
    raise SystemExit(child.exitcode)
