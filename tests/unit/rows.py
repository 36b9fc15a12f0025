"""Rows of the scoreboard, for tests."""

from __future__ import annotations

from multicore_server.ipc.scoreboard import CODES, METHODS, Item


def cell(method: str, code: str) -> int:
    """The item that counts requests with this method and class of status."""
    return Item.REQUESTS + METHODS.index(method) * len(CODES) + CODES.index(code)
