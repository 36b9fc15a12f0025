"""The gunicorn worker that runs uvicorn, from its fork to its exit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from gunicorn.arbiter import Arbiter
from gunicorn.workers import base

from multicore_server import cluster
from multicore_server.cluster.calls import Apart
from multicore_server.cluster.messaging import descriptors_of, encoded
from multicore_server.connections import http2
from multicore_server.connections.factory import is_movable
from multicore_server.connections.limits import limits_of
from multicore_server.ipc.identity import identity, server_name
from multicore_server.ipc.mailboxes import ARBITER, Kind, Packet
from multicore_server.ipc.messages import EndOrder
from multicore_server.ipc.names import Interface, Reason
from multicore_server.ipc.request_table import InHand
from multicore_server.ipc.scoreboard import Item
from multicore_server.logs import origin
from multicore_server.metrics.app import values as app_values
from multicore_server.worker import cycle, failures, garbage, loggers, loop, meter
from multicore_server.worker.abort_stacks import AbortStacks
from multicore_server.worker.context import WorkerContext
from multicore_server.worker.engine import about_protocol, make_config, wants_access_log
from multicore_server.worker.forked_children import ForkedChildren, waited_for
from multicore_server.worker.lifeline import Lifeline
from multicore_server.worker.long_requests import UNLIMITED, LongRequests, long_requests
from multicore_server.worker.mailbox import Mailbox, put
from multicore_server.worker.metrics_path import MetricsPath
from multicore_server.worker.orders import Orders
from multicore_server.worker.proxied import Proxied
from multicore_server.worker.queue_time import QueueTime
from multicore_server.worker.request_hooks import RequestHooks
from multicore_server.worker.server import LIFESPAN_GRACE, WorkerServer
from multicore_server.worker.unlogged import Unlogged
from multicore_server.worker.usage import Usage

END_GRACE = 0.25  # seconds for Python's own way to end


class Worker(base.Worker):  # type: ignore[misc]  # gunicorn has no types
    """Runs an app on uvicorn; `multicore_server.plugin.Worker` adds what gunicorn calls first of all."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context: WorkerContext  # set by the arbiter between this and the fork
        self.server: WorkerServer | None = None
        self.interface: Interface = "asgi3"  # until the app is loaded
        self.ready = False  # the arbiter has been told
        self.asked = False  # a replacement has been asked for
        self._app_ready = False  # cluster.ready() was called
        self._loading = False  # the app's code
        self.last_words = ""  # as the arbiter has heard them
        self.in_hand: list[InHand] = []  # in the arbiter, after its end: the requests that it did not answer
        self.leave: Callable[[], None] = lambda: None  # the worker_exit hook, once; given by the arbiter
        self.mailbox: Mailbox  # from the fork on, in the worker's process
        self.direct: Callable[[Any], Any] | None = None  # how a WSGI app is asked without a detour
        self.long_requests: LongRequests | None = None  # where a setting asks for them
        self.orders: Orders  # likewise
        self._apart: Apart | None = None  # how functions of the app are called outside of a request
        self._lifeline: Lifeline | None = None
        self._forked = ForkedChildren(self._own_descriptors)
        self._stacks = AbortStacks()
        self.usage: Usage  # from the fork on, in the worker's process

    @property
    def identity(self) -> str:
        return identity(self.context.instance, self.context.generation, self.pid)

    # --- boot ---

    def boot(self, post_fork: Callable[[], None]) -> None:
        """Become the worker: runs until it ends, or ends the process with the cause told."""
        context = self.context
        os.environ[context.settings.instance_var] = str(context.instance)
        origin.become(context.instance, context.generation)
        self.usage = Usage(context.row)
        context.row[Item.DEPLOYMENT] = context.deployment
        self.mailbox = Mailbox(context, self.identity)
        self.orders = Orders(context.channel)
        cluster.join(
            cluster.Membership(
                context.instance,
                context.instances,
                context.generation,
                context.deployment,
                self.on_app_ready,
                context.cluster.once,
                self.mailbox,
            )
        )
        app_values.take_row(context.number)
        grace = self.cfg.graceful_timeout + LIFESPAN_GRACE
        self._lifeline = Lifeline(context.lifeline, self.identity, grace, self._end)
        self._lifeline.watch()
        self._forked.watch()
        try:
            access, form = wants_access_log(self.cfg, self.log), context.settings.log_format
            loggers.set_up(self.log, self.cfg, access=access, form=form, unlogged=self._unlogged)
            post_fork()
            self.init_process()
        except Exception as exc:  # noqa: BLE001 - whatever the app raises
            self.fail(exc)
        except SystemExit as exc:
            if not self.ready and self.server is None:
                self.fail(exc)
            raise

    def fail(self, exc: BaseException) -> NoReturn:
        """End; a worker that was never ready leaves it to the arbiter to show the cause."""
        if self.ready:
            self.log.error("%s failed", self.identity, exc_info=exc)
            sys.exit(1)
        app = server_name(getattr(self.app, "app_uri", None) or "the app")
        words = failures.explain(exc, app) if self._loading else failures.one_line(exc)
        words += failures.about_addresses(exc, self.context.settings.metrics_bind)
        self.context.channel.last_words(words, failures.app_traceback(exc, app))
        sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def load_wsgi(self) -> None:
        """Unlike gunicorn's, serves no page in place of code that has a syntax error (``--reload``): while
        it has, the old worker keeps serving."""
        app_values.open_files()
        garbage.collect_less_often(self.context.settings.gc_threshold)
        self._loading = True
        self.wsgi = self.app.wsgi()
        self._loading = False

    def init_signals(self) -> None:
        """Until the server runs, TERM, INT and QUIT end this process at once, which is right for a boot."""
        for name in self.SIGNALS:
            signal.signal(name, signal.SIG_DFL)
        # `pkill -HUP gunicorn` reaches workers too. A handler, not SIG_IGN: subprocesses would inherit that.
        # USR1 is for `watch`: a handler would run in the midst of a line that is being written.
        ignored = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN)
        for name in (*ignored, signal.SIGTTOU):
            signal.signal(name, lambda *_: None)
        signal.signal(signal.SIGABRT, self.handle_abort)
        self._forked.note_handlers()
        self._stacks.write_to(self.log.error_log)

    def run(self) -> None:
        limits = limits_of(self.cfg, self.context.settings)
        engine = make_config(
            self.cfg, self.log, self.wsgi, self.CONFIG_KWARGS, self.surround,
            limits.head, RequestHooks(self), self._unlogged,
        )  # fmt: skip
        config, self.interface, self._apart, self.direct, proxied = engine
        self.context.row[Item.INLINE] = self.direct is not None
        if self.interface == "wsgi":
            loggers.explain_upgrades()
        self.count_requests(config, proxied)
        if (line := about_protocol(config)) and self.context.instance == 0:  # once, not for each worker
            self.log.warning("%s", line)
        if self._is_inline and self.context.settings.request_timeout and self.context.instance == 0:
            self.log.warning("%s", UNLIMITED)
        loop_factory = config.get_loop_factory()  # ends the process if there is no such loop
        loop.run(self._serve(config, self._listeners), loop_factory)
        if pids := waited_for():
            text = "%s multiprocessing waits for its child processes %s, which are not daemonic"
            self.log.warning(text, self.identity, ", ".join(map(str, pids)))

    def count_requests(self, config: Any, proxied: Proxied | None = None) -> None:
        context, protocol = self.context, config.http_protocol_class
        self.long_requests = long = long_requests(
            context.row, context.settings, lambda: self.identity, inline=self._is_inline
        )
        has_threads = self.interface == "wsgi" and self.direct is None
        queue = QueueTime(context.row, has_threads=has_threads, notes=long is not None)
        in_hand = context.requests.writer(context.number)
        if proxied is not None:
            proxied.on_client = in_hand.rename_client
            proxied.on_start = queue.told
        phased = is_movable(protocol)  # its connections count what they have
        modules = meter.modules_of(protocol)
        cycle.install(
            context.row, in_hand, modules, lambda name: not phased or name == http2.CYCLES, queue, long
        )
        if config.ws_protocol_class is not None:
            config.ws_protocol_class = meter.counted_websocket(config.ws_protocol_class, self.context.row)

    @property
    def _unlogged(self) -> Unlogged:
        return Unlogged(self.context.settings.access_log_skip)

    @property
    def _is_inline(self) -> bool:
        return self.interface == "wsgi" and self.cfg.threads == 1

    def surround(self, app: Any, root_path: str) -> Any:
        """The ASGI app that uvicorn is given."""
        path = self.context.settings.metrics_path
        return MetricsPath(app, root_path + path, self.context.monitor) if path else app

    async def _serve(self, config: Any, listeners: list[Any]) -> None:
        self.server = WorkerServer(config, self)
        try:
            await self.server.serve(sockets=listeners)
        except SystemExit:  # uvicorn's way to report a failed lifespan startup
            if self.server.started:
                raise
        finally:
            self.server.signals.ignore()
        if not self.server.started:
            self.context.channel.last_words("the app's lifespan startup failed (see its traceback)")
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    @property
    def _listeners(self) -> list[socket.socket]:
        """As sockets: gunicorn wraps those that it has bound."""
        return [getattr(listener, "sock", listener) for listener in self.sockets]

    def _own_descriptors(self) -> Iterator[int]:
        """Those that no process but this one, and the arbiter, should hold."""
        yield self.context.channel.child_end.fileno()
        yield from self.context.handover.inboxes.descriptors()
        yield from self.context.cluster.mailboxes.descriptors()
        for listener in self._listeners:
            yield listener.fileno()
        if self.server is not None:
            yield from self.server.state.descriptors()

    # --- what the arbiter's hooks do ---

    def send(self, message: Any, fds: Iterable[Any] = ()) -> None:
        """In a hook of the arbiter's: send a message to the app's handlers, as `cluster.send` does; its
        sender is ``"arbiter"``. Raises NotDelivered, TypeError, ValueError."""
        packet = Packet(Kind.MESSAGE, ARBITER, 0, encoded(message), descriptors_of(fds))
        if not self.context.row[Item.LISTENS]:
            raise cluster.NotDelivered(f"{self.identity} takes no messages")
        put(self.context.cluster.mailboxes, self.context.number, packet)

    # --- what the server tells ---

    def on_app_ready(self) -> None:
        """`cluster.ready`: may come early, from any thread, and more than once."""
        self._app_ready = True
        if self.server is not None:
            self.server.app_is_ready()

    @property
    def waits_for_app(self) -> bool:
        return self.context.settings.wait_ready and not self._app_ready

    def on_started(self) -> None:
        """The server listens: tell the arbiter."""
        self.ready = True
        self.context.channel.ready(self.interface)

    def on_answered(self) -> None:
        """After each response, and at each heartbeat for the protocols that do not tell."""
        if self.server is not None and self.server.server_state.total_requests >= self.max_requests:
            self.ask_to_retire("max_requests")

    def ask_to_retire(self, reason: Reason) -> None:
        """Ask, once, for a replacement; until it is ready this worker serves on."""
        if not self.asked:
            self.asked = True
            self.context.channel.retire(reason)

    def answer_beside(self) -> None:
        self.mailbox.read_beside()

    async def on_drained(self, patience: float) -> bool:
        return await self.mailbox.end(patience)

    def beat(self) -> None:
        self.on_answered()
        self.mailbox.beat()
        self.usage.beat()

    def _wake(self) -> None:
        if self.server is not None:
            self.server.wake()

    # --- signals, the reloader, the arbiter's end ---

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if loggers.is_moved(self.log):  # while this worker booted
            self.handle_usr1(signal.SIGUSR1, None)

        def drain() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker ends already
                loop.call_soon_threadsafe(self._on_arbiter_gone)

        if self._lifeline is not None:
            self._lifeline.serve(drain, self._listeners)
        self._forked.note_handlers()
        self.mailbox.open(loop, self._apart, self._wake)
        loop.add_reader(self.PIPE[0], self._on_file_changed)
        loop.add_reader(self.context.channel.child_end.fileno(), self._obey)
        if self.reloader is not None:
            self._keep_reloading()

    def on_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGUSR1:
            self.handle_usr1(number, None)
            return
        if self.orders.read() is not None:  # the arbiter's signal
            self._obey()
        elif number is signal.SIGTERM and self.context.settings.shutdown_delay:
            # Whoever ends a server often signals all of its processes. The arbiter knows whether this is its
            # end, for which it waits, or the worker's alone.
            self.ask_to_retire("manual")
        else:
            self.context.channel.retire("manual", draining=True)
            self._end_as(EndOrder(quick=number is not signal.SIGTERM))

    def is_told_to_end(self) -> bool:
        return self.orders.read() is not None or not self.context.settings.shutdown_delay

    def _obey(self) -> None:
        """An order has come, by whichever way it was noticed."""
        if (order := self.orders.take()) is not None:
            if self.server is not None:
                self.server.signals.tell_ahead(signal.SIGQUIT if order.quick else signal.SIGTERM)
            self._end_as(order)
        elif self.orders.ended:
            asyncio.get_running_loop().remove_reader(self.context.channel.child_end.fileno())

    def _end_as(self, order: EndOrder) -> None:
        if order.quick:
            self.cfg.worker_int(self)
        self.stop(quick=order.quick)

    def stop(self, *, quick: bool = False) -> None:
        self.alive = False
        if self.server is not None:
            self.server.stop(quick=quick)

    def handle_usr1(self, sig: int, frame: Any) -> None:
        try:
            super().handle_usr1(sig, frame)
        except OSError as exc:  # no descriptors, no such directory any more, no right
            self.log.warning("%s a log file could not be reopened: %s", self.identity, exc)
        self._stacks.write_to(self.log.error_log)  # the reopened file

    def handle_abort(self, sig: int, frame: Any) -> None:
        """gunicorn's way to end a hung worker, made sure: an app that catches SystemExit cannot stay."""
        self.cfg.worker_abort(self)
        self._end(1)

    def end_in_any_case(self) -> None:
        """Python would wait, at its end, for the threads in which cancelled requests may still run."""
        timer = threading.Timer(END_GRACE, self._end, [0])
        timer.daemon = True
        timer.start()

    def _end(self, status: int) -> NoReturn:
        self.leave()
        logging.shutdown()
        os._exit(status)

    def _on_arbiter_gone(self) -> None:
        if self._lifeline is not None:
            self._lifeline.heard()
        self.stop()

    def _on_file_changed(self) -> None:
        os.read(self.PIPE[0], 4096)
        self.log.info("%s a source file has changed; asking for a replacement", self.identity)
        self.context.channel.retire("reload")

    def _keep_reloading(self) -> None:
        """gunicorn's reloader ends its worker at the first change. Ours serves on until a replacement with
        the new code is ready, so it goes on watching: the next change may repair what this one broke."""
        seen: dict[str, float] = {}

        def changed(name: str) -> None:
            modified = Path(name).stat().st_mtime if Path(name).exists() else 0.0
            if seen.get(name) != modified:
                seen[name] = modified
                os.write(self.PIPE[1], b"1")

        self.reloader._callback = changed
