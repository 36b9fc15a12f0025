"""A worker's messages: sends them, and handles those that arrive."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from multicore_server import cluster
from multicore_server.cluster.actions import Actions, NoActionError
from multicore_server.cluster.calls import Apart
from multicore_server.cluster.messaging import Address, Receivers, encoded
from multicore_server.ipc.mailboxes import ARBITER, GarbledError, Kind, Mailboxes, NoMailboxError, Packet
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item
from multicore_server.worker import builtin_actions, stacks
from multicore_server.worker.context import WorkerContext

AT_ONCE = 64  # messages that are read in one turn of the loop
PATIENCE = 5.0  # seconds for handlers when the worker has drained
LOOK = 1.0  # seconds between two looks for handlers that do not end

logger = logging.getLogger("gunicorn.error")


class Mailbox:
    """Made after the fork. Sending is for all threads; the rest is the loop's."""

    def __init__(self, context: WorkerContext, identity: str) -> None:
        self._context = context
        self._identity = identity
        self._boxes = context.cluster.mailboxes
        self._scoreboard = context.handover.scoreboard
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of this process's figures
        self._fetching = threading.Lock()  # whose turn it is to take packets
        self._early: deque[Packet] = deque()  # taken while the loop stood still
        self._receivers: Receivers | None = None
        self._actions: Actions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # while it listens
        self._wake: Callable[[], None] = lambda: None
        self._reading = False
        self._look_due = 0.0
        self._complained = False
        self._boxes.keep(context.number)

    # --- out

    def send(self, to: Address, body: bytes, fds: Sequence[int]) -> None:
        """See `multicore_server.cluster.messaging.Post`."""
        self._check_process()
        try:
            if to == "arbiter":
                self._tell_arbiter(body, fds)
            else:
                self._put(self._row_of(int(to)), body, fds)
        except cluster.NotDelivered:
            self._count(Item.MESSAGES_LOST)
            raise

    def broadcast(self, body: bytes, fds: Sequence[int], *, include_self: bool) -> int:
        self._check_process()
        took = 0
        for row in self._listening():
            if include_self or row != self._context.number:
                try:
                    self._put(row, body, fds)
                    took += 1
                except cluster.NotDelivered:
                    self._count(Item.MESSAGES_LOST)
        return took

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise cluster.NotDelivered("this process was forked by a worker and is not a worker")

    def _tell_arbiter(self, body: bytes, fds: Sequence[int]) -> None:
        if fds:
            raise ValueError("the arbiter takes no descriptors")
        try:
            self._context.channel.tell(body)
        except OSError as exc:
            raise cluster.NotDelivered(f"the arbiter {_why(exc)}") from None
        self._count_sent(body)

    def _put(self, row: int, body: bytes, fds: Sequence[int]) -> None:
        put(self._boxes, row, Packet(Kind.MESSAGE, self._context.instance, 0, body, fds))
        self._count_sent(body)

    def _row_of(self, instance: int) -> int:
        """The process that serves for this instance, or another of it that listens. Raises NotDelivered."""
        found = -1
        if 0 <= instance < self._scoreboard.used_slots:
            for number in range(instance * ROWS_PER_SLOT, (instance + 1) * ROWS_PER_SLOT):
                row = self._scoreboard.row(number)
                if row[Item.LISTENS]:
                    if row[Item.SERVING]:
                        return number
                    found = number
        if found < 0:
            raise cluster.NotDelivered(f"instance {instance} is not running")
        return found

    def _listening(self) -> Iterator[int]:
        for number in range(self._scoreboard.used_slots * ROWS_PER_SLOT):
            if self._scoreboard.row(number)[Item.LISTENS]:
                yield number

    def _count_sent(self, body: bytes) -> None:
        row = self._context.row
        with self._lock:
            row[Item.MESSAGES_SENT] += 1
            row[Item.MESSAGE_BYTES] += len(body)

    def _count(self, item: Item, amount: float = 1) -> None:
        with self._lock:
            self._context.row[item] += amount

    # --- in

    def open(
        self, loop: asyncio.AbstractEventLoop, apart: Apart | None, wake: Callable[[], None] = lambda: None
    ) -> None:
        """The worker is ready: take messages. ``wake`` is called before they are handled."""
        self._wake = wake
        self._receivers, self._actions = cluster.open_receivers(loop, apart)
        self._actions.build_in(builtin_actions.ALL.items())
        self._receivers.on_lost = lambda: self._count(Item.MESSAGES_LOST)
        calls = self._receivers.calls
        calls.on_room, calls.spent = self._listen, lambda spent: self._count(Item.HANDLER_SECONDS, spent)
        self._loop = loop
        try:
            self._listen()
        except NoMailboxError:
            logger.warning("%s takes no messages: no descriptors were left at the start", self._identity)
            return
        self._context.row[Item.LISTENS] = 1

    def _listen(self) -> None:
        if self._loop is not None and not self._reading:
            self._loop.add_reader(self._boxes.reader(self._context.number), self._read)
            self._reading = True
            if self._early:
                self._loop.call_soon(self._read)

    def _be_deaf(self) -> None:
        if self._loop is not None and self._reading:
            self._loop.remove_reader(self._boxes.reader(self._context.number))
            self._reading = False

    def _read(self) -> bool:
        """Whether there may be more."""
        self._wake()
        for _ in range(AT_ONCE):
            if self._receivers is None or self._receivers.calls.is_full:
                self._be_deaf()  # until there is room: what does not fit waits with its senders
                return True
            try:
                packet = self._next()
            except GarbledError as exc:
                self._drop(str(exc))
                continue
            except OSError as exc:  # no memory: the next heartbeat tries again
                self._complain("no message can be read for now", exc)
                self._be_deaf()
                return True
            if packet is None:
                return False
            self._take(packet, self._receivers)
        return True

    def _next(self) -> Packet | None:
        """Those that the other thread has taken first."""
        with self._fetching:
            return self._early.popleft() if self._early else self._boxes.receive(self._context.number)

    def read_beside(self) -> None:
        """By another thread, while the loop is blocked: show the stacks to who asks; the rest is the
        loop's, and waits for it in its order. Not all is taken: senders are to see that nobody reads."""
        loop = self._loop
        if loop is None or not self._reading:
            return
        with self._fetching:
            while len(self._early) < AT_ONCE:
                try:
                    packet = self._boxes.receive(self._context.number)
                except (GarbledError, OSError):  # it is lost either way; the loop says so of the next one
                    return
                if packet is None:
                    return
                if packet.kind == Kind.ACTION and (given := _asks_for_stacks(packet.body)) is not None:
                    value = stacks.take(loop, tasks=bool(given.get("tasks")))
                    self._answer(packet.number, {"ok": True, "value": value, "error": ""})
                    continue
                if not self._early:
                    loop.call_soon_threadsafe(self._read)
                self._early.append(packet)

    def _take(self, packet: Packet, receivers: Receivers) -> None:
        fds = packet.descriptors
        sender: Address = "arbiter" if packet.sender == ARBITER else packet.sender
        message = cluster.Message(None, sender, fds)  # closes what nobody takes, whatever follows
        try:
            message.value = json.loads(packet.body)
        except (ValueError, RecursionError):
            self._drop("it is not JSON")
            return
        if packet.kind == Kind.MESSAGE:
            self._count(Item.MESSAGES_RECEIVED)
            receivers.deliver(message)
        elif packet.kind == Kind.ACTION:
            self._act(packet.number, message.value)

    def _act(self, number: int, asked: Any) -> None:
        """Answer the monitor."""
        if self._actions is None or not (isinstance(asked, list) and len(asked) == 2):
            self._drop("it asks for nothing")
            return
        name, given = asked

        def answer(value: Any, exc: Exception | None) -> None:
            self._answer(number, {"ok": exc is None, "value": value, "error": _one_line(exc)})

        if name is None:
            answer(self._actions.names(), None)
        else:
            self._actions.start(str(name), given, answer)

    def _answer(self, number: int, answer: dict[str, Any]) -> None:
        try:
            body = encoded(answer)
        except (TypeError, ValueError) as exc:
            failed = f"its result cannot be sent: {exc}"
            body = encoded({"ok": False, "value": None, "error": failed[:1000]})
        with contextlib.suppress(OSError):  # the monitor has too much to read; it does not wait for ever
            self._boxes.send(self._boxes.monitor, Packet(Kind.ANSWER, self._context.instance, number, body))

    def _drop(self, why: str) -> None:
        self._count(Item.MESSAGES_LOST)
        self._complain("a message is dropped", why)

    def _complain(self, what: str, why: object) -> None:
        """Once: it may come as often as messages do."""
        if not self._complained:
            self._complained = True
            logger.warning("%s %s: %s", self._identity, what, why)

    def beat(self) -> None:
        """At each heartbeat."""
        now = time.monotonic()
        if now >= self._look_due and self._receivers is not None:
            self._look_due = now + LOOK
            self._receivers.calls.look()
        if self._context.row[Item.LISTENS] and self._receivers and not self._receivers.calls.is_full:
            self._listen()

    async def end(self, patience: float) -> bool:
        """The worker has drained: take what has come, and wait for handlers, for so many seconds at most."""
        listened, self._context.row[Item.LISTENS] = self._context.row[Item.LISTENS], 0
        if self._receivers is None:
            return False
        deadline = time.monotonic() + min(patience, PATIENCE)
        while listened and self._read() and time.monotonic() < deadline:
            await asyncio.sleep(0)
        self._be_deaf()
        self._loop = None
        self._receivers.end()
        return await self._receivers.calls.settle(deadline - time.monotonic())


def _asks_for_stacks(body: bytes) -> dict[str, Any] | None:
    """The arguments; None where something else is asked for."""
    try:
        name, given = json.loads(body)
    except (ValueError, TypeError, RecursionError):
        return None
    return (given if isinstance(given, dict) else {}) if name == "stacks" else None


def put(boxes: Mailboxes, row: int, packet: Packet) -> None:
    """Into the mailbox of the process that has this row. Raises NotDelivered, ValueError."""
    try:
        boxes.send(row, packet)
    except OSError as exc:
        if exc.errno == errno.EBADF:
            raise ValueError(f"fds: one of {list(packet.descriptors)} is not open") from None
        raise cluster.NotDelivered(f"instance {row // ROWS_PER_SLOT} {_why(exc)}") from None


def _why(exc: OSError) -> str:
    if isinstance(exc, BlockingIOError):
        return "has too many messages to read"
    if exc.errno == errno.ETOOMANYREFS:
        return "cannot be sent more descriptors: too many are on their way"
    return f"cannot be reached: {exc.strerror or exc}"


def _one_line(exc: Exception | None) -> str:
    if exc is None:
        return ""
    text = str(exc) if isinstance(exc, NoActionError) else f"{type(exc).__name__}: {exc}"
    return " ".join(text.split())[:1000]
