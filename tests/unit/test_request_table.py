"""The table of requests in hand: what a reader finds in it, whatever has been written."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from multicore_server.ipc import request_table
from multicore_server.ipc.request_table import (
    CLIENT_SIZE,
    ENTRIES,
    ENTRY_SIZE,
    NONE,
    PATH_SIZE,
    InHand,
    RequestTable,
    Writer,
    in_words,
)

NOW = 100.0


def scope(path: bytes = b"/", method: str = "GET", query: bytes = b"", client: Any = ("10.0.0.1", 5)) -> Any:
    return {"method": method, "raw_path": path, "query_string": query, "client": client}


def entries(table: RequestTable, row: int = 0) -> list[tuple[str, str, str]]:
    return [(it.method, it.path, it.client) for it in table.of(row, NOW)]


def test_what_is_in_hand_the_oldest_first() -> None:
    table = RequestTable(3)
    writer, other = table.writer(1), table.writer(2)
    second = writer.begin(scope(b"/2", "POST", b"secret=1"), 20.0)
    writer.begin(scope(b"/1", client=None), 10.0)
    other.begin(scope(b"/other"), 1.0)
    assert entries(table, 1) == [("GET", "/1", ""), ("POST", "/2", "10.0.0.1")]
    assert entries(table, 2) == [("GET", "/other", "10.0.0.1")]
    writer.end(second)
    assert table.of(1, NOW) == [InHand("GET", "/1", "", 10.0)]
    table.clear(1)
    assert (entries(table, 0), entries(table, 1)) == ([], [])


def test_queries_are_shown_where_that_is_asked_for() -> None:
    table = RequestTable(1, queries=True)
    writer = table.writer(0)
    writer.begin(scope(b"/a", query=b"q=1"), 1.0)
    writer.begin(scope(b"/b"), 2.0)
    assert [it.path for it in table.of(0, NOW)] == ["/a?q=1", "/b"]


def test_where_all_entries_are_in_use_the_oldest_are_kept() -> None:
    table = RequestTable(2)
    writer = table.writer(0)
    held = [writer.begin(scope(b"/%d" % number), number + 1.0) for number in range(ENTRIES)]
    assert writer.begin(scope(b"/late"), 99.0) == NONE
    assert [it.path for it in table.of(0, NOW)] == [f"/{number}" for number in range(ENTRIES)]
    assert entries(table, 1) == []
    writer.end(held[3])
    assert writer.begin(scope(b"/new"), 99.5) == held[3]
    assert table.of(0, NOW)[-1].path == "/new"


def test_what_is_too_long_is_cut_and_what_does_not_print_is_escaped() -> None:
    table = RequestTable(1)
    writer = table.writer(0)
    writer.begin(scope(b"/" + b"x" * 100_000, "M" * 50, client=("c" * 99, 1)), 1.0)
    writer.begin(scope(b"/\x1b[31m \xff\n\0end", client=("\x07fe80::1%eth0", 1)), 2.0)
    long, odd = table.of(0, NOW)
    assert long == InHand("M" * 16, "/" + "x" * (PATH_SIZE - 1) + "...", "c" * CLIENT_SIZE, 1.0)
    assert (odd.path, odd.client) == (r"/\x1b[31m\x20\xff\x0a\x00end", r"\x07fe80::1%eth0")


def test_a_trusted_proxy_names_the_client() -> None:
    table = RequestTable(1)
    writer = table.writer(0)
    writer.rename_client("203.0.113.9")  # of none
    first = writer.begin(scope(b"/1"), 1.0)
    writer.begin(scope(b"/2", client=None), 2.0)
    writer.rename_client("2001:db8::1")
    assert [it.client for it in table.of(0, NOW)] == ["10.0.0.1", "2001:db8::1"]
    writer.rename_client("x" * 99)
    assert [it.client for it in table.of(0, NOW)] == ["10.0.0.1", "x" * CLIENT_SIZE]
    writer.end(first)
    held = [writer.begin(scope(), 3.0) for _ in range(ENTRIES - 1)]
    writer.end(held[-1])
    writer.rename_client("203.0.113.9")  # of one that has ended
    assert [it.client for it in table.of(0, NOW)][1:] == ["10.0.0.1"] * (ENTRIES - 2)


def test_what_stands_there_already_is_not_written_again() -> None:
    table = RequestTable(1)
    writer = table.writer(0)
    long, longer = (b"/" + b"x" * size for size in (PATH_SIZE, PATH_SIZE + 1))
    for path in (b"/1", b"/1", b"/2", long, longer, longer, long, b"/1"):
        for client in ("10.0.0.1", "10.0.0.2"):
            entry = writer.begin(scope(path, client=(client, 1)), 1.0)
            [found] = table.of(0, NOW)
            assert (found.path.rstrip("."), found.client) == (path[:PATH_SIZE].decode(), client)
            if path == b"/1":
                writer.rename_client("192.0.2.1")
            writer.end(entry)
    writer.end(writer.begin(scope(), 1.0))
    writer._pack = None  # type: ignore[assignment]  # it is not needed
    writer.begin(scope(), 2.0)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, -1.0, NOW + 1])
def test_times_that_are_none(garbage: float) -> None:
    table = RequestTable(1)
    table.writer(0).begin(scope(), garbage)
    assert table.of(0, NOW) == []


def test_whatever_stands_there_nothing_is_raised() -> None:
    for _ in range(200):
        table = RequestTable(1)
        table._memory[:] = os.urandom(len(table._memory))
        for entry in range(0, ENTRIES, 2):
            table._items[entry * ENTRY_SIZE // 8] = 5.0
        for found in table.of(0, NOW):
            assert str(found).isprintable()
            assert found.client.isprintable()


def test_an_entry_that_is_written_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with another worker on another CPU: between two reads of the time the text changes."""
    table = RequestTable(1)
    writer = table.writer(0)
    entry = writer.begin(scope(b"/old"), 1.0)
    unpack = request_table._TEXT.unpack_from

    class Interrupted:
        def unpack_from(self, *given: Any) -> Any:
            found = unpack(*given)
            writer.end(entry)
            writer.begin(scope(b"/new"), 2.0)
            return found

    monkeypatch.setattr(request_table, "_TEXT", Interrupted())
    assert table.of(0, NOW) == []


def test_a_worker_that_dies_while_it_writes_leaves_no_half_of_an_entry() -> None:
    class Dies:
        def __call__(self, *_: Any) -> None:
            raise SystemExit

    table = RequestTable(1)
    writer: Writer = table.writer(0)
    writer._pack = Dies()
    with pytest.raises(SystemExit):
        writer.begin(scope(), 1.0)
    assert table.of(0, NOW) == []


def test_in_words() -> None:
    orders, feed = InHand("POST", "/orders/17", "", 96.8), InHand("GET", "/feed", "", 99.9)
    assert in_words([orders, feed], 2, NOW) == "POST /orders/17 for 3.2 s, GET /feed for 0.1 s"
    assert in_words([orders, feed], 6, NOW) == "POST /orders/17 for 3.2 s, GET /feed for 0.1 s (and 4 more)"
    assert in_words([feed] * 5, 1, NOW) == ", ".join(["GET /feed for 0.1 s"] * 3) + " (and 2 more)"
    assert in_words([], 7, NOW) == ""
