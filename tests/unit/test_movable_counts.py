"""Whatever becomes of connections, what the row says of them is the truth, and nothing is left at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from multicore_server.connections.dispatcher import KEPT, Outcome
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.connections.inline import InlineGate
from multicore_server.connections.leaving import Leaving, send_idle
from tests.unit.fake_transport import GET, LAST, POST, Connections


@dataclass(eq=False)
class Client:
    """One connection as its client knows it."""

    protocol: Any
    kind: Kind
    unsent: bytes = b""  # of its requests
    starts: list[int] = field(default_factory=list)  # of its requests, counted in bytes
    ends: list[int] = field(default_factory=list)
    sent: int = 0
    broken: bool = False  # it has sent what is no request

    def ask(self, request: bytes) -> None:
        self.starts.append(self.sent + len(self.unsent))
        self.unsent += request
        self.ends.append(self.sent + len(self.unsent))

    @property
    def over(self) -> bool:
        return bool(self.protocol.moved or self.protocol.transport.is_closing())

    @property
    def answered(self) -> int:
        return int(self.protocol.transport.written.count(b"\r\n\r\nok"))

    @property
    def begun(self) -> int:
        return sum(start < self.sent for start in self.starts)

    @property
    def awaits(self) -> bool:
        """A request has arrived in whole and has no response yet."""
        return sum(end <= self.sent for end in self.ends) > self.answered

    @property
    def unread(self) -> bool:
        return self.kind is Kind.NEW and not self.sent

    @property
    def in_hand(self) -> bool:
        return self.unread or self.begun > self.answered


class Counting(RuleBasedStateMachine):
    http: ClassVar[str]
    inline: ClassVar[bool] = False
    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.outcome = KEPT
        gate = InlineGate(lambda _: False) if self.inline else None
        self.server = Connections(self.loop, self.http, gate)
        self.server.state.hand_over = self.server.state.set_aside = self.place
        self.server.state.sheds = lambda: True
        self.server.state.leave_soon = Leaving(self.server.state, self.loop).soon
        self.all: list[Client] = []

    def place(self, connections: Sequence[Sent]) -> Outcome:
        return self.outcome

    # --- what can happen

    @rule(target=clients, kind=st.sampled_from(Kind), by_hand=st.booleans())
    def connect(self, kind: Kind, by_hand: bool) -> Any:
        handed = kind if by_hand or kind is Kind.KEPT_ALIVE else None
        client = Client(self.server.connect(handed), kind)
        self.all.append(client)
        self.server.turn()
        return multiple() if client.over else client

    @rule(outcome=st.sampled_from(Outcome))
    def connect_where_a_sibling_is_less_loaded(self, outcome: Outcome) -> None:
        def dispatch(kind: Kind, descriptor: int) -> Outcome:
            if outcome is KEPT:
                self.server.count(kind)
            return outcome

        self.server.state.dispatch = dispatch
        protocol = self.server.connect()
        self.server.state.dispatch = None
        if outcome is KEPT:
            self.all.append(Client(protocol, Kind.NEW))
        self.server.turn()

    @rule(client=clients, request=st.sampled_from([GET, POST, LAST, GET + POST]))
    def ask(self, client: Client, request: bytes) -> None:
        for part in (GET, POST) if request == GET + POST else (request,):
            client.ask(part)

    @rule(client=clients, size=st.integers(1, 200))
    def send(self, client: Client, size: int) -> None:
        if client.over or not client.protocol.transport.reading:
            return
        data, client.unsent = client.unsent[:size], client.unsent[size:]
        if data:
            client.sent += len(data)
            self.server.receive(client.protocol, data)

    @rule(client=clients)
    def send_nonsense(self, client: Client) -> None:
        if not client.over and not client.starts:
            client.sent += 1
            client.broken = True
            self.server.receive(client.protocol, b"\x16\x03\x01 no request\r\n\r\n")

    @rule(number=st.integers(0, 9), well=st.booleans())
    def answer(self, number: int, well: bool) -> None:
        if self.server.app.waiting:
            self.server.answer(number % len(self.server.app.waiting), well=well)

    @rule(client=clients, blocked=st.booleans())
    def read_slowly(self, client: Client, blocked: bool) -> None:
        transport = client.protocol.transport
        transport.blocked = blocked
        transport.unsent = 0

    @rule(outcome=st.sampled_from(Outcome))
    def siblings(self, outcome: Outcome) -> None:
        self.outcome = outcome

    @rule(client=clients, soon=st.booleans())
    def leave(self, client: Client, soon: bool) -> None:
        if client.over:
            return
        if soon:
            client.protocol.leave_soon()
        else:
            send_idle([client.protocol], self.server.state)
        self.server.turn()

    @rule(moving=st.booleans())
    def drain(self, moving: bool) -> None:
        state = self.server.state
        state.moving = moving
        state.draining = True
        state.tell = lambda connection: connection.end()
        for client in self.all:
            if not client.over:
                client.protocol.announce_end()

    @rule(client=consumes(clients), exc=st.sampled_from([None, ConnectionResetError()]))
    def lose(self, client: Client, exc: Exception | None) -> None:
        client.protocol.transport.lose(exc)
        self.server.turn()

    # --- what holds

    @invariant()
    def counts_are_the_truth(self) -> None:
        living = [client for client in self.all if not client.over]
        assert all(not client.broken for client in living)
        truth = (
            sum(client.in_hand for client in living),
            sum(client.unread for client in living),
        )
        assert self.server.counts[:2] == truth
        assert len(self.server.state.connections) == len(living)

    @invariant()
    def the_gate_knows_who_awaits_a_response(self) -> None:
        awaiting = {client.protocol for client in self.all if client.awaits and not client.over}
        assert set(self.server.state.gate.awaited) == (awaiting if self.inline else set())

    @invariant()
    def what_has_moved_left_nothing_unfinished(self) -> None:
        for client in self.all:
            if client.protocol.moved:
                assert client.begun == client.answered
                assert client.protocol.transport.unsent == 0

    def teardown(self) -> None:
        self.server.end()
        assert self.server.counts[:2] == (0, 0)
        assert not self.server.state.connections
        assert not self.server.state.gate.awaited
        self.loop.close()


class HttpToolsCounting(Counting):
    http = "httptools"


class H11Counting(Counting):
    http = "h11"


class InlineHttpToolsCounting(HttpToolsCounting):
    inline = True


class InlineH11Counting(H11Counting):
    inline = True


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """uvicorn logs each exception of the app and each bad request."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


options = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
machines = (HttpToolsCounting, H11Counting, InlineHttpToolsCounting, InlineH11Counting)


@pytest.mark.parametrize("machine", machines)
def test_counts(machine: type[Counting]) -> None:
    case: Any = machine.TestCase
    case.settings = options
    case("runTest").runTest()
