"""Clients of every kind, each a task that goes on until it is stopped; what they see gets into the record."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.client import unix_connect
from websockets.exceptions import WebSocketException

from tests.chaos.http import Address, Answer, BrokenError, Connection
from tests.chaos.record import Record

# An idle connection is closed half a second after its worker began to drain, where it cannot move (TLS).
MAY_HAVE_ENDED = 0.4  # seconds
BROKEN = (
    OSError,
    EOFError,
    BrokenError,
    ValueError,
    asyncio.TimeoutError,
    asyncio.LimitOverrunError,
    ssl.SSLError,
)


def foretold(seed: int, length: int) -> bytes:
    """As in ``tests/apps/chaos.py``."""
    return random.Random(seed).randbytes(length)


def digest(body: bytes) -> bytes:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()


def get(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def post(body: bytes) -> tuple[bytes, bytes]:
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode(), body


class Client:
    """One of them. ``name`` is its kind, ``dice`` are its own."""

    def __init__(self, name: str, address: Address, record: Record, dice: random.Random) -> None:
        self.name = name
        self.address = address
        self.record = record
        self.dice = dice
        self.stopping = False
        self._connection: Connection | None = None

    async def run(self) -> None:
        behave = BEHAVIOURS[self.name]
        while not self.stopping:
            began = time.monotonic()
            try:
                await behave(self)
            except BROKEN as exc:  # before a request was sent
                self.record.fail(began, self.name, f"not connected: {exc!r}", unsure=0)
                self.hang_up()
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.dice.uniform(0.01, 0.25))
        self.hang_up()

    async def connected(self, buffer: int | None = None) -> Connection:
        """The connection that is kept alive, or a new one."""
        if self._connection is not None and self._connection.has_ended:
            self.record.idle_ends += 1
            self.hang_up()
        if self._connection is None:
            self._connection = await Connection.open(self.address, buffer)
        return self._connection

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def ask(
        self,
        connection: Connection,
        expected: list[bytes],
        *pieces: bytes,
        pause: float = 0.0,
        reading: float = 0.0,
    ) -> None:
        """Send the pieces, with a pause before each but the first; the answers are to be these."""
        began, idle = time.monotonic(), time.monotonic() - connection.idle_since
        left = len(expected)
        try:
            await connection.send(*pieces, pause=pause)
            for body in expected:
                self._check(await connection.answer(pause=reading), body, last=left == 1)
                left -= 1
        except BROKEN as exc:
            self.hang_up()
            if self.address.tls and idle > MAY_HAVE_ENDED and left == len(expected):
                self.record.idle_ends += 1
                self.record.unsure += left
                return
            self.record.fail(began, self.name, f"{exc!r} with {left} answers missing", unsure=left)

    def _check(self, answer: Answer, body: bytes, *, last: bool) -> None:
        self.record.answered[f"{answer.status // 100}xx"] += 1
        if answer.status >= 500 or answer.status == 400:  # a parser without memory finds the request invalid
            raise BrokenError(f"status {answer.status} {answer.body[:100]!r}")
        if answer.status != 200 or answer.body != body:
            self.record.wrong.append(
                f"{self.name}: {answer.status} {len(answer.body)} bytes, not {len(body)}"
            )
        if answer.is_last:
            if not last:
                raise BrokenError("the connection ends with requests unanswered")
            self.hang_up()

    # --- what it may ask for

    def bytes(self, most: int = 20_000) -> tuple[str, bytes]:
        """A path, and the body that it is to be answered with."""
        seed, length = self.dice.randrange(10**6), self.dice.randrange(most)
        return f"{seed}-{length}", foretold(seed, length)


async def keep_alive(self: Client) -> None:
    query, body = self.bytes()
    await self.ask(await self.connected(), [body], get(f"/bytes?{query}"))


async def close(self: Client) -> None:
    query, body = self.bytes()
    await self.ask(await self.connected(), [body], get(f"/bytes?{query}", "Connection: close"))
    self.hang_up()


async def pipeline(self: Client) -> None:
    asked = [self.bytes(2000) for _ in range(self.dice.randint(2, 5))]
    requests = b"".join(get(f"/bytes?{query}") for query, _ in asked)
    await self.ask(await self.connected(), [body for _, body in asked], requests)


async def halt(self: Client) -> None:
    """The head comes in three pieces."""
    query, body = self.bytes()
    request = get(f"/bytes?{query}")
    cuts = sorted(self.dice.sample(range(1, len(request)), 2))
    pieces = request[: cuts[0]], request[cuts[0] : cuts[1]], request[cuts[1] :]
    await self.ask(await self.connected(), [body], *pieces, pause=self.dice.uniform(0.0, 0.6))


async def read_slowly(self: Client) -> None:
    seed = self.dice.randrange(10**6)
    connection = await self.connected(buffer=8192)
    path, length = self.dice.choice((("bytes", 1_500_000), ("large", 4_000_000)))
    body = foretold(seed, length)
    await self.ask(connection, [body], get(f"/{path}?{seed}-{length}"), reading=0.01)
    self.hang_up()


async def upload(self: Client) -> None:
    body = self.bytes(self.dice.choice((200_000, 200_000, 200_000, 3_000_000)))[1]
    head, _ = post(body)
    size = max(1, len(body) // 4)
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    if self.dice.random() < 0.5:
        head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
    pause = self.dice.choice((0.0, 0.02, 0.15))
    await self.ask(await self.connected(), [digest(body)], head, *pieces, pause=pause)


async def stream(self: Client) -> None:
    query, body = self.bytes(80_000)
    await self.ask(await self.connected(), [body], get(f"/stream?{query}"))


async def follow_events(self: Client) -> None:
    query, body = self.bytes(60_000)
    await self.ask(await self.connected(), [body], get(f"/events?{query}"))


async def leave(self: Client) -> None:
    """In the middle of a request, or of its answer."""
    connection = await self.connected()
    head, body = post(b"x" * 1000)
    request = self.dice.choice((get("/sleep?0.3"), get("/stream?1-500000"), head + body[:500], head[:20]))
    self.record.unsure += 1
    try:
        await connection.send(request)
        await asyncio.sleep(self.dice.uniform(0.0, 0.2))
    except BROKEN:
        pass
    self.hang_up()


async def talk(self: Client) -> None:
    """Over a WebSocket, for a while."""
    began, address = time.monotonic(), self.address
    scheme = "wss" if address.tls else "ws"
    if address.path is None:
        url = f"{scheme}://localhost:{address.port}/"
        connecting = connect_websocket(url, ssl=address.tls, open_timeout=20, host="127.0.0.1")
    else:
        connecting = unix_connect(str(address.path), "ws://localhost/", open_timeout=20)
    try:
        async with connecting as websocket:
            for _ in range(self.dice.randint(1, 15)):
                message = self.bytes(30_000)[1]
                await websocket.send(message)
                if await asyncio.wait_for(websocket.recv(), 20) != digest(message):
                    self.record.wrong.append("websocket: not what was sent")
                self.record.websockets += 1
                await asyncio.sleep(self.dice.uniform(0.0, 0.2))
    except (WebSocketException, *BROKEN) as exc:
        self.record.fail(began, self.name, repr(exc), unsure=0)


BEHAVIOURS: dict[str, Callable[[Client], Awaitable[None]]] = {
    "kept_alive": keep_alive,
    "closing": close,
    "pipelining": pipeline,
    "halting": halt,
    "slow_reader": read_slowly,
    "uploading": upload,
    "streaming": stream,
    "events": follow_events,
    "leaving": leave,
    "websocket": talk,
}


class Crowd:
    """All clients of a run, in a thread with a loop of its own."""

    def __init__(self, names: tuple[str, ...], address: Address, record: Record, seed: int) -> None:
        self.clients = [
            Client(name, address, record, random.Random(f"{seed} {number}"))
            for number, name in enumerate(names)
        ]
        self._thread = ThreadPoolExecutor(1)

    def start(self) -> None:
        self._running = self._thread.submit(lambda: asyncio.run(self._all()))

    def stop(self) -> None:
        """Each finishes what it has begun."""
        for client in self.clients:
            client.stopping = True
        self._running.result()
        self._thread.shutdown()

    async def _all(self) -> None:
        await asyncio.gather(*(client.run() for client in self.clients))
