"""How a worker's server starts, beats and ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from typing import Any

import pytest

from multicore_server.ipc.scoreboard import Item
from multicore_server.worker.server import WorkerServer
from tests.unit.worker_server.serving import PATIENCE, Host, Serving, play

# --- its life


def test_it_runs_from_its_start_to_its_end_and_says_so() -> None:
    async def scenario(serving: Serving) -> None:
        before = signal.getsignal(signal.SIGTERM)
        running = asyncio.create_task(serving.server.serve([serving.listener]))
        await serving.until(lambda: serving.host.told == ["watch", "started"])
        await serving.kept_alive()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving.until(lambda: signal.SIGTERM in serving.host.told)
        assert serving.server.state.draining, "from the signal handler on"
        serving.server.stop()
        await asyncio.wait_for(running, PATIENCE)
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            loop.remove_signal_handler(name)
        signal.signal(signal.SIGTERM, before)

    play(scenario)


def test_it_listens_only_when_the_app_says_that_it_is_ready() -> None:
    host = Host()
    host.waits_for_app = True

    async def scenario(serving: Serving) -> None:
        starting = asyncio.create_task(serving.start())
        await asyncio.sleep(0.02)
        assert not host.context.row[Item.ACCEPTING]
        serving.server.app_is_ready()
        await asyncio.wait_for(starting, PATIENCE)
        assert host.context.row[Item.ACCEPTING]
        await serving.drain()

    play(scenario, host)


def test_an_app_that_is_ready_too_late_is_no_mistake() -> None:
    async def main() -> WorkerServer:
        serving = Serving(Host())
        serving.close()
        return serving.server

    asyncio.run(main()).app_is_ready()


@pytest.mark.parametrize("interface", ["asgi3", "wsgi"])
@pytest.mark.parametrize("limit", [0, 100])
def test_responses_are_told_only_where_somebody_acts_on_them(interface: str, limit: int) -> None:
    host = Host(interface=interface)
    host.cfg.max_requests = limit

    async def scenario(serving: Serving) -> None:
        await serving.start()
        await serving.kept_alive()
        assert ("answered" in host.told) is bool(limit or interface == "wsgi")
        await serving.drain()

    play(scenario, host)


def test_a_surplus_leaves_after_its_next_response() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        client = await serving.ask()
        serving.wake_sibling()
        serving.server.heart.beat()
        assert serving.server.acceptor.dispatcher is not None
        serving.server.acceptor.dispatcher.surplus = 1
        serving.server._choose_listener()
        serving.host.context.row[Item.CONNECTIONS] = 5
        serving.app.answer()
        await serving.until(lambda: serving.host.handover.inboxes.waiting(1))
        assert (await serving.read(client)).endswith(b"ok")
        await serving.drain()

    play(scenario)


def test_the_worst_lag_fades_and_the_next_heartbeat_comes() -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.server.heart.beat()
        time.sleep(0.3)
        assert serving.server.state.is_brisk
        await serving.until(lambda: serving.host.context.row[Item.LOOP_LAG] > 0.1)
        assert not serving.server.state.is_brisk
        before = serving.host.context.row[Item.HEARTBEAT]
        await serving.until(lambda: serving.host.context.row[Item.HEARTBEAT] > before)
        await serving.drain()

    play(scenario)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.ENOMEM, errno.EPERM, errno.ENOBUFS])
def test_a_heartbeat_that_fails_is_followed_by_the_next(number: int, log: pytest.LogCaptureFixture) -> None:
    host = Host()
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        raise OSError(number, os.strerror(number))

    host.beat = beat  # type: ignore[method-assign]  # measuring memory needs a descriptor

    async def scenario(serving: Serving) -> None:
        await serving.start()
        serving.server.heart.beat()
        await serving.until(lambda: len(beats) >= 3)
        await serving.kept_alive()
        await serving.drain()

    play(scenario, host)
    assert log.text.count("a part of the heartbeat failed") == 1


# --- the app's own end


async def slow_to_end(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(PATIENCE)


async def fails_to_start(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


def test_an_app_that_does_not_end_is_left(log: pytest.LogCaptureFixture) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.start()
        assert await serving.drain(quick=True) < 2

    play(scenario, app=slow_to_end, lifespan="on")
    assert "the app's lifespan shutdown took too long; exiting without it" in log.text


def test_an_app_whose_startup_fails_never_listens(log: pytest.LogCaptureFixture) -> None:
    async def scenario(serving: Serving) -> None:
        with contextlib.suppress(SystemExit):  # uvicorn before 0.47 does not exit here
            await serving.start()
        assert not serving.server.started
        assert not serving.host.context.row[Item.ACCEPTING]

    play(scenario, app=fails_to_start, lifespan="on")
