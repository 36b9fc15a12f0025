"""Text for terminals: nothing in it moves the cursor or breaks a line; amounts are short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.cli.health import Answered
from multicore_server.cli.text import (
    columns,
    cut,
    duration,
    errors,
    event_text,
    left,
    memory,
    milliseconds,
    percent,
    plain,
    rate,
)
from tests.support.reports import event


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café: 日本", "café: 日本"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("\x9b31m", "\\x9b31m"),  # CSI in one character
        ("right\u202eleft", "right\\u202eleft"),
        ("half \udc80", "half \\udc80"),
        ("[red]markup[/red]", "[red]markup[/red]"),
    ],
)
def test_what_does_not_print_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.characters()))
def test_any_text_becomes_one_line_that_can_be_encoded(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 30))
def test_what_is_cut_fits(text: str, width: int) -> None:
    shown = cut(plain(text), width)
    assert columns(shown) <= width
    assert shown == plain(text) or shown.endswith("~")


def test_wide_characters_take_two_columns() -> None:
    assert columns("日本") == 4
    assert columns("e\u0301") == 1
    assert cut("日本語", 4) == "日~"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (-1, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (7300, "2h"), (86400 * 12.5, "12D")],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_amounts() -> None:
    assert [memory(it) for it in (None, 0, 1023, 1024, 66270003, 2**31)] == [
        "-", "0b", "1023b", "1.0kb", "63.2mb", "2.0gb",
    ]  # fmt: skip
    assert [percent(it) for it in (None, 0.0, 99.6, 150.0)] == ["-", "0%", "100%", "150%"]
    assert [rate(it) for it in (None, 0.0, 0.5, 9.96, 1234.4)] == ["-", "0", "0.5", "10.0", "1234"]
    assert [milliseconds(it) for it in (None, 0.0031, 0.25, 2.5)] == ["-", "3.1ms", "250ms", "2.50s"]


@pytest.mark.parametrize(
    ("answered", "shown"),
    [
        (None, ("-", "-")),
        (Answered(2.0), ("0", "0")),
        (Answered(2.0, 100), ("0", "0")),
        (Answered(2.0, 1000, 5, 30), ("2.5 0.5%", "15")),
    ],
)
def test_errors_a_second(answered: Answered | None, shown: tuple[str, str]) -> None:
    assert (errors(answered), left(answered)) == shown


def test_an_event_names_its_worker() -> None:
    made = event("ready\x1b[m", generation=3, pid=None)
    assert event_text(made) == "instance=0 gen=3 ready\\x1b[m"
    assert event_text(event("reload done", instance=None, generation=None, pid=None)) == "reload done"
