"""`multicore_server.cluster` in real workers."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.support.apps import source
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

APP = source("draining")


def test_a_worker_knows_its_place(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "2", ready=2)
    places = [json.loads(server.get().content) for _ in range(2)]
    assert {place["instance"] for place in places} <= {0, 1}
    assert [(place["instances"], place["is_worker"]) for place in places] == [(2, True)] * 2


@pytest.mark.parametrize(
    ("app", "options"),
    [("app", ()), ("wsgi", ("--threads", "4")), ("wsgi", ())],
    ids=["asgi", "threads", "inline"],
)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_responses_without_an_end_say_goodbye(
    make_server: MakeServer, connect: Connect, app: str, options: tuple[str, ...], loop: str
) -> None:
    server = make_server(APP)
    options = ("-w", "1", "--graceful-timeout", "30", *options)
    server.start(*options, app=f"app:{app}", ready=1, env={"UVICORN_LOOP": loop})
    stream = connect(server.port).send(request("/endless"))
    stream.head()
    assert stream.chunk() == b"begun\n"
    began = time.monotonic()
    server.signal(signal.SIGHUP)
    assert stream.chunk() == b"goodbye\n"
    assert stream.chunk() == b""
    server.wait_logged("exited with code 0 after draining")
    assert time.monotonic() - began < 10


def test_what_is_done_at_the_end_and_in_which_order(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "1", ready=1)
    server.ends_within(10)
    notes = (server.directory / "notes").read_text().splitlines()
    assert notes == ["on_drain True", "the job is finished", "on_shutdown", "lifespan shutdown"]
    assert server.logged("the on_drain callback fail failed")


def test_what_hangs_at_the_end_is_not_waited_for(make_server: MakeServer) -> None:
    app = APP.replace("asyncio.sleep(1)", "asyncio.sleep(60)")
    server = make_server(app).start("-w", "1", "--graceful-timeout", "1", ready=1)
    server.ends_within(10)
    notes = (server.directory / "notes").read_text().splitlines()
    assert notes == ["on_drain True", "on_shutdown", "lifespan shutdown"]


def test_a_slot_that_drains_has_a_successor_meanwhile(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "1", ready=1)
    server.signal(signal.SIGHUP)
    wait_for((server.directory / "notes").exists, "the drain")
    assert json.loads(server.get().content)["instance"] == 0
