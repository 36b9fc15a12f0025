"""Many kept-alive connections from one process, each asking now and then; strict about what fails.

A request that was sent and not answered in full has failed. A connection that is closed while nothing is
asked was closed idle: no client can tell that from the end of the service, but none is to see it.
"""

from __future__ import annotations

import heapq
import json
import random
import resource
import select
import socket
import sys
import time
from dataclasses import dataclass

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PORTS = 20_000  # connections from one loopback address
AT_ONCE = 200  # connections that are opened before their answers are read


@dataclass
class Result:
    """What one process of clients has seen."""

    answered: int = 0
    failed: int = 0
    closed_idle: int = 0
    slowest: float = 0.0  # seconds from a request to its answer


class Clients:
    def __init__(self, port: int, count: int, first: int, interval: tuple[float, float]) -> None:
        self.address = ("127.0.0.1", port)
        self.interval = interval
        self.result = Result()
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.asked: dict[int, float] = {}
        self.due: list[tuple[float, int]] = []
        for number in range(count):
            self._open(number + first)
            if number % AT_ONCE == 0:
                self.turn(0.0)

    def _open(self, number: int) -> None:
        client = socket.socket()
        client.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        client.bind((f"127.0.1.{number // PORTS + 1}", 0))
        client.connect(self.address)
        client.setblocking(False)
        self.sockets[client.fileno()] = client
        self.poll.register(client, select.EPOLLIN)
        self._ask(client)

    def _ask(self, client: socket.socket) -> None:
        self.asked[client.fileno()] = time.monotonic()
        try:
            client.send(REQUEST)
        except OSError:
            self._lose(client)

    def _lose(self, client: socket.socket) -> None:
        if self.asked.pop(client.fileno(), None) is None:
            self.result.closed_idle += 1
        else:
            self.result.failed += 1
        self.poll.unregister(client)
        del self.sockets[client.fileno()]
        client.close()

    def turn(self, patience: float) -> None:
        """Read what has come, ask what is due."""
        for descriptor, _ in self.poll.poll(patience):
            self._read(self.sockets[descriptor])
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            client = self.sockets.get(heapq.heappop(self.due)[1])
            if client is not None and client.fileno() not in self.asked:
                self._ask(client)

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data.endswith(b"\r\n\r\n0"):  # the answer is short and comes in one or two pieces
            if not data:
                self._lose(client)
            elif not data.startswith(b"HTTP/1.1 200") and data != b"0":
                sys.exit(f"benchmark: {data!r}")
            if data != b"0":
                return
        now = time.monotonic()
        self.result.answered += 1
        self.result.slowest = max(self.result.slowest, now - self.asked.pop(client.fileno()))
        heapq.heappush(self.due, (now + random.uniform(*self.interval), client.fileno()))


def main() -> None:
    port, count, first = map(int, sys.argv[1:4])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = Clients(port, count, first, (float(sys.argv[4]), float(sys.argv[5])))
    print("open", flush=True)
    told = select.poll()
    told.register(sys.stdin, select.POLLIN)
    clients.result.slowest = 0.0
    while not told.poll(0):
        clients.turn(0.005)
    deadline = time.monotonic() + 10
    clients.due.clear()
    while clients.asked and time.monotonic() < deadline:
        clients.turn(0.005)
    clients.result.failed += len(clients.asked)
    print(json.dumps(vars(clients.result)), flush=True)


if __name__ == "__main__":
    main()
