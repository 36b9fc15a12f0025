"""The server that a plan is carried out on: its start, what it is told, what can be seen of it."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import psutil
import trustme

from tests.chaos.http import Address
from tests.chaos.plan import GRACEFUL_TIMEOUT, TIMEOUT, WORKERS, Setup
from tests.support.addresses import LOCAL
from tests.support.apps import source
from tests.support.monitored_server import MonitoredServer
from tests.support.processes import is_monitor, processes_in
from tests.support.server import Server
from tests.support.waiting import wait_for

APP = source("chaos")
BOOT = 60.0  # seconds that a start may take on a loaded machine


class Running:
    """``arbiter`` is the pid of the one that is in office: USR2 and a restart change it."""

    def __init__(self, directory: Path, setup: Setup) -> None:
        self.directory = directory
        self.setup = setup
        self.server = Server(directory, APP)
        self.monitored = MonitoredServer(self.server)
        # Large requests and responses, and the app's metrics, are there.
        self.temporary = directory / "temporary"
        self.temporary_is_small = _mount_tmpfs(self.temporary)
        self.arbiter = 0
        self.counts_from_zero = False  # the metrics, since an arbiter began anew
        self._tls = _certificates(directory) if setup.transport == "tls" else None
        self.configure()

    @property
    def address(self) -> Address:
        path = self.directory / "app.sock" if self.setup.transport == "unix" else None
        return Address(self.server.port, path, self._tls)

    def start(self) -> None:
        """At first, and again when the arbiter has been killed."""
        if self.server.process is not None:
            self.server.process.wait(BOOT)
        ready = self.ready()
        app = "app:app" if self.setup.kind == "asgi" else "app:wsgi"
        bind = "unix:app.sock" if self.setup.transport == "unix" else None
        env = {
            "UVICORN_LOOP": self.setup.loop,
            "UVICORN_HTTP": self.setup.http,
            "TMPDIR": str(self.temporary),
        }
        self.monitored.start("-c", "conf.py", app=app, bind=bind, env=env)
        self.arbiter = self.server.pid
        self.server.wait_ready(ready + WORKERS, BOOT)

    def deploy(self, more: str = "") -> None:
        """Write the app, with more code behind it."""
        self.server.write("app.py", f"{APP}\n{more}\n")

    def configure(self, more: str = "", **changes: object) -> None:
        """Write the configuration, with these settings changed and more code behind it."""
        settings = {
            "workers": WORKERS,
            "timeout": int(TIMEOUT),
            "graceful_timeout": int(GRACEFUL_TIMEOUT),
            "keepalive": 60,
            "scheduling": self.setup.scheduling,
            "max_requests": self.setup.max_requests,
            "max_requests_jitter": self.setup.max_requests // 2,
            "preload_app": self.setup.preload,
            "max_memory_restart": "250M",
            "threads": 4 if self.setup.kind == "threads" else 1,
            # Crash after crash is what is wanted here.
            "max_restarts": 1000,
            "exp_backoff_restart_delay": 0.01,  # not a thousand forks within a second that has no descriptors
            "max_restart_delay": 0.1,
            **({"certfile": "cert.pem", "keyfile": "key.pem"} if self._tls else {}),
            **changes,
        }
        text = "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        self.server.write("conf.py", f"{text}{more}\n")

    def connect(self) -> socket.socket:
        """A connection of a client that blocks."""
        address = self.address
        if address.path is not None:
            plain = socket.socket(socket.AF_UNIX)
            plain.connect(str(address.path))
            return plain
        plain = socket.create_connection((LOCAL, address.port), 20)
        return address.tls.wrap_socket(plain, server_hostname="localhost") if address.tls else plain

    # --- what can be seen

    def logged(self, pattern: str) -> int:
        return len(self.server.logged(pattern))

    def ready(self) -> int:
        """How many workers have ever become ready."""
        return self.logged(r"instance=\d+ gen=\d+ pid=\d+ ready after")

    def children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.arbiter).children()
            return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return []

    def family(self) -> list[int]:
        return [child.pid for child in self.children()]

    def workers(self) -> list[int]:
        """The pids of living workers, of which there is one sooner or later."""

        def living() -> list[int]:
            return [pid for pid in self.family() if not is_monitor(pid)]

        return wait_for(living, "a worker", BOOT)

    def monitor(self) -> int:
        return wait_for(lambda: next(filter(is_monitor, self.family()), 0), "a monitor", BOOT)

    def status(self) -> dict[str, Any]:
        """What the monitor says; nothing while there is none."""
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            status: dict[str, Any] = self.monitored.status()
            return status
        return {}

    def settled(self) -> dict[str, Any]:
        """What the monitor says when nothing is under way; otherwise nothing."""
        status = self.status()
        if not status or status["reloading"] or status["arbiter"]["pid"] != self.arbiter:
            return {}
        at_rest = all(
            worker["state"] == "ready" and len(worker["processes"]) == 1 for worker in status["workers"]
        )
        return status if at_rest and status["ready"] == status["configured"] else {}

    def wait_settled(self, timeout: float) -> dict[str, Any]:
        try:
            return wait_for(self.settled, "a server at rest", timeout)
        except AssertionError as exc:
            raise AssertionError(f"{exc}: {self.status()}") from None

    def wait_configured(self, workers: int, timeout: float) -> None:
        wait_for(lambda: self.status().get("configured") == workers, f"{workers} workers configured", timeout)

    def descriptors(self) -> list[str]:
        """What the arbiter has open, as the kernel names it; without the numbers of inodes."""
        names = []
        for path in Path(f"/proc/{self.arbiter}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.append(re.sub(r"\[.*|-\w+ \(deleted\)", "", str(path.readlink())))
        return sorted(names)

    def end(self) -> None:
        """End everything that was started here."""
        self.server.end()
        for process in processes_in(self.directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.monitored.close()
        if self.temporary_is_small:
            subprocess.run(["umount", "--lazy", str(self.temporary)], check=True)


def _mount_tmpfs(path: Path) -> bool:
    """Whether there is a small file system: that takes root and a kernel that allows it."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    return subprocess.run(mount, capture_output=True, check=False).returncode == 0


def _certificates(directory: Path) -> ssl.SSLContext:
    """Of an authority that the context trusts."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return trusting
