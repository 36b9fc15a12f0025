"""What placing a connection costs: the choice alone, and a hand-over from its send to its adoption.

    python -m tests.benchmarks.placement [--workers 2,8,32,64] [--rounds 15]

In one process, over the real scoreboard, lock and inboxes, on uvloop: CPU time without a kernel that switches
between processes. A hand-over has the choice in it. Medians and least of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
from uvicorn import Config

from multicore_server.connections.acceptor import Acceptor
from multicore_server.connections.dispatcher import SENT, Dispatcher
from multicore_server.connections.factory import ProtocolFactory, movable
from multicore_server.connections.handover import Handover
from multicore_server.connections.inboxes import Kind
from multicore_server.connections.inline import OpenGate
from multicore_server.connections.state import ConnectionsState
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Item, Scoreboard
from tests.benchmarks.common import LOCAL
from tests.benchmarks.cost import numbers_of

CHOICES = 2000
HANDOVERS = 200


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Never asked."""


class Fleet:
    """``workers`` that all serve and have requests in hand; the first places what comes."""

    def __init__(self, workers: int) -> None:
        self.handover = Handover.make(Scoreboard(workers), workers)
        self.dispatchers = [self._dispatcher(slot) for slot in range(workers)]
        self.handover.scoreboard.publish(frozenset(slot * ROWS_PER_SLOT for slot in range(workers)))

    def _dispatcher(self, slot: int) -> Dispatcher:
        row = self.handover.scoreboard.row(slot * ROWS_PER_SLOT)
        dispatcher = Dispatcher(self.handover, slot, row)
        dispatcher.open()
        row[Item.BEAT_DUE] = time.monotonic() + 3600
        row[Item.IN_HAND] = row[Item.CONNECTIONS] = 2
        return dispatcher

    def close(self) -> None:
        self.handover.inboxes.close()
        os.close(self.handover.lock)


@contextmanager
def fleet_of(workers: int) -> Iterator[Fleet]:
    made = Fleet(workers)
    try:
        yield made
    finally:
        made.close()


def rounds_of(number: int, once: Callable[[], float]) -> list[float]:
    gc.collect()
    return [once() for _ in range(number)]


def choices(workers: int, rounds: int) -> list[float]:
    """Microseconds of CPU for each."""
    with fleet_of(workers) as fleet:
        dispatcher = fleet.dispatchers[0]
        locked, siblings = fleet.handover.lock_of(), dispatcher.siblings

        def once() -> float:
            began = time.process_time()
            for _ in range(CHOICES):
                with locked:
                    siblings.least_loaded()
            return (time.process_time() - began) / CHOICES * 1e6

        return rounds_of(rounds, once)


def connected(number: int) -> list[tuple[socket.socket, socket.socket]]:
    """TCP connections, as a server and its clients have them."""
    with socket.create_server((LOCAL, 0), backlog=number) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(number)]
        return [(listener.accept()[0], client) for client in clients]


async def _handover(fleet: Fleet) -> float:
    loop = asyncio.get_running_loop()
    giver, taker = fleet.dispatchers[:2]
    taker.row[Item.IN_HAND] = 0
    config = Config(app, ws="none", lifespan="off", log_config=None, access_log=False, log_level="info")
    config.load()
    state = ConnectionsState(taker.row, OpenGate())
    protocol: Any = config.http_protocol_class
    make = ProtocolFactory(movable(protocol), config=config, server_state=state, app_state={}, _loop=loop)
    acceptor = Acceptor(config, state, fleet.handover.scoreboard, taker, make)
    pairs = connected(HANDOVERS)
    began = time.process_time()
    for ours, _ in pairs:
        assert giver.dispatch(Kind.NEW, ours.fileno()) is SENT
        ours.close()
        acceptor._adopt_all(taker.take())
        taker.row[Item.IN_HAND] = taker.row[Item.UNREAD] = 0
        taker.row[Item.BEAT_DUE] = time.monotonic() + 3600  # its heart does not beat here
        await asyncio.sleep(0)
    await asyncio.gather(*acceptor.adopting)
    took = time.process_time() - began
    for _, theirs in pairs:
        theirs.close()
    while state.connections:
        await asyncio.sleep(0.001)
    return took / HANDOVERS * 1e6


def handovers(rounds: int) -> list[float]:
    """Microseconds of CPU for each, of the giver and the taker together, who are alone."""
    with fleet_of(2) as fleet:
        return rounds_of(rounds, lambda: uvloop.run(_handover(fleet)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=numbers_of, default=[2, 8, 32, 64])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print("| what | median, us | least |\n| --- | --- | --- |")
    measured = {
        f"a choice among {workers} workers": choices(workers, args.rounds) for workers in args.workers
    }
    measured["a hand-over between two"] = handovers(args.rounds)
    for what, found in measured.items():
        print(f"| {what} | {statistics.median(found):.1f} | {min(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
