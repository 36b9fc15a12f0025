"""Writes log records as JSON: one object a line, whatever a record contains. Pure."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii
from typing import Any

from multicore_server.logs.origin import NOBODY, origin
from multicore_server.logs.requests import fields_of

LONGEST = 2**16  # characters of one text; of the others the line says how many there are
# What any record has. The rest is from the ``extra`` of whoever has logged.
_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message", "asctime", "taskName", "instance", "generation", "color_message",
}  # fmt: skip
_OURS = frozenset({"time", "level", "logger", "message", "pid", "exception", "stack"})


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON: time, level, logger, message, instance, generation, pid; what an access
    line says of its request; exception and stack as text; and each field of an ``extra``.

    In ASCII, without line breaks and without halves of surrogate pairs. Nothing in a record makes it fail.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()  # the format that a log configuration gives every formatter has no meaning here
        self._second = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        head = (
            f'"time": "{self._time(record.created)}", "level": {_text(str(record.levelname).lower())}, '
            f'"logger": {_text(str(record.name))}, "message": {_text(_message(record))}, {_where(record)}'
        )
        fields = _fields(record)
        return f"{{{head}{_members(fields)}{_members(self._more(record, fields))}}}"

    def _time(self, created: float) -> str:
        """ISO 8601, in UTC."""
        second, text = self._second
        if second != int(created):
            second = int(created)
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second, text
        return f"{text}.{int((created - second) * 1_000_000):06d}Z"

    def _more(self, record: logging.LogRecord, fields: Mapping[str, Any]) -> dict[str, Any]:
        found = record.__dict__
        extra = found.keys() - _USUAL
        more = {str(name): found[name] for name in extra if name not in fields and name not in _OURS}
        if exception := self._exception(record):
            more["exception"] = exception
        if record.stack_info:
            more["stack"] = record.stack_info
        return more

    def _exception(self, record: logging.LogRecord) -> str | None:
        about = record.exc_info
        try:
            if not record.exc_text and about and about[0] is not None:
                record.exc_text = self.formatException(about)
        except Exception as exc:  # noqa: BLE001 - it is the app's own exception that is shown
            return f"an exception that cannot be shown: {type(exc).__name__}"
        return record.exc_text


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip("\n")  # uvicorn has one at the end of some
    except Exception as exc:  # noqa: BLE001 - a format that does not fit, an object that cannot be shown
        return f"{_shown(record.msg)} (its arguments cannot be shown: {type(exc).__name__})"


def _where(record: logging.LogRecord) -> str:
    """A worker's own line names that worker, and a line of the arbiter's the worker that it is about."""
    instance, generation = origin()
    if instance == NOBODY:
        about = record.__dict__
        instance, generation = (_number(about.get(name)) for name in ("instance", "generation"))
    return f'"instance": {instance}, "generation": {generation}, "pid": {record.process or os.getpid()}'


def _number(value: object) -> str:
    return str(value) if type(value) is int else "null"


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    try:
        return fields_of(record)
    except Exception:  # noqa: BLE001 - a logger class of the user's with atoms of its own
        return {}


def _members(values: Mapping[str, Any]) -> str:
    """More members for an object that has some. One call of the encoder is enough, most often."""
    if not values:
        return ""
    with contextlib.suppress(Exception):  # no JSON comes of one of them: a circle, a NaN
        text = _encode(values)
        if len(text) <= LONGEST and "\\ud" not in text:  # which may be half a surrogate pair
            return f", {text[1:-1]}"
    return "".join(f", {_text(name)}: {_value(value)}" for name, value in values.items())


def _text(text: str) -> str:
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... and {len(text) - LONGEST} more characters"
    if not text.isascii():
        text = text.encode(errors="backslashreplace").decode()  # half a surrogate pair is no text
    return encode_basestring_ascii(text)


def _value(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    try:
        text = _encode(value)
        if "\\ud" in text:  # half a surrogate pair, perhaps
            whole = json.dumps(value, default=_shown, ensure_ascii=False)
            text = _encode(json.loads(whole.encode(errors="replace")))
    except Exception:  # noqa: BLE001 - no JSON comes of it: a circle, a NaN
        return _text(_shown(value))
    return text if len(text) <= LONGEST else _text(text)


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception as exc:  # noqa: BLE001 - whatever the app's __str__ raises
        return f"<{type(value).__name__} that cannot be shown: {type(exc).__name__}>"


_encode = json.JSONEncoder(default=_shown, allow_nan=False).encode
