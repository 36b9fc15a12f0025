"""New code and new settings for a running server, and how it takes them."""

from __future__ import annotations

import re
import signal

from tests.support.apps import ASK
from tests.support.server import Server
from tests.support.waiting import wait_for


def usr2s_arbiter(server: Server) -> int:
    """The pid of the second arbiter that has started."""
    started = server.wait_logged(r"\[INFO\] Starting gunicorn", 2)
    return int(re.findall(r"\[(\d+)\] \[INFO\]", started[1])[0])


def change_over(server: Server, ending: list[int], ready: int) -> int:
    """USR2, and TERM to the old arbiter when so many workers have become ready in all. Returns the new one's
    pid, which ``ending`` has from the beginning."""
    server.signal(signal.SIGUSR2)
    new = usr2s_arbiter(server)
    ending.append(new)
    server.wait_ready(ready)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    return new


def deploy(server: Server, version: int, more: str = "") -> None:
    server.write("app.py", f"{ASK}\nversion = {version}\n{more}")


def configure(server: Server, **settings: object) -> str:
    """Write the config file; its text."""
    text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
    server.write("conf.py", text)
    return text


def hup(server: Server, outcome: str = "reload done") -> str:
    """Reload and wait for the line that says how it went."""
    before = len(server.logged(outcome))
    server.signal(signal.SIGHUP)
    return server.wait_logged(outcome, before + 1)[-1]


def wait_workers(server: Server, count: int) -> None:
    wait_for(lambda: len(server.workers()) == count, f"{count} workers")
