"""How connections come to a worker, with the faults that a kernel has at hand."""

from __future__ import annotations

import asyncio
import errno
import ssl
from functools import partial

import pytest

from multicore_server.connections.protocol import CONNECTIONS, IN_HAND, UNREAD
from multicore_server.ipc.scoreboard import Item
from tests.unit.acceptor.workplace import Complaints, Workplace, play
from tests.unit.fake_transport import GET

# --- accepting


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"shared": True}], ids=str)
def test_what_comes_is_accepted_and_answered(options: dict[str, bool]) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        assert await place.answered(place.connect())
        assert place.row[Item.ACCEPTED] == 1
        place.acceptor.beat(place.open, 1)
        assert place.row[CONNECTIONS] == 1

    play(scenario, **options)


@pytest.mark.parametrize("options", [{}, {"inline": True}, {"shared": True}], ids=str)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM])
def test_without_descriptors_accepting_pauses_with_one_line_and_goes_on(
    number: int, options: dict[str, bool], complaints: Complaints
) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.listener.errors = [number] * 3
        client = place.connect()
        for left in (2, 1, 0):
            await place.until(partial(place.listener.has_failed_but, left))
            await asyncio.sleep(0.01)
            assert place.listener.has_failed_but(left), "it does not try on and on"
            place.acceptor.beat(0, 0)
        assert await place.answered(client)
        assert len(complaints()) == 1
        assert "no connection can be accepted" in complaints()[0]

    play(scenario, **options)


def test_a_client_that_gave_up_in_the_backlog_holds_nobody_up(complaints: Complaints) -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.listener.errors = [errno.ECONNABORTED]
        assert await place.answered(place.connect())
        assert complaints() == []

    play(scenario, inline=True)


@pytest.mark.parametrize("inline", [False, True])
def test_what_a_less_loaded_sibling_gets_is_closed_here(inline: bool) -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        await place.acceptor.open([place.listener])
        place.row[IN_HAND] += 5
        place.connect()
        await place.until(lambda: place.handover.inboxes.waiting(1))
        assert place.open == 0
        place.row[IN_HAND] -= 5

    play(scenario, inline=inline)


def test_a_failed_tls_handshake_counts_for_nothing() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        client = place.connect()
        await place.until(lambda: place.counts == (1, 1))
        await place.loop.sock_sendall(client, b"GET / HTTP/1.1\r\n\r\n")
        await place.until(lambda: place.counts == (0, 0))
        gone = place.connect()
        await place.until(lambda: place.counts == (1, 1))
        gone.close()
        await place.until(lambda: place.counts == (0, 0))

    play(scenario, tls=True)


def test_tls_is_served() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        trusting = ssl.create_default_context()
        place.authority.configure_trust(trusting)
        reader, writer = await asyncio.open_connection(*place.listener.getsockname(), ssl=trusting)
        writer.write(GET)
        await place.until(lambda: place.connections.app.waiting)
        place.connections.app.answer()
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.transport.abort()

    play(scenario, tls=True)


# --- the end


def test_who_retires_hands_over_what_is_in_its_inbox() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.wake_sibling()
        place.acceptor._take_no_more()
        place.send_to_inbox()
        await place.acceptor.close([place.listener])
        assert [place.handover.inboxes.waiting(slot) for slot in (0, 1)] == [0, 1]

    play(scenario)


@pytest.mark.parametrize("shared", [False, True])
def test_the_last_worker_accepts_what_has_come(shared: bool) -> None:
    async def scenario(place: Workplace) -> None:
        clients = [place.connect()]
        if not shared:
            clients += [place.send_to_inbox(), place.send_to_inbox(slot=1)]
        place.serving(1)
        place.serving()
        await place.acceptor.close([place.listener])
        for client in clients:
            assert await place.answered(client)

    play(scenario, shared=shared)


def test_at_the_end_a_client_that_gave_up_hides_nobody_behind_it() -> None:
    async def scenario(place: Workplace) -> None:
        place.listener.errors = [errno.ECONNABORTED]
        client = place.connect()
        await place.acceptor.close([place.listener])
        assert await place.answered(client)

    play(scenario)


def test_at_the_end_a_lack_of_descriptors_is_said(complaints: Complaints) -> None:
    async def scenario(place: Workplace) -> None:
        place.listener.errors = [errno.EMFILE]
        await place.acceptor.close([place.listener])
        assert "those in the backlog are closed" in complaints()[0]

    play(scenario)


def test_with_a_sibling_the_backlog_stays_where_it_is() -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        place.connect()
        await place.acceptor.close([place.listener])
        assert place.row[Item.ACCEPTED] == 0

    play(scenario)


def test_retiring_between_accept_and_adoption_loses_nothing() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        client = place.connect()
        place.acceptor._accept(place.listener)
        await place.acceptor.close([place.listener])
        assert await place.answered(client)

    play(scenario, inline=True)


def test_idle_connections_leave_by_balance_and_in_a_drain_all_of_them() -> None:
    async def scenario(place: Workplace) -> None:
        await place.acceptor.open([place.listener])
        place.wake_sibling()
        assert not place.state.sheds()
        assert not place.acceptor.has_surplus
        place.row[IN_HAND] = place.row[UNREAD] = 0
        place.acceptor.beat(4, 0)
        assert place.acceptor.has_surplus
        assert place.state.sheds()
        place.acceptor.begin_to_drain()
        place.state.draining = True
        assert not place.state.sheds(), "nobody was seen yet that takes them"
        place.state.moving = True
        assert place.state.sheds()

    play(scenario)
