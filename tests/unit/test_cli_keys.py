"""Keys out of what a terminal sends."""

from __future__ import annotations

import pytest

from multicore_server.cli.keys import parse


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("q", ["q"]),
        ("r+-", ["r", "+", "-"]),
        ("\x1b[A\x1b[B", ["up", "down"]),
        ("\x1bOA", ["up"]),  # with application cursor keys
        ("\x1b[1;5Aq", ["up", "q"]),
        ("\x1b[3~q", ["q"]),  # Delete: nothing
        ("\x1b", []),
        ("\x1b[", []),
        ("\x1b\x1b[Bq", ["down", "q"]),
    ],
)
def test_keys(sent: str, keys: list[str]) -> None:
    assert list(parse(sent)) == keys
