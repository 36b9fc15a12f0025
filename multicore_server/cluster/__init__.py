"""The interface of the server to the app: ``from multicore_server import cluster``.

Outside of a worker (plain uvicorn, a test, a REPL) the app is the only instance, number 0, primary, and never
drains.
So an app that uses this runs anywhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from multicore_server.cluster.actions import Actions
from multicore_server.cluster.calls import Apart
from multicore_server.cluster.messaging import (
    Address,
    Message,
    NotDelivered,
    Post,
    Receivers,
    Stream,
    descriptors_of,
    encoded,
)
from multicore_server.cluster.once import Attempt, Log, OnceError, once, once_sync
from multicore_server.cluster.place import here
from multicore_server.cluster.primary import Election, Lock

__all__ = [
    "Address", "Message", "NotDelivered", "OnceError", "action", "broadcast", "broadcast_sync", "draining",
    "generation", "instance", "instances", "is_primary", "is_worker", "messages", "on_drain", "on_message",
    "on_shutdown", "once", "once_sync", "ready", "run_on_primary", "send", "send_sync", "start",
    "wait_draining",
]  # fmt: skip

# Values of the moment: ask for ``cluster.draining``, because a name imported from here stays as it was.

instance: int
"""The worker's instance number: lowest free one from 0. A replacement keeps it. PM2: NODE_APP_INSTANCE."""

instances: int
"""How many workers were to run when this worker was started. PM2: ``instances``."""

generation: int
"""How many processes this instance has had, this one included; 0 outside of a worker."""

is_worker: bool
"""Whether this process is a worker of the server. Node: ``cluster.isWorker``."""

draining: bool
"""Whether this worker takes no new work and ends when its requests are answered."""

is_primary: bool
"""Whether this worker is the one that runs what is to run once: at most one is. Node's
``cluster.isPrimary`` is the parent process."""

_VALUES = frozenset({"instance", "instances", "generation", "is_worker", "draining", "is_primary"})

Callback = TypeVar("Callback", bound=Callable[[], Any])
Handler = TypeVar("Handler", bound=Callable[[Message, Address], Any])
Action = TypeVar("Action", bound=Callable[..., Any])


def __getattr__(name: str) -> Any:
    if name in _VALUES:
        return getattr(here(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_VALUES})


def ready() -> None:
    """Tell the server that this worker is ready.

    With ``wait_ready`` a worker becomes ready only by this call. Any thread can call it, more than once. It
    is PM2's ``process.send('ready')``.
    """
    if (on_ready := here().on_ready) is not None:
        on_ready()


async def wait_draining() -> None:
    """Return when this worker begins to drain: for responses and WebSockets that would not end by
    themselves. In any event loop, of any thread."""
    await here().wait_draining()


def on_drain(callback: Callback) -> Callback:
    """Call this when the worker begins to drain, in the event loop's thread; a coroutine function runs as a
    task, and the worker waits for it as for a request. A decorator. Node: ``worker.on('disconnect')``."""
    here().on_drain.append(callback)
    return callback


def on_shutdown(callback: Callback) -> Callback:
    """Call this when the worker has drained, before the app's lifespan shutdown; a coroutine function is
    awaited, for what is left of ``graceful_timeout``. A decorator."""
    here().on_shutdown.append(callback)
    return callback


def run_on_primary(function: Callback) -> Callback:
    """Run this in one worker alone, the primary one: a scheduler, a consumer of a queue. A decorator.

    A coroutine function runs as a task from the moment when the worker is ready and primary, and is cancelled
    when the worker drains; the next primary worker runs it then, not before it has ended here. What is no
    coroutine function gets a thread, and is to return soon after ``cluster.draining``. If it raises, it is
    logged, and starts again after a delay that grows from 0.1 to 15 s; if it returns, it is done.
    """
    here().jobs.add(function)
    return function


def start() -> None:
    """Run what is registered by `run_on_primary` in the running event loop: for plain uvicorn, in the app's
    lifespan, and for tests. In a worker it does nothing: the server starts it. Raises RuntimeError where no
    loop runs."""
    place = here()
    if place.is_primary and not place.is_worker:
        place.jobs.start()


# --- messages ---


async def send(instance: Address, message: Any, fds: Iterable[Any] = ()) -> None:
    """Send what JSON can say to the worker with this instance number, or to the hooks of the ``"arbiter"``.

    Up to 64 KiB as JSON; with it up to 16 open file descriptors, or sockets, which stay open here. Messages
    of one sender to one worker arrive in order, each once at most. It never waits for the receiver. Node:
    ``worker.send(message, sendHandle)``.

    Raises NotDelivered where that worker does not run or its queue is full; TypeError and ValueError for
    what cannot be sent.
    """
    send_sync(instance, message, fds)


def send_sync(instance: Address, message: Any, fds: Iterable[Any] = ()) -> None:
    """As `send`, for threads and WSGI apps. It does not wait either."""
    if instance != "arbiter" and type(instance) is not int:
        raise TypeError(f"{instance!r} is neither an instance number nor 'arbiter'")
    here().post.send(instance, encoded(message), descriptors_of(fds))


async def broadcast(message: Any, include_self: bool = False, fds: Iterable[Any] = ()) -> int:
    """Send a message, as `send` does, to every worker, those that drain included; return how many took it.

    For whom it was lost, it is counted in the metric ``multicore_messages_not_delivered_total``.
    """
    return broadcast_sync(message, include_self, fds)


def broadcast_sync(message: Any, include_self: bool = False, fds: Iterable[Any] = ()) -> int:
    """As `broadcast`, for threads and WSGI apps."""
    return here().post.broadcast(encoded(message), descriptors_of(fds), include_self=include_self)


def on_message(handler: Handler) -> Handler:
    """Call this with each message that comes, and its sender: ``handler(message, sender)``. A decorator.

    It runs in the event loop's thread; a coroutine function runs as a task. In an inline WSGI app it runs
    between two requests, with more threads in a thread of its own. If it raises, that is logged by name.
    Node: ``process.on('message')``.
    """
    here().receivers.add(handler)
    return handler


def messages() -> Stream:
    """Messages as they come: ``async with cluster.messages() as stream: async for message in stream: ...``

    From when the block is entered until the worker has drained, in any event loop. 1,000 messages may wait.
    """
    return Stream(here().receivers)


def action(name: str) -> Callable[[Action], Action]:
    """Let operators call this in each worker: ``multicore-server trigger NAME``. A decorator.

    Its arguments and its result are what JSON can say. It runs where message handlers run. PM2:
    ``tx2.action``. Raises TypeError, and ValueError for a name that is built in.
    """

    def register(function: Action) -> Action:
        here().actions.add(name, function)
        return function

    return register


# --- for the worker ---


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes a process a worker. ``on_ready`` is called for `ready`, ``once_log`` is of `once`, and by
    ``post`` messages leave it."""

    instance: int
    instances: int
    generation: int
    deployment: int
    on_ready: Callable[[], None]
    once_log: Log
    post: Post


def join(membership: Membership) -> None:
    """This process is a worker now. Called once, after the fork."""
    place = here()
    place.instance, place.instances = membership.instance, membership.instances
    place.generation, place.is_worker, place.is_primary = membership.generation, True, False
    place.on_ready, place.post = membership.on_ready, membership.post
    Attempt.join(membership.once_log, membership.deployment)


def open_receivers(loop: asyncio.AbstractEventLoop, apart: Apart | None) -> tuple[Receivers, Actions]:
    """This worker listens: its app's handlers and actions are called in this loop, or by ``apart``."""
    place = here()
    place.calls.open(loop, apart)
    return place.receivers, place.actions


def stand_for_primary(lock: Lock, changed: Callable[[bool], None]) -> Election:
    """This worker is ready: from now on it may be primary. ``changed`` is told whether it is."""
    place = here()

    def set_primary(primary: bool) -> None:
        place.is_primary = primary
        changed(primary)

    return Election(lock, place.jobs, set_primary)


def begin_to_drain() -> None:
    """Idempotent. May run inside a signal handler."""
    here().begin_to_drain()


def call_on_drain() -> list[Coroutine[Any, Any, None]]:
    """Call the callbacks; what is left to be awaited."""
    return here().call_on_drain()


def call_on_shutdown() -> list[Coroutine[Any, Any, None]]:
    """Call the callbacks; what is left to be awaited."""
    return here().call_on_shutdown()
