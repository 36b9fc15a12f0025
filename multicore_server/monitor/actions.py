"""Asks each worker, by its mailbox, to carry out an action; the arbiter is not involved."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Collection
from itertools import count
from typing import Any, NamedTuple

from multicore_server.ipc.mailboxes import MAX_BODY, MONITOR, GarbledError, Kind, Mailboxes, Packet
from multicore_server.ipc.report import LONGEST_ACTION, ActionAnswer
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard
from multicore_server.monitor.commands import instances_of

PATIENCE = 10.0  # seconds that a worker has for its answer, where nobody says otherwise
AT_ONCE = 64  # packets that are read in one turn of the loop

logger = logging.getLogger("gunicorn.error")


class Asked(NamedTuple):
    """What an operator asks for: an action by its name, None for the names that there are; of these
    instances, None for all."""

    action: str | None
    instances: Collection[int] | None
    arguments: Any
    timeout: float


def parse(body: bytes) -> Asked:
    """Raises ValueError with one line."""
    try:
        given = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(given, dict):
        raise ValueError('the body is not a JSON object such as {"action": "gc"}')
    if strange := sorted(given.keys() - {"action", "instances", "arguments", "timeout"}):
        raise ValueError(f"an action has no {json.dumps(strange[0][:40])}")
    action, timeout = given.get("action"), given.get("timeout", PATIENCE)
    instances = instances_of(given.get("instances"))
    if action is not None and not isinstance(action, str):
        raise ValueError("action: give the name of an action")
    if not _is_number(timeout) or not 0 < timeout <= LONGEST_ACTION:
        raise ValueError(f"timeout: give seconds, {LONGEST_ACTION:g} at most")
    return Asked(action, instances, given.get("arguments"), float(timeout))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class WorkerClient:
    """The monitor's own mailbox. Answers may come in any order, late, and from whoever has a mailbox."""

    def __init__(self, mailboxes: Mailboxes, scoreboard: Scoreboard) -> None:
        self._mailboxes = mailboxes
        self._scoreboard = scoreboard
        self._numbers = count(1)
        self._waiting: dict[int, tuple[int, asyncio.Future[ActionAnswer]]] = {}  # with the instance asked

    def listen(self) -> None:
        """Read answers in the running loop from now on."""
        self._mailboxes.keep(self._mailboxes.monitor)
        reader = self._mailboxes.reader(self._mailboxes.monitor)
        asyncio.get_running_loop().add_reader(reader, self._receive)

    async def ask(self, asked: Asked) -> list[ActionAnswer]:
        """What each of the workers says. Raises ValueError where the question is too long."""
        body = json.dumps([asked.action, asked.arguments]).encode()
        if len(body) > MAX_BODY:
            raise ValueError(f"the arguments are longer than {MAX_BODY} bytes")
        rows = {row // ROWS_PER_SLOT: row for row in self._scoreboard.serving()}
        wanted = sorted(rows if asked.instances is None else asked.instances)
        return await asyncio.gather(*(self._ask(it, rows.get(it), body, asked.timeout) for it in wanted))

    async def _ask(self, instance: int, row: int | None, body: bytes, timeout: float) -> ActionAnswer:
        if row is None:
            return _failed(instance, "it is not running")
        number = next(self._numbers) % 2**32
        answer: asyncio.Future[ActionAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = instance, answer
        try:
            self._mailboxes.send(row, Packet(Kind.ACTION, MONITOR, number, body))
            return await asyncio.wait_for(answer, timeout)
        except asyncio.TimeoutError:
            return _failed(instance, f"it has not answered within {timeout:g} s")
        except OSError as exc:  # its mailbox is full
            return _failed(instance, f"it cannot be asked: {exc.strerror or exc}")
        finally:
            del self._waiting[number]

    def _receive(self) -> None:
        for _ in range(AT_ONCE):
            try:
                packet = self._mailboxes.receive(self._mailboxes.monitor)
            except GarbledError as exc:
                logger.debug("an answer is dropped: %s", exc)
                continue
            except OSError:  # no memory: it stays there
                return
            if packet is None:
                return
            self._take(packet)

    def _take(self, packet: Packet) -> None:
        instance, answer = self._waiting.get(packet.number, (None, None))
        if packet.kind != Kind.ANSWER or answer is None or packet.sender != instance or answer.done():
            return  # it has come too late, or is none
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(packet.body)
            if isinstance(said, dict):
                ok, error = said.get("ok") is True, said.get("error")
                error = error if isinstance(error, str) else ""
                answer.set_result(
                    {"instance": instance, "ok": ok, "value": said.get("value"), "error": error}
                )


def _failed(instance: int, error: str) -> ActionAnswer:
    return {"instance": instance, "ok": False, "value": None, "error": error}
