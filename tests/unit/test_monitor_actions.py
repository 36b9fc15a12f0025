"""The monitor asks workers by their mailboxes: what is asked, and what may come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from multicore_server.ipc.mailboxes import MONITOR, Kind, Mailboxes, Packet
from multicore_server.ipc.report import ActionAnswer
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard
from multicore_server.monitor.actions import Asked, WorkerClient, parse

GREET = Asked("greet", None, {"name": "a"}, 5.0)


class Office:
    """Two workers that answer as the test says, and the monitor's client."""

    def __init__(self) -> None:
        self.scoreboard = Scoreboard(2)
        self.scoreboard.publish(frozenset({0, ROWS_PER_SLOT + 1}))
        self.mailboxes = Mailboxes(2 * ROWS_PER_SLOT)
        self.workers = Mailboxes.__new__(Mailboxes)  # the workers' ends: `keep` closes the monitor's
        self.workers._pairs = {
            number: (reader.dup(), writer.dup()) for number, (reader, writer) in self.mailboxes._pairs.items()
        }
        self.client = WorkerClient(self.mailboxes, self.scoreboard)

    def asked(self, row: int) -> Packet:
        packet = self.workers.receive(row)
        assert packet is not None
        assert (packet.kind, packet.sender) == (Kind.ACTION, MONITOR)
        return packet

    def answer(self, number: int, sender: int, body: bytes, kind: Kind = Kind.ANSWER) -> None:
        self.workers.send(self.mailboxes.monitor, Packet(kind, sender, number, body))

    def close(self) -> None:
        for reader, writer in self.workers._pairs.values():
            reader.close()
            writer.close()
        self.mailboxes.close()


def play(asked: Asked, scenario: Callable[[Office], Awaitable[None]]) -> list[ActionAnswer]:
    async def main() -> list[ActionAnswer]:
        office = Office()
        try:
            office.client.listen()
            task = asyncio.create_task(office.client.ask(asked))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await scenario(office)
            return await task
        finally:
            asyncio.get_running_loop().remove_reader(office.mailboxes.reader(office.mailboxes.monitor))
            office.close()

    return asyncio.run(asyncio.wait_for(main(), 10))


def ok(value: Any) -> bytes:
    return json.dumps({"ok": True, "value": value, "error": ""}).encode()


def test_each_worker_that_serves_is_asked_and_answers() -> None:
    async def both(office: Office) -> None:
        for instance, row in ((1, 5), (0, 0)):
            packet = office.asked(row)
            assert json.loads(packet.body) == ["greet", {"name": "a"}]
            office.answer(packet.number, instance, ok(instance))

    assert play(GREET, both) == [
        {"instance": 0, "ok": True, "value": 0, "error": ""},
        {"instance": 1, "ok": True, "value": 1, "error": ""},
    ]


def test_what_is_no_answer_is_passed_over() -> None:
    async def noise(office: Office) -> None:
        first, second = office.asked(0).number, office.asked(5).number
        office.answer(99, 0, ok("a number that nobody has asked with"))
        office.answer(first, 1, ok("another worker's"))
        office.answer(first, 0, ok("no answer"), Kind.MESSAGE)
        for garbage in (b"", b"{", b"[" * 60_000, b"1", b'"x"'):
            office.answer(first, 0, garbage)
        office.workers._pairs[office.mailboxes.monitor][1].send(b"\xff")
        office.answer(first, 0, json.dumps({"ok": 1, "error": [1]}).encode())
        office.answer(first, 0, ok("too late"))
        office.answer(second, 1, ok("good"))

    assert play(GREET, noise) == [
        {"instance": 0, "ok": False, "value": None, "error": ""},
        {"instance": 1, "ok": True, "value": "good", "error": ""},
    ]


def test_who_does_not_run_or_answer_or_is_full_is_named() -> None:
    async def nothing(office: Office) -> None:
        """Nobody answers."""

    asked = Asked("greet", [0, 1, 7], None, 0.05)
    late = "it has not answered within 0.05 s"
    assert [it["error"] for it in play(asked, nothing)] == [late, late, "it is not running"]

    async def main() -> list[ActionAnswer]:
        office = Office()
        try:
            with pytest.raises(BlockingIOError):
                fill(office)
            return await office.client.ask(Asked("greet", [0], None, 1.0))
        finally:
            office.close()

    def fill(office: Office) -> None:
        for _ in range(100_000):
            office.mailboxes.send(0, Packet(Kind.MESSAGE, 1, 0, b"1"))

    (answer,) = asyncio.run(main())
    assert answer["error"] == "it cannot be asked: Resource temporarily unavailable"


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b"", Asked(None, None, None, 10.0)),
        (b'{"action": "gc", "instances": [1], "timeout": 2}', Asked("gc", [1], None, 2.0)),
        (b'{"action": "gc", "arguments": [1, {"a": null}]}', Asked("gc", None, [1, {"a": None}], 10.0)),
    ],
)
def test_what_an_operator_asks(body: bytes, asked: Asked) -> None:
    assert parse(body) == asked


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "the body is not JSON"),
        (b"[" * 10_000, "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        (b'{"acton": "gc"}', 'an action has no "acton"'),
        (b'{"action": 1}', "give the name of an action"),
        (b'{"timeout": 0}', "give seconds, 600 at most"),
        (b'{"timeout": 601}', "give seconds"),
        (b'{"timeout": true}', "give seconds"),
        (b'{"timeout": NaN}', "give seconds"),
        (b'{"instances": 1}', "give a list of instance numbers"),
        (b'{"instances": [true]}', "give a list"),
        (b'{"instances": [-1]}', "give a list"),
    ],
)
def test_what_cannot_be_asked_is_one_line(body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        parse(body)
    assert "\n" not in str(caught.value)


def test_arguments_that_are_too_long_are_refused() -> None:
    async def main() -> None:
        office = Office()
        try:
            with pytest.raises(ValueError, match="the arguments are longer than 65536 bytes"):
                await office.client.ask(Asked("greet", None, "x" * 70_000, 1.0))
        finally:
            office.close()

    asyncio.run(main())
