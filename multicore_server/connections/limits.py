"""The limits, from the settings, on what a client may send and how long it may take.

One set of limits serves httptools and h11.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from multicore_server.settings.gunicorn import is_set
from multicore_server.settings.table import Settings

WHOLE_HEAD = 64 * 1024  # bytes of a request's head, where gunicorn's limits are not in force


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes, times seconds; None or 0 is no limit.

    ``line`` is the request line, ``fields`` their number, ``field_size`` one of them with its name, ``head``
    all of a head. The names of the settings are limit_request_* and *_timeout.
    """

    line: int = 0
    fields: int = 0
    field_size: int = 0
    head: int = WHOLE_HEAD
    body: int | None = None
    header_timeout: float = 30.0
    body_timeout: float = 60.0
    send_timeout: float = 60.0
    # A head of no more bytes than ``least``, and no more fields than ``most_fields``, needs no look at it.
    least: int = field(init=False)
    most_fields: int = field(init=False)

    def __post_init__(self) -> None:
        least = min(limit for limit in (self.line, self.field_size, self.head) if limit)
        object.__setattr__(self, "least", least)  # the class is frozen
        object.__setattr__(self, "most_fields", self.fields or self.head)


def gunicorns(line: int, fields: int, field: int) -> Limits:
    """gunicorn's three settings, with its own bounds and its sum of them (gunicorn.http.message)."""
    line = line if 0 < line <= 8190 else 8190 if line < 0 or line > 8190 else 0
    fields = fields if 0 < fields <= 32768 else 32768
    most = fields * ((field if field > 0 else 8190) + 2) + 4 + (line or 1024 * 1024)
    return Limits(line, fields, max(field, 0), most)


def limits_of(
    cfg: Any,
    settings: Settings,
    head: int | None = None,
) -> Limits:
    """The limits of a worker: gunicorn's settings count with gunicorn, and elsewhere where they are set.

    ``head`` is uvicorn's h11_max_incomplete_event_size, where it is set: it counts with every parser.
    """
    names = ("limit_request_line", "limit_request_fields", "limit_request_field_size")
    sizes = Limits()
    if not hasattr(cfg, "uvicorn_options") or any(is_set(cfg, name) for name in names):
        sizes = gunicorns(*(cfg.settings[name].get() for name in names))
    return replace(
        sizes,
        head=sizes.head if head is None else head,
        body=settings.limit_request_body,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        send_timeout=settings.send_timeout,
    )
