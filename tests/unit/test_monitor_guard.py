"""Connections of the monitor: who may stay, who gives way, and what is cut. On scripted transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from multicore_server.monitor import guard
from multicore_server.monitor.asgi import Request, Response, Route, app_of, line
from multicore_server.monitor.gate import Gate
from multicore_server.monitor.guard import MonitorLimits
from multicore_server.monitor.process import MonitorServer
from tests.unit.fake_transport import FakeTransport

HEAD = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Transport(FakeTransport):
    """It has a real socket, for the options that are set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.ends = socket.socketpair()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.ends[0] if name == "socket" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    @property
    def status(self) -> int:
        """Of the first response; 0 while there is none."""
        return int(self.written.split()[1]) if self.written else 0


class Site:
    """A monitor's server without a network. /slow is answered when the test says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, limits: MonitorLimits) -> None:
        self.loop, self.clock = loop, clock
        self.released = asyncio.Event()
        paths = ("/metrics", "/healthz", "/readyz")
        routes = [Route(path, self._answer) for path in paths] + [Route("/slow", self._wait)]
        self.server = MonitorServer(Gate(app_of(routes)), limits, asyncio.Event())
        self.server.config.load()
        self.transports: list[Transport] = []

    async def _answer(self, _: Request) -> Response:
        return line("ok")

    async def _wait(self, _: Request) -> Response:
        await self.released.wait()
        return line("at last")

    def connect(self, data: bytes = b"", *, later: float = 0.0) -> Transport:
        self.clock.now += later
        transport = Transport(self.loop)
        self.transports.append(transport)
        protocol = guard.GuardedConnection(
            self.server.config, self.server.server_state, app_state={}, _loop=self.loop
        )
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            self.send(transport, data)
        return transport

    def ask(self, path: bytes, *, later: float = 0.0) -> Transport:
        return self.connect(HEAD % path, later=later)

    def send(self, transport: Transport, data: bytes) -> None:
        transport.protocol.data_received(data)
        self.turn()

    def turn(self) -> None:
        for _ in range(12):
            self.loop.run_until_complete(asyncio.sleep(0))

    def end(self) -> None:
        self.released.set()
        self.turn()
        for transport in self.transports:
            transport.close()
        self.turn()
        for transport in self.transports:
            for end in transport.ends:
                end.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(guard, "time", found)
    return found


@pytest.fixture
def site(clock: Clock) -> Iterator[Site]:
    loop = asyncio.new_event_loop()
    found = Site(loop, clock, MonitorLimits(connections=2, probes=2))
    yield found
    found.end()
    loop.close()


def test_a_request_is_answered_and_its_connection_stays(site: Site) -> None:
    client = site.ask(b"/metrics")
    assert client.status == 200
    site.send(client, HEAD % b"/readyz")
    assert client.written.count(b"200 OK") == 2
    assert not client.is_closing()


def test_an_idle_client_gives_way_after_a_second(site: Site) -> None:
    idle = [site.ask(b"/metrics"), site.ask(b"/metrics", later=0.1)]
    site.ask(b"/metrics", later=0.8)
    assert not any(client.aborted for client in idle)
    assert site.ask(b"/metrics", later=0.15).status == 200
    assert [client.aborted for client in idle] == [True, False]


@pytest.mark.parametrize("data", [b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\nhost: x\r\n"])
def test_one_whose_request_does_not_arrive_gives_way_after_a_second(site: Site, data: bytes) -> None:
    slow = [site.connect(data), site.connect(data)]
    site.clock.now += 0.9
    for client in slow:
        site.send(client, b"G" if not data else b"x")  # a byte now and then does not help
    assert site.ask(b"/metrics", later=0.2).status == 200
    assert [client.aborted for client in slow].count(True) == 1


def test_one_that_does_not_read_its_response_gives_way(site: Site) -> None:
    readers = [site.ask(b"/slow"), site.ask(b"/slow")]
    readers[0].protocol.pause_writing()
    assert site.ask(b"/metrics", later=1.1).status == 200
    assert [client.aborted for client in readers] == [True, False]


def test_one_that_reads_on_is_waited_for_no_longer(site: Site) -> None:
    readers = [site.ask(b"/slow"), site.ask(b"/slow")]
    readers[0].protocol.pause_writing()
    site.clock.now += 0.5
    readers[0].protocol.resume_writing()
    site.ask(b"/metrics", later=5.0)
    assert not any(client.aborted for client in readers)


def test_clients_that_wait_for_us_never_give_way(site: Site) -> None:
    busy = [site.ask(b"/slow"), site.ask(b"/slow")]
    late = site.ask(b"/metrics", later=100.0)
    assert not any(client.aborted for client in busy)
    assert late.status == 503
    assert b"too many connections; only /healthz and /readyz are answered now\n" in late.written


@pytest.mark.parametrize("path", [b"/healthz", b"/readyz"])
def test_a_probe_is_answered_once_while_all_other_connections_are_in_use(site: Site, path: bytes) -> None:
    for _ in range(2):
        site.ask(b"/slow")
    probe = site.ask(path)
    assert probe.status == 200
    assert b"connection: close" in probe.written
    assert probe.is_closing()


def test_slow_clients_do_not_use_up_the_probes_reserve(site: Site) -> None:
    """Seventy clients that send a byte a second kept every probe out."""
    for _ in range(2):
        site.ask(b"/slow")
    slow = [site.connect(b"G") for _ in range(2)]
    assert site.connect().aborted  # all four are too new to give way
    assert site.ask(b"/readyz", later=0.2).status == 200
    assert [client.aborted for client in slow].count(True) == 1


def test_a_new_connection_is_refused_where_nobody_gives_way(site: Site) -> None:
    for _ in range(2):
        site.ask(b"/slow")
    for _ in range(2):
        site.connect()
    refused = site.connect()
    assert refused.aborted
    site.turn()  # nothing is left of it to be cleaned up
    assert len(site.server.server_state.connections) == 4


def test_an_alarm_cuts_what_does_not_arrive(clock: Clock) -> None:
    loop = asyncio.new_event_loop()
    site = Site(loop, clock, MonitorLimits(request=0.01))
    client = site.connect(b"GET /metrics")
    loop.run_until_complete(asyncio.sleep(0.05))
    assert client.aborted
    site.end()
    loop.close()


def test_what_is_no_http_gets_a_400_and_a_response_that_has_begun_is_cut(site: Site) -> None:
    client = site.connect(b"\x16\x03\x01 nothing\r\n\r\n")
    assert client.status == 400
    busy = site.ask(b"/slow")
    busy.protocol.send_400_response("no")
    assert busy.aborted


def test_data_after_the_end_is_passed_over(site: Site) -> None:
    client = site.ask(b"/metrics")
    client.close()
    before = client.written
    client.protocol.data_received(HEAD % b"/metrics")
    assert client.written == before


def test_a_socket_that_is_closed_already_can_be_cut(site: Site) -> None:
    client = site.ask(b"/metrics")
    client.ends[0].close()
    client.protocol.cut()
    assert client.aborted


def test_on_tcp_the_kernel_gives_up_what_is_not_taken() -> None:
    with socket.socket() as connection:
        guard._give_up_after(1.5, connection)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
    guard._give_up_after(1.5, connection)  # closed: nothing happens
