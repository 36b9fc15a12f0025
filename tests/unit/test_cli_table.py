"""Tables: columns go by their importance where there is no room, rows stay aligned."""

from __future__ import annotations

import io

import pytest

from multicore_server.cli.table import Cell, Column, fit, in_color, lines
from multicore_server.cli.text import columns

TABLE = (Column("id", right=True), Column("name", drop=2, most=6), Column("status"), Column("pid", drop=1))
ROWS = [
    [Cell("0"), Cell("an app with a long name"), Cell("ready", "green"), Cell("4711")],
    [Cell("10"), Cell("日本"), Cell("errored", "red"), Cell("-")],
]


def test_a_table() -> None:
    assert lines(TABLE, ROWS, room=None, color=False) == [
        "id  name    status   pid",
        " 0  an ap~  ready    4711",
        "10  日本    errored  -",
    ]


@pytest.mark.parametrize(
    ("room", "kept"), [(25, [0, 1, 2, 3]), (24, [0, 2, 3]), (17, [0, 2, 3]), (16, [0, 2]), (3, [0, 2])]
)
def test_the_least_important_columns_go_first(room: int, kept: list[int]) -> None:
    assert fit(TABLE, ROWS, room) == kept
    shown = lines(TABLE, ROWS, room=room, color=False)
    assert room < 11 or max(map(columns, shown)) <= room


def test_colors_do_not_move_columns() -> None:
    shown = lines(TABLE, ROWS, room=None, color=True)
    assert shown[1] == " 0  an ap~  \x1b[32mready\x1b[0m    4711"


def test_without_rows_there_are_the_titles() -> None:
    assert lines(TABLE, [], room=None, color=False) == ["id  name  status  pid"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colors_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert in_color(_Terminal())
    assert not in_color(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not in_color(_Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_color(_Terminal())
