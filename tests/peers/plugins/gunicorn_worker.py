"""A pytest plugin: the gunicorn processes that tests start have our worker class in the place of theirs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from typing import Any

import pytest

OURS = "multicore_server.Worker"
FLAG = "--worker-class"
ROOM = 1024 * 1024  # bytes in the pipe of a server's log: this one says more than gunicorn
SETTINGS = {
    "MULTICORE_METRICS_BIND": "none",  # all of them have the same default address
    "MULTICORE_RELOAD_SURGE": "8",  # tests wait as long as gunicorn needs, which replaces all workers at once
}


def with_our_worker(command: Any) -> Any:
    if not isinstance(command, list | tuple) or FLAG not in command:
        return command
    position = command.index(FLAG) + 1
    return [*command[:position], OURS, *command[position + 1 :]]


class Popen(subprocess.Popen):  # type: ignore[type-arg]  # of bytes and of text
    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        super().__init__(with_our_worker(args), *rest, **options)
        for stream in (self.stdout, self.stderr):
            if stream is not None:  # some tests do not read it before the end
                with contextlib.suppress(PermissionError):  # so much is for few pipes of a user
                    fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, ROOM)


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(SETTINGS, UVICORN_LOOP=os.environ["PEERS_LOOP"])
    subprocess.Popen = Popen  # type: ignore[misc]  # that is what this is for
