"""Messages between the workers: what a message is, who receives it, and how a single process handles one."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from multicore_server.cluster.calls import Calls, Function

MAX_MESSAGE = 64 * 1024  # bytes, as JSON
MAX_DEPTH = 200  # of lists and objects in each other: the receiver's stack may be shorter than the sender's
MAX_FDS = 16  # with one message
MOST_WAITING = 1000  # messages in a stream that nobody reads
PATIENCE = 10.0  # seconds for handlers where no event loop runs

Address = int | Literal["arbiter"]

logger = logging.getLogger("gunicorn.error")
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class NotDelivered(Exception):  # noqa: N818 - it says what happened to the message
    """The receiver does not run, or its mailbox is full; the text says which."""


class Message:
    """What a handler gets.

    ``value`` is the JSON value that was sent. ``sender`` is an instance number or ``"arbiter"``. ``fds`` are
    open file descriptors; no subprocess inherits them. Code that takes one out of this list
    (``message.fds.pop()``) owns it and closes it. The others are closed with the message.
    """

    __slots__ = ("__weakref__", "fds", "sender", "value")

    def __init__(self, value: Any, sender: Address, fds: Iterable[int] = ()) -> None:
        self.value = value
        self.sender = sender
        self.fds = list(fds)
        if self.fds:
            weakref.finalize(self, _close, self.fds)

    def __repr__(self) -> str:
        return f"Message({self.value!r}, sender={self.sender!r}, fds={self.fds!r})"


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def encoded(value: Any) -> bytes:
    """Return the message as JSON. Raises TypeError for a value that is not JSON, ValueError for one that is
    too large or for a number that JSON does not have."""
    try:
        body = _encode(value).encode()
    except RecursionError:
        raise ValueError("the message is nested too deeply") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError("the message is nested too deeply")
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"the message has {len(body)} bytes; the limit is {MAX_MESSAGE}")
    return body


def _depth(value: Any) -> int:
    """Calculate without recursion; a value that JSON has accepted has no cycle."""
    depth, level = 0, [value]
    while level := [it for it in level if isinstance(it, (list, tuple, dict))]:
        depth += 1
        level = [inner for it in level for inner in (it.values() if isinstance(it, dict) else it)]
    return depth


def descriptors_of(fds: Iterable[Any]) -> list[int]:
    """Return numbers, or objects with a ``fileno()``, as numbers. Raises TypeError, ValueError for too
    many."""
    numbers = [_number(fd) for fd in fds]
    if len(numbers) > MAX_FDS:
        raise ValueError(f"{len(numbers)} descriptors; the limit is {MAX_FDS}")
    return numbers


def _number(fd: Any) -> int:
    try:
        number = fd if isinstance(fd, int) else getattr(fd, "fileno", lambda: None)()
    except io.UnsupportedOperation:
        number = None
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{fd!r} is not a file descriptor and has none")
    if number < 0:
        raise ValueError(f"{fd!r} is closed")
    if number >= 2**31:
        raise ValueError(f"{fd!r} is not a file descriptor")
    return number


class Post(Protocol):
    """Carries messages from this process, or back to it. Any thread can use it; nothing waits."""

    def send(self, to: Address, body: bytes, fds: Sequence[int]) -> None:
        """Raises NotDelivered, and ValueError for descriptors that are not open."""

    def broadcast(self, body: bytes, fds: Sequence[int], *, include_self: bool) -> int:
        """Return how many processes took it. Raises like `send`, except for processes that did not take
        it."""
        ...


class Receivers:
    """The message handlers and streams of this process's app."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._handlers: list[Function] = []
        self._streams: set[Stream] = set()
        self._ended = False
        self.on_lost: Callable[[], None] = lambda: None  # a stream had no room for a message

    def add(self, handler: Callable[[Message, Address], Any]) -> None:
        self._handlers.append(Function.of("the message handler", handler))

    def listen(self, stream: Stream) -> None:
        if self._ended:
            stream.end()
        self._streams.add(stream)

    def ignore(self, stream: Stream) -> None:
        self._streams.discard(stream)

    def deliver(self, message: Message) -> None:
        """Deliver a message, in the loop's thread."""
        for stream in tuple(self._streams):
            if not stream.put(message):
                self.on_lost()
        for handler in self._handlers:
            self.calls.start(handler, message, message.sender)

    def end(self) -> None:
        """End the streams: no more messages come."""
        self._ended = True
        for stream in tuple(self._streams):
            stream.end()


class Stream:
    """Messages as an asynchronous iterator, as long as its block is open."""

    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self._messages: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._complained = False

    async def __aenter__(self) -> Stream:  # noqa: PYI034 - typing.Self comes with 3.11
        self._loop = asyncio.get_running_loop()
        self._receivers.listen(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._receivers.ignore(self)
        self._messages.clear()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Message:
        while not self._messages:
            if self._ended:
                raise StopAsyncIteration
            self._arrived.clear()
            if not self._messages:  # it may come from another thread
                await self._arrived.wait()
        return self._messages.popleft()

    def put(self, message: Message) -> bool:
        """Add a message. Return whether there was room."""
        if len(self._messages) >= MOST_WAITING:
            if not self._complained:
                self._complained = True
                logger.warning(
                    "nobody reads a message stream: %d messages wait, further ones are lost", MOST_WAITING
                )
            return False
        self._messages.append(message)
        self._wake()
        return True

    def end(self) -> None:
        """End the stream. Messages that have come can still be read."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._loop is _running_loop():
            self._arrived.set()
        else:
            with contextlib.suppress(RuntimeError):  # that loop is closed
                self._loop.call_soon_threadsafe(self._arrived.set)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class LocalPost:
    """Delivers messages within one process: to itself, and to the other instances in it.

    ``everyone`` has the receivers by instance number; ``own`` is the instance that this object belongs to.
    """

    def __init__(self, own: int, everyone: Mapping[int, Receivers]) -> None:
        self._own = own
        self._everyone = everyone
        self._loop: asyncio.AbstractEventLoop | None = None  # the last one in which a message was sent
        self.on_their_way = 0  # messages

    def send(self, to: Address, body: bytes, fds: Sequence[int]) -> None:
        if to == "arbiter":
            raise NotDelivered("there is no arbiter: this process is not a worker of the server")
        if to not in self._everyone:
            raise NotDelivered(f"there is no instance {to}; there are {', '.join(map(str, self._everyone))}")
        self._deliver(self._everyone[to], Message(json.loads(body), self._own, _duplicates(fds)))

    def broadcast(self, body: bytes, fds: Sequence[int], *, include_self: bool) -> int:
        to = [number for number in self._everyone if include_self or number != self._own]
        for number in to:
            self.send(number, body, fds)
        return len(to)

    def _deliver(self, receivers: Receivers, message: Message) -> None:
        """Deliver later in the running loop; at once if no loop runs."""
        loop = _running_loop() or self._loop
        if loop is None or not loop.is_running():
            asyncio.run(self._deliver_and_wait(receivers, message))
            return
        self._loop = loop
        self.on_their_way += 1
        loop.call_soon_threadsafe(self._hand_over, receivers, message, loop)

    def _hand_over(self, receivers: Receivers, message: Message, loop: asyncio.AbstractEventLoop) -> None:
        self.on_their_way -= 1
        receivers.calls.open(loop)
        receivers.deliver(message)

    async def _deliver_and_wait(self, receivers: Receivers, message: Message) -> None:
        receivers.calls.open(asyncio.get_running_loop())
        receivers.deliver(message)
        while self.on_their_way or receivers.calls.is_busy:
            await receivers.calls.settle(PATIENCE)
            await asyncio.sleep(0)


def _duplicates(fds: Sequence[int]) -> list[int]:
    """Duplicate descriptors, as the kernel does for another process."""
    made: list[int] = []
    try:
        made.extend(map(os.dup, fds))
    except OSError as exc:
        _close(made)
        raise ValueError(f"fds: {exc.strerror}") from None
    return made
