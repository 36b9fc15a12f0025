"""uvicorn's server inside a worker: driven by events, without polling, with a drain that cuts nothing off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, Protocol

import uvicorn

from multicore_server import cluster
from multicore_server.connections.acceptor import Acceptor
from multicore_server.connections.dispatcher import Dispatcher
from multicore_server.connections.factory import ProtocolFactory
from multicore_server.connections.inline import InlineGate, OpenGate
from multicore_server.connections.limits import limits_of
from multicore_server.connections.protocol import MovableProtocol
from multicore_server.connections.spool import Spools
from multicore_server.connections.state import ConnectionsState
from multicore_server.connections.timeouts import sweep
from multicore_server.ipc.scoreboard import Item
from multicore_server.settings.gunicorn import spool_directories
from multicore_server.worker import garbage
from multicore_server.worker.blocked import Blocked
from multicore_server.worker.candidacy import Candidacy
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.drain import Drain, shut
from multicore_server.worker.heart import Heart
from multicore_server.worker.long_requests import LongRequests
from multicore_server.worker.proxied import announcements
from multicore_server.worker.signals import HANDLED, LoopSignals
from multicore_server.worker.watch import LoopWatch, patience

logger = logging.getLogger("gunicorn.error")

SWEEP = 1.0  # seconds between two looks for clients that take too long
LIFESPAN = "LifespanOn.main"  # uvicorn's task that has the app's lifespan
CANCEL_GRACE = 0.25  # seconds for cancelled requests to answer 500
LIFESPAN_GRACE = 1.0  # seconds for the app's lifespan shutdown when there is no time left


class Host(Protocol):
    """What the server needs of the worker that runs it."""

    cfg: Any  # gunicorn's settings
    context: WorkerContext
    interface: str  # of the app: asgi3, asgi2, wsgi
    # Called with the server's state: makes what asks a WSGI app without a detour. None: the app is ASGI, say.
    direct: Any
    long_requests: LongRequests | None  # None: no setting asks for them

    @property
    def identity(self) -> str:
        """How it calls itself in the log."""
        ...

    @property
    def waits_for_app(self) -> bool:
        """Whether the app is to say that it is ready, and has not."""
        ...

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop runs: watch what is to be heard of."""
        ...

    def beat(self) -> None:
        """A heartbeat is due."""
        ...

    def on_started(self) -> None:
        """The server listens."""
        ...

    def on_answered(self) -> None:
        """A response is complete."""
        ...

    def answer_beside(self) -> None:
        """By a thread, while the loop is blocked."""
        ...

    def on_signal(self, number: signal.Signals) -> None: ...

    def is_told_to_end(self) -> bool:
        """Whether a TERM that has come means that."""
        ...

    async def on_drained(self, patience: float) -> bool:
        """No request is left: finish what else is in progress, in so many seconds at most. Whether some of it
        was cancelled."""
        ...

    def end_in_any_case(self) -> None:
        """Requests were cancelled, and what runs in threads may go on: the process is to end all the same."""
        ...


class WorkerServer(uvicorn.Server):
    """Serves until it is told to stop; tells its host when it is ready."""

    def __init__(self, config: uvicorn.Config, worker: Host) -> None:
        super().__init__(config)
        self.worker = worker
        self.row = worker.context.row
        dispatcher, gate = self._place_and_gate()
        self.server_state = self.state = ConnectionsState(self.row, gate)
        self.state.loop = asyncio.get_running_loop()
        self.state.limits = limits_of(
            worker.cfg,
            worker.context.settings,
            config.h11_max_incomplete_event_size,
        )
        if worker.interface == "wsgi":
            self.state.answers_half_closed = True
            self.state.joins_chunks = False  # PEP 3333: no block may wait for the next one
            self.state.spools = Spools(spool_directories(worker.cfg))
        if worker.direct is not None:
            self.state.direct = worker.direct(self.state)
        scoreboard = worker.context.handover.scoreboard
        announced = announcements(worker.cfg, self.state.limits.header_timeout)
        self.acceptor = Acceptor(config, self.state, scoreboard, dispatcher, self._make_protocol, announced)
        self._told = asyncio.Event()
        self._gave_up = False  # requests were cancelled
        self._loops_handler: Any = None  # of SIGTERM
        self._sweep_due = 0.0
        self._task: Any = None  # that runs it
        self._has_tasks = False  # of the app's, without requests
        self._some_unsent = False  # clients have not taken all of their responses
        self._app_ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.signals = LoopSignals(self._loop)
        self._candidacy = Candidacy(
            worker.context.cluster.primary, scoreboard, self.row, worker.context.deployment
        )
        parts: tuple[Callable[[], object], ...]
        parts = (worker.beat, self._beat_connections, self._sweep_requests, self._candidacy.beat)
        long = worker.long_requests
        if long is not None:
            parts = (*parts, long.sweep)
        timeout, identity = worker.cfg.timeout, lambda: worker.identity
        self.watch = LoopWatch(
            self.state,
            self._make_blocked(identity),
            self._dispatcher_for_a_thread(),
            worker.answer_beside,
            long,
        )
        self.heart = Heart(
            self.state,
            self.acceptor,
            parts,
            timeout=timeout,
            identity=identity,
            watch=self.watch,
            is_busy=lambda: bool(long),
            dozes=self._dozes,
            on_wake=self._renew_date,
        )
        self._choose_listener()

    def _place_and_gate(self) -> tuple[Dispatcher | None, OpenGate]:
        """Who places connections, and the rule by which they wait."""
        context, dispatcher = self.worker.context, None
        inline = self.worker.interface == "wsgi" and self.worker.cfg.threads == 1
        if context.settings.scheduling == "least":
            dispatcher = Dispatcher(context.handover, context.instance, context.row, inline=inline)
        if not inline:
            return dispatcher, OpenGate()
        return dispatcher, InlineGate(lambda connections: self._is_quick(dispatcher, connections))

    def _make_blocked(self, identity: Callable[[], str]) -> Blocked:
        context, cfg = self.worker.context, self.worker.cfg
        warning = patience(context.settings.block_warning, cfg.timeout, inline=self.state.gate.inline)
        in_hand = partial(context.requests.of, context.number)
        return Blocked(self.row, threading.get_ident(), warning, identity, in_hand)

    def _dispatcher_for_a_thread(self) -> Callable[[], Dispatcher] | None:
        context = self.worker.context
        if self.acceptor.dispatcher is None:
            return None
        return partial(Dispatcher, context.handover, context.instance, context.row)

    def _is_quick(self, dispatcher: Dispatcher | None, connections: int) -> bool:
        """Whether so many connections wait here for a moment only. By its mean, a worker is quick that has
        one long request among many short ones."""
        return dispatcher is None or (self.state.is_brisk and dispatcher.is_quick(connections))

    def _make_protocol(self) -> Any:
        """The first one: the app's lifespan state is there by then."""
        given = {"app_state": self.lifespan.state, "_loop": self._loop}
        protocol = self.config.http_protocol_class
        factory = ProtocolFactory(protocol, config=self.config, server_state=self.state, **given)
        self.acceptor.make_protocol = factory
        return factory()

    def stop(self, *, quick: bool = False) -> None:
        """Begin to drain; ``quick``: without waiting for the requests in progress."""
        if not self.should_exit:
            self._exit_as_uvicorn_does()
        self.should_exit = True
        self.force_exit = self.force_exit or quick
        self.begin_to_drain()
        self._told.set()

    def _exit_as_uvicorn_does(self) -> None:
        """Libraries put a function of theirs in the place of this one, to hear of the end."""
        try:
            self.handle_exit(signal.SIGTERM, None)
        except Exception:
            logger.exception("%s uvicorn.Server.handle_exit was replaced, and failed", self.worker.identity)

    def wake(self) -> None:
        """Something comes: end the rest."""
        if self.state.wake is not None:
            self.state.wake()

    def begin_to_drain(self) -> None:
        """At once: responses that are complete before the loop comes to `shutdown` are the last too. May run
        inside a signal handler, while the app has the thread."""
        self.state.moving = self.acceptor.has_sibling
        self.acceptor.begin_to_drain()
        self.state.draining = True
        self.state.tell = self.on_answered
        cluster.begin_to_drain()
        for connection in list(self.state.gate.awaited):
            connection.announce_end()

    def app_is_ready(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it comes too late
            self._loop.call_soon_threadsafe(self._app_ready.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens only when the app has started and is ready: the addresses are shared by the workers, so
        one that listens gets requests."""
        start_app = self.lifespan.startup

        async def start_and_wait() -> None:
            await start_app()
            if self.worker.waits_for_app and not self.lifespan.should_exit:
                await self._app_ready.wait()

        self.lifespan.startup = start_and_wait
        await super().startup([])
        if self.started:  # uvicorn before 0.47 does not exit when the app's startup has failed
            garbage.freeze()
            await self.acceptor.open(sockets or [])

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The worker handles signals, once it is ready; until then their default, to end, is right."""
        yield

    def _choose_listener(self) -> None:
        """Have `on_answered` called after each response, or not where it would find nothing to do."""
        state, limited = self.state, bool(self.worker.cfg.max_requests)
        wanted = state.draining or state.gate.inline or limited or self.acceptor.has_surplus
        state.tell = self.on_answered if wanted else None

    def on_answered(self, connection: MovableProtocol) -> None:
        """A response is complete."""
        if self.state.draining:
            connection.end()
            return
        acceptor = self.acceptor
        self.worker.on_answered()
        if not acceptor.is_taking:
            acceptor.take_on()
        if acceptor.has_surplus and connection.idle:
            connection.leave_soon()

    async def main_loop(self) -> None:
        loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for number in HANDLED:
            self.signals.take(number, self.worker.on_signal)
        self._hear_term_at_once()
        self.worker.watch(loop)
        await self.on_tick(0)
        self.heart.beat()
        self.watch.start(self.worker.identity)
        self.worker.on_started()
        while not self.should_exit:
            await self._told.wait()
            self._told.clear()
            await self.on_tick(0)

    def _hear_term_at_once(self) -> None:
        """Begin to drain inside the signal handler: an app that has the loop's thread keeps the loop from
        hearing of TERM, and its response is to say that it is the connection's last."""
        self._loops_handler = signal.getsignal(signal.SIGTERM)
        # A method of the server's, as in uvicorn: sse-starlette finds the server by it.
        signal.signal(signal.SIGTERM, self._on_term)
        signal.siginterrupt(signal.SIGTERM, False)

    def _on_term(self, number: int, frame: Any) -> None:
        if self.worker.is_told_to_end():
            self.begin_to_drain()
        if callable(self._loops_handler):
            self._loops_handler(number, frame)
        self.signals.tell_app(number, frame)

    def _beat_connections(self) -> None:
        self.acceptor.beat(len(self.state.connections), self.state.total_requests)
        self._choose_listener()

    def _sweep_requests(self) -> None:
        now = self._loop.time()
        if now >= self._sweep_due:
            self._sweep_due = now + SWEEP
            self._some_unsent = sweep(list(self.state.connections), self.state.limits, now)
            self._told.set()  # the Date header

    def _dozes(self) -> bool:
        """Whether something is to be looked after while it rests, or may come that does not end a rest. What
        the app does without requests may block the loop, and may use more memory than it has."""
        is_limited = self.row[Item.MEMORY_LIMIT] > 0
        has_reason = is_limited or self._some_unsent or self.acceptor.dozes
        if self.state.wake is None:  # the worker is awake: tasks that are not there now do not come in a rest
            # Counted where that decides: there may be thousands.
            self._has_tasks = has_reason or self._app_has_tasks()
        return has_reason or self._has_tasks

    def _app_has_tasks(self) -> bool:
        tasks = asyncio.all_tasks(self._loop) - {self._task}
        return any(getattr(task.get_coro(), "__qualname__", "") != LIFESPAN for task in tasks)

    def _renew_date(self) -> None:
        """At the end of a rest, before the first response: what `main_loop` does between two beats."""
        with contextlib.suppress(StopIteration):
            self.on_tick(0).send(None)

    # --- the end ---

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        self._tell_app()
        await self.acceptor.close(sockets or [])
        if not self.force_exit:
            await Drain(self.state, self.acceptor, deadline, self._tick_in_drain).run()
        await self._cancel_requests()
        for connection in list(self.server_state.connections):
            shut(connection)
        if await self.worker.on_drained(self._left(deadline)):
            self._gave_up = True
        await self._end_app(deadline)
        self.watch.end()
        if self._gave_up:
            self.worker.end_in_any_case()

    async def _tick_in_drain(self) -> bool:
        await self.on_tick(0)  # the Date header
        return self.force_exit

    async def _cancel_requests(self) -> None:
        """What is not done by now gets a moment to say so to its client: uvicorn answers 500."""
        tasks = list(self.server_state.tasks)
        if not tasks:
            return
        if not self.force_exit:
            what = f"requests not done after {self.worker.cfg.graceful_timeout} s (graceful_timeout)"
            logger.error("%s %s: %d; cancelling them", self.worker.identity, what, len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        self._gave_up = True

    def _tell_app(self) -> None:
        """What the app does when its worker drains is waited for, and cancelled, like its requests."""
        for left in (*cluster.call_on_drain(), self._candidacy.withdraw()):
            self.state.hold(self._loop.create_task(left))

    async def _end_app(self, deadline: float) -> None:
        """The app's own end: within the rest of graceful_timeout, and shortly where there is none."""
        await self._before(deadline, "on_shutdown callbacks", asyncio.gather(*cluster.call_on_shutdown()))
        await self._before(deadline, "lifespan shutdown", self.lifespan.shutdown())

    def _left(self, deadline: float) -> float:
        """Seconds."""
        return 0.0 if self.force_exit else deadline - time.monotonic()

    async def _before(self, deadline: float, what: str, end: Awaitable[Any]) -> None:
        try:
            await asyncio.wait_for(end, max(self._left(deadline), LIFESPAN_GRACE))
        except asyncio.TimeoutError:
            logger.error("%s the app's %s took too long; exiting without it", self.worker.identity, what)
