"""gunicorn's header_map, for apps that are given names as they are."""

from __future__ import annotations

import pytest

from multicore_server.connections.limits import Limits
from tests.unit.strict.served import Served, echo, run, seen, status

FIELDS = b"Host: a\r\nX_User: root\r\nX-User: me\r\n"


@pytest.mark.parametrize(
    ("limits", "code", "names"),
    [
        (Limits(), 200, [b"x_user", b"x-user"]),
        (Limits(header_map="dangerous"), 200, [b"x_user", b"x-user"]),
        (Limits(header_map="drop"), 200, [b"x-user"]),
        (Limits(header_map="refuse"), 400, None),
    ],
)
@pytest.mark.parametrize("offer", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_names_with_an_underscore(
    http: str, limits: Limits, code: int, names: list[bytes] | None, offer: bytes
) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for _ in range(2):
            await client.send(b"GET / HTTP/1.1\r\n" + FIELDS + offer + b"\r\n")
            assert status(await client.answer()) == code
            if names is None:
                assert seen == []
                return
            found = [name for name, _ in seen[-2]["headers"]]
            assert [name for name in found if name.endswith(b"user")] == names

    run(test, echo, http, limits)


def test_a_head_without_such_names_passes(http: str) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        await client.send(b"GET /a_b HTTP/1.1\r\nHost: a\r\nX-A: a_b\r\n\r\n")
        assert status(await client.answer()) == 200

    run(test, echo, http, Limits(header_map="refuse"))
