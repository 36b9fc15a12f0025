"""How often a worker's heart beats: quickly where there is something to do, else slowly."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from multicore_server.connections import siblings
from multicore_server.connections.inboxes import Kind, Sent
from multicore_server.ipc.heartbeat import BEAT, DOZING_BEAT, RESTING_BEAT
from multicore_server.ipc.scoreboard import Item
from multicore_server.worker import heart as module
from multicore_server.worker import server as server_module
from multicore_server.worker.long_requests import LongRequests
from multicore_server.worker.server import WorkerServer
from tests.unit.fake_transport import GET
from tests.unit.worker_server.serving import Host, Serving, play


@pytest.fixture(autouse=True)
def _soon_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_AFTER", BEAT / 2)
    monkeypatch.setattr(module, "WORKING", math.inf)  # these tests poll,
    monkeypatch.setattr(WorkerServer, "_app_has_tasks", lambda _: False)  # and are tasks
    monkeypatch.setattr(siblings, "ON_DUTY", 0)


def ahead(serving: Serving) -> float:
    """Seconds until the next heartbeat is due, as siblings see it."""
    return serving.host.context.row[Item.BEAT_DUE] - time.monotonic()


def rests(serving: Serving) -> bool:
    serving.host.context.row[Item.LOOP_LAG] = 0  # this machine may be slow
    return ahead(serving) > BEAT


async def at_rest(serving: Serving) -> None:
    await serving.start()
    serving.wake_sibling()
    serving.server.heart.wake()  # it beats soon, and this chooses how long the next one rests
    await serving.until(lambda: rests(serving))


def test_a_worker_with_nothing_to_do_rests() -> None:
    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        assert ahead(serving) == pytest.approx(RESTING_BEAT, abs=0.3)
        await serving.drain()

    play(scenario)


@pytest.mark.parametrize(("timeout", "slowest"), [(0, RESTING_BEAT), (30, RESTING_BEAT), (2, 0.5)])
def test_one_that_rests_is_not_taken_for_hung(timeout: int, slowest: float) -> None:
    host = Host()
    host.cfg.timeout = timeout

    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        assert ahead(serving) == pytest.approx(slowest, abs=0.2)
        await serving.drain()

    play(scenario, host)


def memory_limit(serving: Serving) -> None:
    serving.host.context.row[Item.MEMORY_LIMIT] = 1e9


def websocket(serving: Serving) -> None:
    serving.host.context.row[Item.WEBSOCKETS] = 1


def foreign_protocol(serving: Serving) -> None:
    serving.server.config.http_protocol_class = HttpToolsProtocol


def tasks_of_the_app(serving: Serving) -> None:
    serving.server._app_has_tasks = lambda: True  # type: ignore[method-assign]


def on_duty(serving: Serving) -> None:
    siblings.ON_DUTY = 1


def working(serving: Serving) -> None:
    module.WORKING = -1.0


@pytest.mark.parametrize(
    "reason", [memory_limit, websocket, foreign_protocol, tasks_of_the_app, on_duty, working]
)
def test_one_that_is_needed_each_second_or_does_not_hear_all_rests_no_longer(
    reason: Callable[[Serving], None],
) -> None:
    async def scenario(serving: Serving) -> None:
        reason(serving)
        await at_rest(serving)
        assert ahead(serving) == pytest.approx(DOZING_BEAT, abs=0.3)
        await serving.drain()

    play(scenario)


async def much(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(20_000_000)})


def test_one_whose_client_does_not_read_rests_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SWEEP", 0.0)

    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.wake_sibling()
        loop, client = asyncio.get_running_loop(), socket.socket()
        client.setblocking(False)
        serving.clients.append(client)
        await loop.sock_connect(client, serving.listener.getsockname())
        await loop.sock_sendall(client, GET)
        await serving.until(lambda: serving.server.state.total_requests)
        serving.server.heart.beat()
        await serving.until(lambda: rests(serving))
        assert ahead(serving) == pytest.approx(DOZING_BEAT, abs=0.3)
        serving.server.stop(quick=True)
        await serving.drain(quick=True)

    play(scenario, app=much)


@pytest.mark.parametrize(("share", "interval"), [(0.01, RESTING_BEAT), (0.2, DOZING_BEAT)])
def test_one_whose_app_works_without_requests_rests_no_longer(
    share: float, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        heart = serving.server.heart
        monkeypatch.setattr(module, "WORKING", 0.05)
        monkeypatch.setattr(heart, "_chosen_at", asyncio.get_running_loop().time() - 1)
        monkeypatch.setattr(heart, "_worked", time.process_time() - share)
        heart._choose_rest()
        assert heart._interval_at_rest == interval
        await serving.drain()

    play(scenario)


async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await send({"type": f"{(await receive())['type']}.complete"})


@pytest.mark.parametrize("lifespan", ["on", "off"])
def test_the_tasks_of_the_app_are_told_from_the_servers_own(
    lifespan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()

    async def scenario() -> None:
        serving = Serving(Host(), with_lifespan, lifespan)
        server = serving.server
        server._task = asyncio.current_task()
        await server.lifespan.startup()
        assert not server._app_has_tasks()
        of_the_app = asyncio.create_task(asyncio.sleep(60))
        assert server._app_has_tasks()
        of_the_app.cancel()
        await server.lifespan.shutdown()
        serving.close()

    asyncio.run(scenario())


def test_the_tasks_are_not_counted_where_the_worker_does_not_rest_for_long_anyhow() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        server = serving.server
        memory_limit(serving)
        server._app_has_tasks = lambda: pytest.fail("it was asked")  # type: ignore[method-assign]
        assert server._dozes()
        serving.host.context.row[Item.MEMORY_LIMIT] = 0
        server.state.wake = lambda: None
        assert server._dozes(), "the tasks are not known"
        await serving.drain()

    play(scenario)


def test_the_first_response_after_a_rest_has_the_date_of_now() -> None:
    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        serving.server.state.default_headers = [(b"date", b"long ago")]
        client = await serving.ask()
        serving.app.answer()
        answer = await serving.read(client)
        assert b"date: " in answer
        assert b"long ago" not in answer
        await serving.drain()

    play(scenario)


def test_a_lag_fades_with_time_and_not_with_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.server.heart.beat()
        lags = []
        for _ in range(50):
            serving.host.context.row[Item.LOOP_LAG] = 5.0
            serving.server.heart.beat()
            lags.append(serving.host.context.row[Item.LOOP_LAG])
        assert min(lags) > 4.9
        monkeypatch.setattr(serving.server.heart, "_beat_at", asyncio.get_running_loop().time() - 15)
        serving.server.heart.beat()
        assert serving.host.context.row[Item.LOOP_LAG] == pytest.approx(5.0 * 0.88**15, rel=0.1)
        await serving.drain()

    play(scenario)


def test_a_request_after_a_rest_is_not_charged_for_it() -> None:
    """It may be called in the turn of the wake, and block the loop: the arbiter sees when that began."""

    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        row = serving.host.context.row
        row[Item.HEARTBEAT] -= 4
        serving.server.heart.wake()
        assert row[Item.HEARTBEAT] == pytest.approx(time.monotonic(), abs=1)
        await serving.drain()

    play(scenario)


def test_a_wake_hides_no_block() -> None:
    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        serving.server.heart._due -= 60
        serving.server.heart.wake()
        serving.server.heart.beat()
        assert serving.host.context.row[Item.LOOP_LAG] > 50
        serving.host.context.row[Item.LOOP_LAG] = 0
        await serving.drain()

    play(scenario)


def in_hand(serving: Serving) -> None:
    serving.host.context.row[Item.IN_HAND] = 1


def accepted(serving: Serving) -> None:
    serving.host.context.row[Item.ACCEPTED] += 1


def answered(serving: Serving) -> None:
    serving.server.state.total_requests += 1


def message(serving: Serving) -> None:
    serving.host.context.row[Item.MESSAGES_RECEIVED] += 1


def lag(serving: Serving) -> None:
    serving.host.context.row[Item.LOOP_LAG] = 5.0


def draining(serving: Serving) -> None:
    serving.server.begin_to_drain()


@pytest.mark.parametrize("to_do", [in_hand, accepted, answered, message, lag, draining])
def test_one_that_has_something_to_do_beats_quickly(to_do: Callable[[Serving], None]) -> None:
    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        to_do(serving)
        if to_do is lag:
            serving.server.heart.beat()
        serving.server.heart.beat()
        assert ahead(serving) <= BEAT
        serving.host.context.row[Item.IN_HAND] = 0
        await serving.drain()

    play(scenario)


class Begun:
    """A cycle; its client has left, so nothing else keeps the worker awake."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.status = 0


def test_a_request_that_is_looked_after_keeps_it_awake() -> None:
    host = Host()
    host.long_requests = long = LongRequests(host.context.row, None, 60.0, str, threading.get_ident())

    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        long.running[Begun()] = None
        serving.server.heart.beat()
        assert ahead(serving) <= BEAT
        long.running.clear()
        await serving.drain()

    play(scenario, host)


def test_a_client_that_says_nothing_wakes_it() -> None:
    """Its time to send a request begins now."""

    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        client = socket.create_connection(serving.listener.getsockname())
        serving.clients.append(client)
        began = time.monotonic()
        await serving.until(lambda: ahead(serving) <= BEAT)
        assert time.monotonic() - began < RESTING_BEAT / 2
        await serving.drain()

    play(scenario)


def test_a_connection_from_a_sibling_wakes_it() -> None:
    async def scenario(serving: Serving) -> None:
        await at_rest(serving)
        beats = serving.host.context.row[Item.HEARTBEAT]
        serving.host.handover.inboxes.send(0, [Sent(Kind.NEW, serving.listener.fileno())])
        began = time.monotonic()
        await serving.until(lambda: serving.host.context.row[Item.HEARTBEAT] > beats)
        assert time.monotonic() - began < RESTING_BEAT / 2
        await serving.drain()

    play(scenario)
