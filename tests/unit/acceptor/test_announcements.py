"""The PROXY protocol's header, read off a socket before that has a transport."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from multicore_server.connections.announcements import VERSIONS, AnnouncedClient, Announcements
from multicore_server.connections.inboxes import Kind
from tests.unit.acceptor.workplace import PATIENCE, Workplace
from tests.unit.fake_transport import GET
from tests.unit.test_proxy_protocol import FOUR, NAMED, NAMELESS, SIX

LINE, BINARY = NAMED["v1 TCP4"][0], NAMED["v2 TCP6"][0]
WRONG = b"PROXY TCP4 nobody\r\n"
TRUSTED = ("127.0.0.1",)
SOON = 0.1  # seconds that a header has, where it is to come too late

Scenario = Callable[[Workplace], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    def run(
        scenario: Scenario, *, mode: str = "auto", trusted: tuple[str, ...] = TRUSTED, timeout: float = 0,
        **options: bool,
    ) -> None:  # fmt: skip
        async def main() -> None:
            place = Workplace(**options)
            place.seen = note_scopes(place)
            secure = bool(options.get("tls"))
            place.acceptor._announcements = Announcements(
                VERSIONS[mode], trusted.__contains__, timeout, secure=secure
            )
            try:
                await place.acceptor.open([place.listener])
                await scenario(place)
            finally:
                await place.end()

        runner = asyncio.run if request.param == "asyncio" else uvloop.run
        runner(asyncio.wait_for(main(), 2 * PATIENCE))

    return run


def note_scopes(place: Workplace) -> list[Any]:
    """What the app is told."""
    seen: list[Any] = []
    app = place.config.loaded_app

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await app(scope, receive, send)

    place.config.loaded_app = noting
    return seen


def of_ours(place: Workplace) -> list[Any]:
    return list(place.state.connections)


async def sent(place: Workplace, client: socket.socket, *parts: bytes) -> None:
    """Each part is on its way before the next is sent."""
    for part in parts:
        await place.loop.sock_sendall(client, part)
        await asyncio.sleep(0.002)


async def answer(place: Workplace, client: socket.socket) -> bytes:
    """To the end of the connection."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while data := await asyncio.wait_for(place.loop.sock_recv(client, 4096), PATIENCE):
            said += data
    return said


@pytest.mark.parametrize(("data", "client"), [(LINE, FOUR[0]), (BINARY, SIX[0])])
@pytest.mark.parametrize("options", [{}, {"inline": True}, {"shared": True}], ids=str)
def test_the_app_is_told_who_was_announced(
    run: Any, data: bytes, client: tuple[str, int], options: dict[str, bool]
) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, data)
        for _ in range(2):
            assert await place.answered(connection)
        for scope in place.seen:
            assert scope["client"] == client
            assert isinstance(scope["client"], AnnouncedClient)
            assert scope["client"].peer == connection.getsockname()
            assert scope["client"].proxy == (FOUR if client == FOUR[0] else SIX)[1]
            assert scope["server"] == place.listener.getsockname()

    run(scenario, **options)


@pytest.mark.parametrize("data", [*(it[0] for it in NAMED.values()), *NAMELESS.values()])
def test_a_header_may_come_in_pieces(run: Any, data: bytes) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        size = max(1, len(data) // 20)
        await sent(place, connection, *(data[start : start + size] for start in range(0, len(data), size)))
        assert await place.answered(connection)

    run(scenario)


def test_over_a_unix_socket_too_and_without_being_trusted(run: Any) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.send_to_inbox()
        await sent(place, connection, LINE[:9])
        await asyncio.sleep(0.05)
        await sent(place, connection, LINE[9:])
        assert await place.answered(connection)
        assert place.seen[0]["client"] == FOUR[0]
        assert place.seen[0]["client"].peer is None

    run(scenario, trusted=())


def test_half_a_header_over_a_unix_socket_costs_next_to_nothing(run: Any) -> None:
    """Its unread bytes make it readable all the time."""

    async def scenario(place: Workplace) -> None:
        connection = place.send_to_inbox()
        await sent(place, connection, LINE[:9])
        used = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - used < 0.15
        connection.close()

    run(scenario)


@pytest.mark.parametrize("data", NAMELESS.values())
def test_where_nobody_is_announced_the_client_is_the_proxy(run: Any, data: bytes) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, data)
        assert await place.answered(connection)
        assert place.seen[0]["client"] == connection.getsockname()

    run(scenario)


def test_without_a_header_everything_is_as_always(run: Any) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        assert await place.answered(connection)
        assert place.seen[0]["client"] == connection.getsockname()
        place.state.sheds = lambda: True
        (protocol,) = of_ours(place)
        assert protocol.can_leave

    run(scenario, trusted=())


def test_who_was_announced_here_does_not_move(run: Any) -> None:
    async def scenario(place: Workplace) -> None:
        place.wake_sibling()
        for data in (LINE, NAMELESS["v2 LOCAL"]):
            connection = place.connect()
            place.acceptor.state.takes = lambda: True
            await sent(place, connection, data)
        await place.until(lambda: place.open + place.handover.inboxes.waiting(1) == 2)
        place.state.sheds = lambda: True
        for protocol in of_ours(place):
            assert not protocol.can_leave
            protocol.set_aside()
            assert not protocol.moved
        place.serving(0)

    run(scenario)


@pytest.mark.parametrize(
    ("data", "trusted", "status"),
    [
        (WRONG, TRUSTED, b"400"),
        (WRONG, (), b"403"),
        (LINE, (), b"403"),
        (BINARY, ("10.0.0.1",), b"403"),
    ],
)
def test_what_is_refused_is_answered(run: Any, data: bytes, trusted: tuple[str, ...], status: bytes) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, data + GET)
        assert (await answer(place, connection)).startswith(b"HTTP/1.1 " + status)
        assert place.seen == []

    run(scenario, trusted=trusted)


@pytest.mark.parametrize(("data", "mode"), [(LINE, "v2"), (BINARY, "v1")])
def test_a_version_that_is_not_spoken_is_a_bad_request(run: Any, data: bytes, mode: str) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, data + GET)
        assert (await answer(place, connection)).startswith(b"HTTP/1.1 400")

    run(scenario, mode=mode)


@pytest.mark.parametrize(
    ("data", "said"), [(b"", b""), (b"PRO", b"HTTP/1.1 408"), (BINARY[:20], b"HTTP/1.1 408")]
)
def test_a_header_that_does_not_come_is_not_waited_for_for_ever(run: Any, data: bytes, said: bytes) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, data)
        assert (await answer(place, connection))[:12] == said

    run(scenario, timeout=SOON)


@pytest.mark.parametrize("data", [b"", b"PRO", LINE[:-1], BINARY[:20]])
@pytest.mark.parametrize("unix", [False, True])
def test_a_client_that_leaves_before_its_header_is_there(run: Any, data: bytes, unix: bool) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.send_to_inbox() if unix else place.connect()
        await sent(place, connection, data)
        connection.shutdown(socket.SHUT_WR)
        assert await answer(place, connection) == b""
        await place.until(lambda: not place.acceptor.adopting)

    run(scenario)


def test_one_that_has_been_served_is_not_asked_again(run: Any) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.send_to_inbox(Kind.KEPT_ALIVE)
        await sent(place, connection, LINE + GET)
        assert (await answer(place, connection)).startswith(b"HTTP/1.1 400")

    run(scenario)


def test_a_second_header_is_a_bad_request(run: Any) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, LINE + LINE + GET)
        assert (await answer(place, connection)).startswith(b"HTTP/1.1 400")

    run(scenario)


def test_before_tls(run: Any) -> None:
    async def scenario(place: Workplace) -> None:
        def talk() -> bytes:
            context = ssl.create_default_context()
            place.authority.configure_trust(context)
            with socket.create_connection(place.listener.getsockname(), PATIENCE) as plain:
                for part in (LINE[:11], LINE[11:]):
                    plain.sendall(part)
                    time.sleep(0.01)
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                    secure.sendall(GET)
                    return secure.recv(4096)

        talking = asyncio.create_task(asyncio.to_thread(talk))
        await place.until(lambda: place.connections.app.waiting)
        place.connections.app.answer()
        assert (await talking).startswith(b"HTTP/1.1 200")
        assert (place.seen[0]["client"], place.seen[0]["scheme"]) == (FOUR[0], "https")

    run(scenario, tls=True)


@pytest.mark.parametrize(("data", "trusted"), [(WRONG, TRUSTED), (LINE, ())])
def test_before_tls_nobody_can_be_answered(run: Any, data: bytes, trusted: tuple[str, ...]) -> None:
    async def scenario(place: Workplace) -> None:
        connection = place.connect()
        await sent(place, connection, data)
        assert await answer(place, connection) == b""

    run(scenario, tls=True, trusted=trusted)


def test_a_peer_that_is_gone_is_nobody(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address cannot be asked for any more."""

    async def scenario(place: Workplace) -> None:
        def gone(_: object) -> None:
            raise OSError(errno.ENOTCONN, "not connected")

        monkeypatch.setattr(Announcements, "_trusted_peer", lambda self, connection: gone(connection))
        connection = place.connect()
        await sent(place, connection, LINE + GET)
        assert await answer(place, connection) == b""
        assert place.seen == []

    run(scenario)
