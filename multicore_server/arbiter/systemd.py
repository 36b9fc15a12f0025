"""Tells systemd when a worker is ready, not when the arbiter is (sd_notify(3)); takes systemd's sockets.

gunicorn's ``start()`` sends READY before any worker exists. So the address is removed from the environment
before that. Workers do not inherit it either.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

from gunicorn.systemd import SD_LISTEN_FDS_START, sd_notify

VARIABLE = "NOTIFY_SOCKET"
_address: str | None = None


def take_address() -> None:
    """Take NOTIFY_SOCKET out of the environment; `notify` goes on using it."""
    global _address
    _address = os.environ.pop(VARIABLE, _address)


def notify(state: str, log: Any) -> None:
    """Send a state such as ``READY=1``; does nothing outside of a systemd service."""
    if _address is None:
        return
    os.environ[VARIABLE] = _address
    sd_notify(state, log, unset_environment=True)


def reloading(log: Any) -> None:
    """Announce a reload, with the clock that ``Type=notify-reload`` asks for."""
    microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify(f"RELOADING=1\nMONOTONIC_USEC={microseconds}", log)


def pass_on(listeners: list[Any], environ: dict[str, str]) -> dict[str, str]:
    """Before an exec: put the listeners where sd_listen_fds(3) says; the environment that says so."""
    end = SD_LISTEN_FDS_START + len(listeners)
    aside = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, end) for listener in listeners]
    for place, fd in enumerate(aside, SD_LISTEN_FDS_START):
        os.dup2(fd, place)
    return {**environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(listeners))}


def reexec(arbiter: Any) -> None:
    """As gunicorn's, which forgets that it has given the listeners other descriptors than systemd did."""
    arbiter.reexec_pid = os.fork()
    if arbiter.reexec_pid == 0:
        arbiter.cfg.pre_exec(arbiter)
        environ = pass_on(arbiter.LISTENERS, arbiter.cfg.env_orig | {"GUNICORN_PID": str(arbiter.pid)})
        os.chdir(arbiter.START_CTX["cwd"])
        os.execvpe(arbiter.START_CTX[0], arbiter.START_CTX["args"], environ)  # noqa: S606 - our own command
