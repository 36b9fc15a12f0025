"""Fixtures of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from multicore_server.connections.inline import OpenGate
from tests.unit.fake_transport import Connections
from tests.unit.movable.connecting import Build


@pytest.fixture(params=["httptools", "h11"])
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    loop = asyncio.new_event_loop()
    made: list[Connections] = []

    def build(gate: OpenGate | None = None, ws: str = "none") -> Connections:
        made.append(Connections(loop, request.param, gate, ws))
        return made[-1]

    yield build
    for connections in made:
        connections.end()
    loop.close()
