"""This server as a service of systemd (sd_notify(3)), and systemd's sockets.

gunicorn's ``start()`` sends READY before any worker exists. So the variables are removed from the environment
before that. Workers do not inherit them either.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import fcntl
import os
import socket
import time
from typing import Any

from gunicorn.systemd import SD_LISTEN_FDS_START

from multicore_server.arbiter.system import fork

ADDRESS, PERIOD, WATCHED = VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
RETRY = 0.1  # seconds after which what systemd had no room for is sent again
NOBODY = (FileNotFoundError, ConnectionRefusedError)


class Service:
    """What systemd is told. Without its variables, nothing is.

    It believes the main process alone (``NotifyAccess=main``), so an arbiter that USR2 has started is silent
    until it is the only one.
    """

    def __init__(self) -> None:
        self._address = ""
        self._period: float | None = None  # seconds between two signs of life
        self._next_sign = 0.0
        self._silent = False
        self._ready = False
        self._words = self._trouble = ""
        self._unsent: collections.deque[str] = collections.deque(maxlen=100)

    def take(self) -> None:
        """Take its variables out of the environment."""
        given = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
        if ADDRESS not in given:
            return
        self._address = given[ADDRESS]
        self._silent = "GUNICORN_PID" in os.environ
        with contextlib.suppress(ValueError):
            if int(given.get(WATCHED, os.getpid())) == os.getpid() and PERIOD in given:
                self._period = int(given[PERIOD]) / 2e6
                faulthandler.enable()  # the watchdog's SIGABRT shows where the arbiter stands

    # --- what happens

    def ready(self) -> None:
        """The first worker is."""
        self._ready = True
        self._tell("READY=1")

    def reloading(self) -> None:
        """A reload begins; with the clock that ``Type=notify-reload`` asks for."""
        self._trouble = ""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        if self._ready:
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def reloaded(self, trouble: str) -> None:
        """A reload has ended; with what has gone wrong, which systemd cannot be told but in words."""
        self._trouble = trouble
        if self._ready:
            self._tell("READY=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def hand_over(self, pid: int) -> None:
        """The last word of an arbiter whose successor lives (0: none): that is the service from now on."""
        if pid:
            self._tell(f"MAINPID={pid}")
            self._silent = True

    def promoted(self) -> None:
        """The first word of the successor."""
        self._silent = False
        self._tell(f"STATUS={self._words}")
        if self._ready:
            self._tell("READY=1")
        with contextlib.suppress(OSError):  # there is no room for a child
            self._become_a_child()

    def _become_a_child(self) -> None:
        """Be named as the main process anew. systemd looks once, then, whether that is its child, and does
        not wait for the end of one that is not. This one became its child when its predecessor exited. Only a
        change of the main process counts, and only the main process is heard: so another one is for a moment.
        """
        if not self._address:
            return
        reader, writer = os.pipe()
        arbiter, between = os.getpid(), fork()
        if between == 0:
            try:
                os.close(writer)
                os.read(reader, 1)  # until it has been named
                self._tell(f"MAINPID={arbiter}")
                time.sleep(1)  # systemd looks at who says this
            finally:
                os._exit(0)
        self._tell(f"MAINPID={between}")
        os.close(reader)
        os.close(writer)

    # --- how it is

    def status(self, words: str) -> None:
        """For ``systemctl status``; told again where it has changed."""
        words = "; ".join(filter(None, (words, self._trouble))).replace("\n", " ")
        if words != self._words:
            self._words = words
            self._tell(f"STATUS={words}")

    def alive(self, now: float) -> None:
        """The arbiter makes progress: feed the watchdog, if it is time."""
        if self._period is not None and now >= self._next_sign:
            self._next_sign = now + self._period
            self._tell("WATCHDOG=1")
        self._send()

    def due(self, now: float) -> float | None:
        """When `alive` is to be called at the latest."""
        if self._unsent:
            return now + RETRY
        return self._next_sign if self._period is not None else None

    def _tell(self, state: str) -> None:
        if self._address and not self._silent:
            self._unsent.append(state)
            self._send()

    def _send(self) -> None:
        """As far as systemd has room: nothing here waits."""
        if not self._unsent:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
            while self._unsent:
                with contextlib.suppress(*NOBODY):
                    sender.sendto(self._unsent[0].encode(errors="replace"), address)
                self._unsent.popleft()


service = Service()


def pass_on(listeners: list[Any], environ: dict[str, str]) -> dict[str, str]:
    """Before an exec: put the listeners where sd_listen_fds(3) says; the environment that says so."""
    end = SD_LISTEN_FDS_START + len(listeners)
    aside = [fcntl.fcntl(listener.fileno(), fcntl.F_DUPFD_CLOEXEC, end) for listener in listeners]
    for place, fd in enumerate(aside, SD_LISTEN_FDS_START):
        os.dup2(fd, place)
    return {**environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(listeners))}


def reexec(arbiter: Any) -> None:
    """As gunicorn's, which forgets that it has given the listeners other descriptors than systemd did."""
    arbiter.reexec_pid = fork()
    if arbiter.reexec_pid == 0:
        arbiter.cfg.pre_exec(arbiter)
        environ = pass_on(arbiter.LISTENERS, arbiter.cfg.env_orig | {"GUNICORN_PID": str(arbiter.pid)})
        os.chdir(arbiter.START_CTX["cwd"])
        os.execvpe(arbiter.START_CTX[0], arbiter.START_CTX["args"], environ)  # noqa: S606 - our own command
