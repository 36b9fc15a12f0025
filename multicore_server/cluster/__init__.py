"""The interface between the server and the app: ``from multicore_server import cluster``.

Outside of a worker (plain uvicorn, a test, a REPL) the app is the only instance. It has number 0, is the
primary worker, and never drains. So an app that uses this module runs anywhere.
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

    With ``wait_ready``, a worker becomes ready only by this call. Any thread can call it, more than once. It
    is PM2's ``process.send('ready')``.
    """
    if (on_ready := here().on_ready) is not None:
        on_ready()


async def wait_draining() -> None:
    """Return when this worker begins to drain. Use it in responses and WebSockets that do not end by
    themselves. It works in any event loop, in any thread."""
    await here().wait_draining()


def on_drain(callback: Callback) -> Callback:
    """Decorate a function that is called when the worker begins to drain, in the event loop's thread.

    A coroutine function runs as a task, and the worker waits for it as for a request. Node:
    ``worker.on('disconnect')``.
    """
    here().on_drain.append(callback)
    return callback


def on_shutdown(callback: Callback) -> Callback:
    """Decorate a function that is called when the worker has drained, before the app's lifespan shutdown.

    A coroutine function is awaited for the rest of ``graceful_timeout``.
    """
    here().on_shutdown.append(callback)
    return callback


def run_on_primary(function: Callback) -> Callback:
    """Decorate a function that runs only in the primary worker: a scheduler, a queue consumer.

    A coroutine function runs as a task as soon as the worker is ready and primary. It is cancelled when the
    worker drains. When it has ended here, the next primary worker runs it. A function that is not a coroutine
    function runs in a thread and must return soon after ``cluster.draining`` becomes true. If it raises, the
    log names it, and it starts again after a delay that grows from 0.1 to 15 s. If it returns, it does not
    start again.
    """
    here().jobs.add(function)
    return function


def start() -> None:
    """Run the functions that `run_on_primary` has registered in the running event loop.

    This is for tests, and for plain uvicorn, where the app's lifespan calls it. In a worker it does nothing,
    because the server starts them. Raises RuntimeError if no loop runs.
    """
    place = here()
    if place.is_primary and not place.is_worker:
        place.jobs.start()


# --- messages ---


async def send(instance: Address, message: Any, fds: Iterable[Any] = ()) -> None:
    """Send a JSON value to the worker with this instance number, or to the hooks of the ``"arbiter"``.

    The message has up to 64 KiB as JSON. It can carry up to 16 open file descriptors or sockets, which stay
    open here. Messages from one sender to one worker arrive in order, each at most once. It never waits for
    the receiver. Node: ``worker.send(message, sendHandle)``.

    Raises NotDelivered if that worker does not run or its mailbox is full, and TypeError or ValueError for a
    value that cannot be sent.
    """
    send_sync(instance, message, fds)


def send_sync(instance: Address, message: Any, fds: Iterable[Any] = ()) -> None:
    """Send like `send`, for threads and WSGI apps. It does not wait either."""
    if instance != "arbiter" and type(instance) is not int:
        raise TypeError(f"{instance!r} is neither an instance number nor 'arbiter'")
    here().post.send(instance, encoded(message), descriptors_of(fds))


async def broadcast(message: Any, include_self: bool = False, fds: Iterable[Any] = ()) -> int:
    """Send a message, like `send`, to every worker, also to draining ones. Return how many took it.

    The metric ``multicore_messages_not_delivered_total`` counts the workers that did not take it.
    """
    return broadcast_sync(message, include_self, fds)


def broadcast_sync(message: Any, include_self: bool = False, fds: Iterable[Any] = ()) -> int:
    """Send like `broadcast`, for threads and WSGI apps."""
    return here().post.broadcast(encoded(message), descriptors_of(fds), include_self=include_self)


def on_message(handler: Handler) -> Handler:
    """Decorate a function that is called with each message and its sender: ``handler(message, sender)``.

    It runs in the event loop's thread; a coroutine function runs as a task. In an inline WSGI app, it runs
    between two requests. In a WSGI app with more threads, it runs in its own thread. If it raises, the log
    names it. Node: ``process.on('message')``.
    """
    here().receivers.add(handler)
    return handler


def messages() -> Stream:
    """Return a stream: ``async with cluster.messages() as stream: async for message in stream: ...``

    It has the messages from the moment when the block is entered until the worker has drained, in any event
    loop. Up to 1,000 messages may wait.
    """
    return Stream(here().receivers)


def action(name: str) -> Callable[[Action], Action]:
    """Decorate a function that operators call in each worker with ``multicore-server trigger NAME``.

    Its arguments and its result are JSON. It runs where message handlers run. PM2: ``tx2.action``. Raises
    TypeError, and ValueError for a name that is built in.
    """

    def register(function: Action) -> Action:
        here().actions.add(name, function)
        return function

    return register


# --- for the worker ---


@dataclass(frozen=True, slots=True)
class Membership:
    """What makes a process a worker. `ready` calls ``on_ready``, `once` uses ``once_log``, and messages leave
    by ``post``."""

    instance: int
    instances: int
    generation: int
    deployment: int
    on_ready: Callable[[], None]
    once_log: Log
    post: Post


def join(membership: Membership) -> None:
    """Make this process a worker. Called once, after the fork."""
    place = here()
    place.instance, place.instances = membership.instance, membership.instances
    place.generation, place.is_worker, place.is_primary = membership.generation, True, False
    place.on_ready, place.post = membership.on_ready, membership.post
    Attempt.join(membership.once_log, membership.deployment)


def open_receivers(loop: asyncio.AbstractEventLoop, apart: Apart | None) -> tuple[Receivers, Actions]:
    """Take messages from now on: the app's handlers and actions are called in this loop, or by ``apart``."""
    place = here()
    place.calls.open(loop, apart)
    return place.receivers, place.actions


def stand_for_primary(lock: Lock, changed: Callable[[bool], None]) -> Election:
    """Make this worker, which is ready, a candidate. ``changed`` is called with whether it is the primary
    worker."""
    place = here()

    def set_primary(primary: bool) -> None:
        place.is_primary = primary
        changed(primary)

    return Election(lock, place.jobs, set_primary)


def begin_to_drain() -> None:
    """Start the drain. Idempotent. May run inside a signal handler."""
    here().begin_to_drain()


def call_on_drain() -> list[Coroutine[Any, Any, None]]:
    """Call the callbacks. Return the coroutines to await."""
    return here().call_on_drain()


def call_on_shutdown() -> list[Coroutine[Any, Any, None]]:
    """Call the callbacks. Return the coroutines to await."""
    return here().call_on_shutdown()
