"""Prints tables in a terminal. If the terminal is too narrow, the least important columns are left out."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import click

from multicore_server.cli.text import columns, cut

GAP = 2  # columns between two columns


class Column(NamedTuple):
    """A column. On a narrow terminal, columns with the highest ``drop`` are left out first; those with 0
    stay."""

    title: str
    drop: int = 0
    right: bool = False
    most: int = 40  # columns that a text may take


class Cell(NamedTuple):
    text: str
    color: str | None = None


def fit(table: Sequence[Column], rows: Iterable[Sequence[Cell]], room: int | None) -> list[int]:
    """Return the numbers of the columns that fit (None: there is no limit)."""
    rows = list(rows)
    widths = _widths(table, rows)
    kept = list(range(len(table)))
    while room is not None and sum(widths[it] for it in kept) + GAP * (len(kept) - 1) > room:
        last = max(kept, key=lambda it: table[it].drop)
        if table[last].drop == 0:
            break
        kept.remove(last)
    return kept


def lines(
    table: Sequence[Column], rows: Sequence[Sequence[Cell]], *, room: int | None, color: bool
) -> list[str]:
    """Return the title line and a line for each row, without the columns that do not fit."""
    kept = fit(table, rows, room)
    widths = _widths(table, rows)
    title = [Cell(column.title) for column in table]
    written = [_line(table, row, kept, widths, color) for row in (title, *rows)]
    return [click.style(written[0], bold=True) if color else written[0], *written[1:]]


def _widths(table: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> list[int]:
    widths = [columns(column.title) for column in table]
    for row in rows:
        for place, cell in enumerate(row):
            widths[place] = max(widths[place], min(columns(cell.text), table[place].most))
    return widths


def _line(
    table: Sequence[Column], row: Sequence[Cell], kept: list[int], widths: list[int], color: bool
) -> str:
    cells = (_padded(row[it], table[it], widths[it], color) for it in kept)
    return (" " * GAP).join(cells).rstrip()


def _padded(cell: Cell, column: Column, width: int, color: bool) -> str:
    text = cut(cell.text, column.most)
    space = " " * (width - columns(text))
    shown = click.style(text, fg=cell.color) if color and cell.color else text
    return space + shown if column.right else shown + space


# --- the terminal ---


def in_color(stream: object = None) -> bool:
    """Return whether a stream (stdout) is a terminal that shows colours: https://no-color.org."""
    return understands_escapes(stream) and not os.environ.get("NO_COLOR")


def understands_escapes(stream: object = None) -> bool:
    """Return whether a stream (stdout) is a terminal whose cursor can be moved: TERM=dumb has no such."""
    isatty = getattr(stream or sys.stdout, "isatty", lambda: False)
    return bool(isatty()) and os.environ.get("TERM") != "dumb"


def room() -> int | None:
    """Return the width of the terminal in columns; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
