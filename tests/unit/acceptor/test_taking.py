"""How a worker takes connections from its inbox, also with an app that runs inline."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from typing import Any

import pytest

from multicore_server.connections import acceptor as module
from multicore_server.connections.inboxes import Handed, Kind
from multicore_server.ipc.scoreboard import Item
from tests.unit.acceptor.workplace import Complaints, Workplace, play
from tests.unit.fake_transport import GET

# --- taking


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("kind", list(Kind))
def test_what_siblings_send_is_adopted(kind: Kind, inline: bool) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        clients = [place.send_to_inbox(kind) for _ in range(3)]
        await place.until(lambda: place.open == 3)
        for client in clients:
            assert await place.answered(client)

    play(scenario, inline=inline)


def test_without_descriptors_what_is_in_the_inbox_waits_on(
    complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "too many")))
            client = place.send_to_inbox()
            await place.until(complaints)
            await asyncio.sleep(0.02)
        assert place.handover.inboxes.waiting(0) == 1
        assert len(complaints()) == 1
        place.acceptor.beat(0, 0)
        assert await place.answered(client)

    play(scenario)


def test_one_that_came_to_nothing_on_its_way_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(place: Workplace) -> None:
        async def fails(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOTCONN, "not connected")

        await place.acceptor.open([place.listener])
        monkeypatch.setattr(place.loop, "connect_accepted_socket", fails)
        client = place.send_to_inbox()
        assert await place.closed(client)
        assert place.counts == (0, 0)

    play(scenario)


def test_a_protocol_that_does_not_count_leaves_no_count() -> None:
    class Other(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.abort()

    async def scenario(place: Workplace) -> None:
        place.acceptor.make_protocol = Other
        await place.acceptor.open([place.listener])
        client = place.send_to_inbox()
        assert await place.closed(client)
        assert place.counts == (0, 0)

    play(scenario)


def test_unattended_inboxes_are_swept_at_a_heartbeat() -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        place.sibling[Item.BEAT_DUE] = time.monotonic() - 5
        await place.acceptor.open([place.listener])
        client = place.send_to_inbox(slot=1)
        place.acceptor.beat(0, 0)
        assert await place.answered(client)

    play(scenario)


# --- inline


def test_inline_nothing_is_taken_behind_a_request_until_it_is_answered() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        busy = place.connect()
        await place.loop.sock_sendall(busy, GET)
        await place.until(lambda: place.connections.app.waiting)
        clients = [place.connect(), place.send_to_inbox()]
        await asyncio.sleep(0.05)
        assert (place.open, place.handover.inboxes.waiting(0)) == (1, 1)
        assert not place.acceptor.is_taking
        place.connections.app.answer()
        await place.until(lambda: place.state.gate.is_open)
        place.acceptor.take_on()
        for client in clients:
            assert await place.answered(client)

    play(scenario, inline=True)


def test_inline_what_waits_for_long_is_placed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE", 0.0)

    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        await place.loop.sock_sendall(place.connect(), GET)
        await place.until(lambda: place.connections.app.waiting)
        place.send_to_inbox()
        await place.until(lambda: not place.acceptor.is_taking)
        place.wake_sibling()
        place.acceptor.beat(1, 0)
        assert place.handover.inboxes.waiting(0) == 0
        assert place.handover.inboxes.waiting(1) == 1
        place.connections.app.answer()
        await place.until(lambda: place.state.gate.is_open)

    play(scenario, inline=True)


@pytest.mark.parametrize("quick_for", [-1, 0])
def test_inline_one_that_is_to_be_adopted_while_a_request_is_in_progress_is_set_aside(quick_for: int) -> None:
    """It counts as one that waits, though it is not there yet."""

    async def scenario(place: Workplace) -> None:
        place.state.gate._is_quick = lambda waiting: waiting <= quick_for  # type: ignore[attr-defined]
        place.wake_sibling()
        await place.acceptor.open([place.listener])
        await place.loop.sock_sendall(place.send_to_inbox(Kind.KEPT_ALIVE), GET)
        await place.until(lambda: place.connections.app.waiting)
        ours, theirs = socket.socketpair()
        place.clients.append(theirs)
        place.connections.count(Kind.NEW)
        place.acceptor._adopt_soon(Handed(Kind.NEW, ours))
        await place.until(lambda: not place.acceptor.adopting)
        assert place.handover.inboxes.waiting(1) == 1
        assert place.counts == (1, 0)
        place.connections.app.answer()
        await place.until(lambda: place.state.gate.is_open)

    play(scenario, inline=True)
