"""Log records: where they come from, and their form as JSON."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicore_server.arbiter.logs import fields_of
from multicore_server.fleet.events import Event
from multicore_server.logs import JsonFormatter, json_lines, origin

WORKER = (3, 2)  # instance and generation


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def handle() -> Iterator[Any]:
    """Puts back how all loggers handle records, and who this process is."""
    before = logging.Logger.handle, origin._installed, origin._origin
    yield before[0]
    logging.Logger.handle, origin._installed, origin._origin = before  # type: ignore[method-assign]


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def logger(kept: Kept) -> logging.Logger:
    logger = logging.Logger("app.views")
    logger.addHandler(kept)
    origin.label_records()
    return logger


# --- where a record comes from


def test_nobody_is_an_instance_until_it_is_a_worker(logger: logging.Logger, kept: Kept) -> None:
    text = logging.Formatter("%(instance)s %(generation)s %(message)s")
    logger.warning("arbiter")
    origin.become(*WORKER)
    logger.warning("worker")
    assert [text.format(record) for record in kept.records] == ["- - arbiter", "3 2 worker"]


def test_records_are_labelled_once(handle: Any) -> None:
    origin._installed = False
    origin.label_records()
    once = logging.Logger.handle
    origin.label_records()
    assert logging.Logger.handle is once


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_record_factory_of_the_apps(logger: logging.Logger, kept: Kept, handle: Any, when: str) -> None:
    class Own(logging.LogRecord):
        """Knows of no other factory."""

    logging.Logger.handle, origin._installed = handle, False  # type: ignore[method-assign]
    factory = logging.getLogRecordFactory()
    try:
        if when == "before":
            logging.setLogRecordFactory(Own)
        origin.label_records()
        origin.become(*WORKER)
        logging.setLogRecordFactory(Own)
        logger.warning("text")
    finally:
        logging.setLogRecordFactory(factory)
    (record,) = kept.records
    assert type(record) is Own
    assert (record.__dict__["instance"], record.__dict__["generation"]) == WORKER


def test_an_extra_of_the_same_name_is_the_apps(logger: logging.Logger, kept: Kept) -> None:
    """Of a Django model, say: with a record factory it would be a KeyError in the app."""
    origin.become(*WORKER)
    logger.warning("saved", extra={"instance": "Order 5"})
    (record,) = kept.records
    assert (record.__dict__["instance"], record.__dict__["generation"]) == ("Order 5", 2)
    assert json.loads(JsonFormatter().format(record))["instance"] == 3


# --- JSON


def line_of(record: logging.LogRecord) -> dict[str, Any]:
    """The one line that becomes of a record, read by a strict reader."""
    text = JsonFormatter().format(record)
    assert text.isascii()
    assert text.isprintable()  # one line, whatever a reader takes for its end
    found: dict[str, Any] = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    json.dumps(found, ensure_ascii=False).encode()  # no half of a surrogate pair
    return found


def record(message: Any = "text", *args: Any, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("app", logging.WARNING, "app.py", 1, message, args, None)
    made.__dict__.update(more)
    return made


def test_the_fields() -> None:
    origin.become(*WORKER)
    made = record("%s of %d", "one", 2)
    said = line_of(made)
    assert said == {
        "time": said["time"],
        "level": "warning",
        "logger": "app",
        "message": "one of 2",
        "instance": 3,
        "generation": 2,
        "pid": made.process,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", said["time"])
    moment = datetime.strptime(said["time"], "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs(moment.timestamp() - made.created) < 1e-5


def test_time_goes_on() -> None:
    formatter = JsonFormatter()
    made = record()
    for created in (0.0, 0.25, 59.999999, 60.0, 1_800_000_000.5):
        made.created = created
        said = json.loads(formatter.format(made))["time"]
        assert said == datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_who_is_no_worker_has_no_instance() -> None:
    said = line_of(record())
    assert (said["instance"], said["generation"]) == (None, None)


def test_a_line_of_the_arbiters_about_a_worker() -> None:
    about = fields_of(Event("exited", "crashed", "error", "signal", 1, 4, 77))
    said = line_of(record("text\n", **about))
    assert (said["instance"], said["generation"], said["message"]) == (1, 4, "text")
    assert (said["kind"], said["reason"], said["worker_pid"]) == ("exited", "signal", 77)
    assert fields_of(Event("stopping", "more")) == {"kind": "stopping"}


def test_an_exception_and_a_stack_are_text(kept: Kept, logger: logging.Logger) -> None:
    try:
        raise ValueError("half a pair \udc80\n")
    except ValueError:
        logger.exception("failed", stack_info=True)
    logger.error("none", exc_info=True)
    said, none = map(line_of, kept.records)
    assert said["exception"].startswith("Traceback (most recent call last):\n")
    assert said["exception"].endswith("ValueError: half a pair \\udc80\n")
    assert said["stack"].startswith("Stack (most recent call last):\n")
    assert "exception" not in none


def test_what_an_extra_has(kept: Kept, logger: logging.Logger) -> None:
    extra = {"order": 5, "tags": ["a", {"b": None}], "pid": 1, "level": "mine", "path": Path("/x")}
    logger.warning("sold", extra=extra)
    said = line_of(kept.records[0])
    assert (said["order"], said["tags"], said["path"]) == (5, ["a", {"b": None}], "/x")
    assert (said["pid"], said["level"]) == (kept.records[0].process, "warning")


def test_uvicorns_colours_are_for_terminals() -> None:
    assert "color_message" not in line_of(record(color_message="\x1b[36mtext"))


class Nasty:
    def __init__(self, exc: Exception) -> None:
        self.exc = exc

    def __str__(self) -> str:
        raise self.exc

    __repr__ = __str__


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

HOSTILE: dict[str, Any] = {
    "controls": "\x00\x1b[2J\r\n\u2028\u2029\x7f\x85",
    "half a pair": "half \ud83d of a pair",
    "halves": "\ude00\ud83d",
    "whole": "\U0001f600 whole",
    "bytes": b"\xff\x00bytes",
    "bytearray": bytearray(b"\n"),
    "nan": math.nan,
    "infinity": -math.inf,
    "digits": 10**5000,
    "circle": CIRCLE,
    "depth": DEEP,
    "keys": {1: 2, (3,): 4},
    "inner nan": {"a": math.nan},
    "inner half": {"half": "\udc80", "whole": "\U0001f600", "literal": r"\ud800"},
    "half a key": {"deep": [{"\udc80": 1}]},
    "nasty": Nasty(ZeroDivisionError("no")),
    "inner nasty": [Nasty(RecursionError())],
    "object": object(),
    "exception": ValueError("\n"),
    "set": {1, 2},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_breaks_a_line(name: str) -> None:
    value = HOSTILE[name]
    for made in (record("%s and %r", value, value), record(value), record("%d", value), record(extra=value)):
        line_of(made)
    line_of(record("a", "surplus", value))
    try:
        raise RuntimeError(value)
    except RuntimeError as exc:
        made = record()
        made.exc_info = (type(exc), exc, exc.__traceback__)
        line_of(made)


def test_what_cannot_be_shown_is_named() -> None:
    nasty = Nasty(ZeroDivisionError("no"))
    assert line_of(record("it is %s", nasty))["message"] == (
        "it is %s (its arguments cannot be shown: ZeroDivisionError)"
    )
    assert line_of(record(it=nasty))["it"] == "<Nasty that cannot be shown: ZeroDivisionError>"
    assert line_of(record(it={"half": "\udc80", "literal": r"\ud800"}))["it"] == {
        "half": "?",
        "literal": r"\ud800",
    }


def test_a_huge_message_is_cut() -> None:
    for made in (record("x" * 10**6), record("%s", "x" * 10**6)):
        message = line_of(made)["message"]
        assert message.startswith("x" * json_lines.LONGEST)
        assert message.endswith(f"x... and {10**6 - json_lines.LONGEST} more characters")


def test_a_huge_extra_is_cut() -> None:
    said = line_of(record(it=["x"] * 10**5, small=1))
    assert len(said["it"]) < json_lines.LONGEST + 100
    assert said["small"] == 1


@given(st.text(st.characters(exclude_categories=())), st.dictionaries(st.text(), st.floats() | st.text()))
def test_any_text(text: str, extra: dict[str, Any]) -> None:
    said = line_of(record("%s", text, extra=extra, it=text))
    assert said["it"] == text.encode(errors="backslashreplace").decode()
    assert said["message"] == said["it"].rstrip("\n")


def test_a_log_configuration_may_give_a_format() -> None:
    assert json.loads(JsonFormatter("%(message)s", "%H", "%").format(record()))["message"] == "text"


# --- the access lines of gunicorn's logger are in test_access.py; these are uvicorn's


def test_a_line_of_uvicorns_access_logger() -> None:
    made = logging.LogRecord(
        "uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:5", "GET", "/a%20b?c=d", "1.1", 200), None,
    )  # fmt: skip
    said = line_of(made)
    assert said["message"] == '127.0.0.1:5 - "GET /a%20b?c=d HTTP/1.1" 200'
    request = {"client": "127.0.0.1:5", "method": "GET", "path": "/a%20b", "query": "c=d", "status": 200}
    assert request.items() <= said.items()


@pytest.mark.parametrize("name", ["uvicorn.access", "gunicorn.access"])
def test_access_lines_of_another_form(name: str) -> None:
    every: tuple[Any, ...] = (("only", "two"), (1, 2, 3, 4, 5), {"h": "no more"})
    for args in every:
        made = record("text", name=name, args=args)
        assert "status" not in line_of(made)
