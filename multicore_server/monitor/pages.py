"""The monitor's apps: a read-only one, and one with commands for the command socket."""

from __future__ import annotations

import gzip
import json
import math
import os
import socket
import time
from collections.abc import Mapping

from multicore_server.ipc.report import MonitorStatus, unready
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import Scoreboard
from multicore_server.metrics import exposition
from multicore_server.monitor import actions, live
from multicore_server.monitor.actions import WorkerClient
from multicore_server.monitor.allowed_hosts import AllowedHosts
from multicore_server.monitor.asgi import Endpoint, Request, Response, Route, Stream, app_of, line
from multicore_server.monitor.commands import COMMANDS, ArbiterClient, ArbiterError, parse
from multicore_server.monitor.follow import MAX_DIGITS, Follower
from multicore_server.monitor.gate import Gate
from multicore_server.monitor.samples import Samples
from multicore_server.monitor.scrape import GZIP_LEVEL
from multicore_server.monitor.snapshot import Form, Snapshots
from multicore_server.monitor.status import status
from multicore_server.monitor.view import ReportView

MAX_COMMAND = 16384  # bytes
WORTH_PACKING = 1024  # bytes: what is shorter leaves in one packet anyway
MAX_NUMBER = 20  # characters of ?after=
EVENTS = "text/event-stream; charset=utf-8"
JSON = "application/json"


class ReadOnly:
    """The read-only paths. Nothing of a request is ever repeated in an answer."""

    requests: RequestTable | None = None  # whose requests are shown

    def __init__(
        self, scoreboard: Scoreboard, view: ReportView, snapshots: Snapshots, samples: Samples
    ) -> None:
        self.scoreboard = scoreboard
        self.view = view
        self.snapshots = snapshots
        self.samples = samples
        self.host = socket.gethostname()
        self.arbiter_pid = os.getppid()
        self.monitor: MonitorStatus = {"pid": os.getpid(), "started": time.time()}

    def app(self, hosts: AllowedHosts | None = None) -> Gate:
        """``hosts`` may stand in the Host header; None: any."""
        return Gate(app_of(self.routes()), hosts)

    def metrics_app(self) -> Gate:
        """The metrics alone, for the app's own port."""
        return Gate(app_of([Route("/metrics", self.metrics)]))

    def routes(self) -> list[Route]:
        return [
            *live.routes(),
            Route("/metrics", self.metrics),
            Route("/status", self.status),
            Route("/samples", self.taken),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
        ]

    async def metrics(self, request: Request) -> Response:
        chosen = exposition.choose(request.header(b"accept"))
        gzipped = exposition.wants_gzip(request.header(b"accept-encoding"))
        body = await self.snapshots.take(Form(chosen is exposition.OPENMETRICS, gzipped))
        encoding = ((b"content-encoding", b"gzip"),) if gzipped else ()
        vary = (b"vary", b"accept, accept-encoding")
        return Response(body, kind=chosen.content_type, headers=(vary, *encoding))

    async def status(self, request: Request) -> Response:
        report = self.view.report
        if report is None:
            error = "the arbiter has not published anything yet"
            return _json({"error": error, "monitor": self.monitor}, 503)
        monitor, host, requests = self.monitor, self.host, self.requests
        now = time.time()
        found = status(report, self.scoreboard, now=now, monitor=monitor, host=host, requests=requests)
        return _json(found)

    async def taken(self, request: Request) -> Response:
        """The samples of the last minutes: all, or those ``after`` a moment of CLOCK_MONOTONIC."""
        after = _moment(request.argument("after", "0"))
        if after is None:
            return line("after: give the time of a sample, in seconds", 400)
        body = self.samples.document(after, time.monotonic(), time.time())
        vary = (b"vary", b"accept-encoding")
        if len(body) < WORTH_PACKING or not exposition.wants_gzip(request.header(b"accept-encoding")):
            return Response(body, kind=JSON, headers=(vary,))
        packed = gzip.compress(body, GZIP_LEVEL, mtime=0)
        return Response(packed, kind=JSON, headers=(vary, (b"content-encoding", b"gzip")))

    async def healthz(self, request: Request) -> Response:
        # A process whose parent has ended gets another one.
        if os.getppid() != self.arbiter_pid:
            return line("the arbiter has exited", 503)
        return line("ok")

    async def readyz(self, request: Request) -> Response:
        why = unready(self.view.report)
        return line("ok") if why is None else line(why, 503)


class Full(ReadOnly):
    """The paths of the command socket: the read-only ones, /events, the commands and the actions."""

    def __init__(
        self,
        scoreboard: Scoreboard,
        view: ReportView,
        snapshots: Snapshots,
        samples: Samples,
        arbiter: ArbiterClient,
        workers: WorkerClient,
        requests: RequestTable,
    ) -> None:
        super().__init__(scoreboard, view, snapshots, samples)
        self.requests = requests
        self.arbiter = arbiter
        self.workers = workers

    def routes(self) -> list[Route]:
        commands = [Route(f"/commands/{it}", self.command(it), methods=("POST",)) for it in COMMANDS]
        actions = Route("/actions", self.actions, methods=("POST",))
        return [*super().routes(), *commands, actions, Route("/events", self.events)]

    def command(self, name: str) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            try:
                command = parse(name, await request.body(MAX_COMMAND))
            except ValueError as exc:
                return _outcome(400, str(exc))
            try:
                answer = await self.arbiter.ask(command)
            except ArbiterError as exc:
                return _outcome(503, str(exc))
            except TimeoutError as exc:
                return _outcome(504, str(exc))
            values = {} if answer.workers is None else {"workers": answer.workers}
            return _outcome(200 if answer.ok else 409, answer.text, **values)

        return endpoint

    async def actions(self, request: Request) -> Response:
        """What each worker says to an action of the app's, or a built-in one."""
        try:
            answers = await self.workers.ask(actions.parse(await request.body(MAX_COMMAND)))
        except ValueError as exc:
            return _outcome(400, str(exc))
        return _json({"ok": all(it["ok"] for it in answers), "workers": answers})

    async def events(self, request: Request) -> Response | Stream:
        """Server-sent events: the ``last`` ones that there were, then each new one."""
        last = request.argument("last", "0")
        if not (last.isascii() and last.isdecimal() and len(last) <= MAX_DIGITS):
            return _outcome(400, "last: give a number of events")
        if request.method == "HEAD":
            return Response(b"", kind=EVENTS)
        return Stream(Follower(self.view, int(last)).stream(), EVENTS)


def _outcome(status_code: int, text: str, **values: int) -> Response:
    return _json({"ok": status_code == 200, "text": text, **values}, status_code)


def _json(document: Mapping[str, object], status_code: int = 200) -> Response:
    """In ASCII: an exception's text may have half a surrogate pair, which UTF-8 cannot."""
    return Response(json.dumps(document).encode("ascii"), status_code, JSON)


def _moment(text: str) -> float | None:
    try:
        value = float(text) if len(text) <= MAX_NUMBER else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
