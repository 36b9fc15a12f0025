"""Adds to each log record which worker it comes from: ``record.instance`` and ``record.generation``."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

NOBODY = "-"  # in a record of a process that is no worker: formats that name these fields work there, too


class Origin(NamedTuple):
    """A worker's instance number and generation; `NOBODY` in the arbiter and in the monitor."""

    instance: int | str = NOBODY
    generation: int | str = NOBODY


_origin = Origin()
_installed = False


def origin() -> Origin:
    """That of this process."""
    return _origin


def become(instance: int, generation: int) -> None:
    """This process is a worker from now on."""
    global _origin
    _origin = Origin(instance, generation)


def label_records() -> None:
    """Let all records of this process, and of its children, have the two fields. Idempotent.

    Where a record is handled, and not where it is made: so it does not matter which record factory the app
    sets, and when. An ``extra`` of the app's with such a key stays as it is; a factory would turn it into a
    KeyError.
    """
    global _installed
    if _installed:
        return
    _installed = True
    handle = logging.Logger.handle

    @functools.wraps(handle)
    def label_and_handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        fields = record.__dict__
        if "instance" not in fields:
            fields["instance"] = _origin.instance
        if "generation" not in fields:
            fields["generation"] = _origin.generation
        handle(logger, record)

    logging.Logger.handle = label_and_handle  # type: ignore[method-assign, assignment]
