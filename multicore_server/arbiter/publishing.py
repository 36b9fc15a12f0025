"""Publishes the shared report, with the last events, for the monitor."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version

from multicore_server.arbiter import logs
from multicore_server.arbiter.context import ArbiterContext
from multicore_server.arbiter.deployment import Deployment
from multicore_server.arbiter.event_log import EventLog
from multicore_server.arbiter.report import fleet_report, shown
from multicore_server.fleet.events import Event
from multicore_server.ipc.identity import server_name
from multicore_server.ipc.report import ArbiterReport, Report
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.version import __version__

ROOM = 2**20  # bytes of the report, and for each slot
ROOM_PER_SLOT = 2**12


class Publisher:
    """``in_force`` gives the deployment in force, ``memory_limit`` a worker's limit in bytes."""

    def __init__(
        self,
        context: ArbiterContext,
        name: str,
        in_force: Callable[[], Deployment],
        memory_limit: Callable[[], int | None],
    ) -> None:
        self._context = context
        self._in_force = in_force
        self._memory_limit = memory_limit
        self.event_log = EventLog()
        self.shared_report = SharedReport(ROOM + ROOM_PER_SLOT * context.fleet.capacity)
        self._name = server_name(name)
        self._arbiter = self._about_arbiter()
        self._published = b""

    def _about_arbiter(self) -> ArbiterReport:
        return {
            "pid": self._context.pid,
            "started": round(self._context.system.time(), 3),
            "python": platform.python_version(),
            "gunicorn": version("gunicorn"),
            "uvicorn": version("uvicorn"),
        }

    def record(self, events: Iterable[Event]) -> None:
        """Publish events before they are logged: a reader of the log then finds them in /status."""
        self.event_log.record(events, round(self._context.system.time(), 3))
        self.publish()

    def publish(self) -> None:
        """Publish what has changed. A mistake in here, or no room, costs the news and nothing else."""
        try:
            self._publish()
        except Exception:
            if self._published:
                self._context.log.exception("the monitor could not be told about a change")
            self._published = b""

    def _publish(self) -> None:
        deployment, system = self._in_force(), self._context.system
        # Worked out anew each time: the wall clock may be set.
        epoch = system.time() - system.monotonic()
        report: Report = {
            "version": __version__,
            "name": self._name,
            "arbiter": self._arbiter,
            **fleet_report(self._context.fleet, epoch),
            "addresses": [str(listener) for listener in deployment.listeners],
            "logs": logs.files(deployment.cfg),
            "worker_memory_limit": self._memory_limit(),
            "timeout": float(deployment.cfg.timeout),
            "graceful_timeout": float(deployment.cfg.graceful_timeout),
            "settings": shown(deployment.settings),
            "events": list(self.event_log.entries),
        }
        # Whatever bytes a path or an exception has brought, and in as little room as there may be.
        text = json.dumps(report, ensure_ascii=False).encode(errors="surrogatepass")
        if text != self._published:
            self.shared_report.publish(text)
            self._published = text
