"""For every test."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from copy import copy

import pytest

# tox sets it, so that these tests import the installed wheel. The servers that they start are run as a user
# would run them.
os.environ.pop("PYTHONSAFEPATH", None)

LOGGERS = (
    "", "asyncio", "uvicorn", "uvicorn.access", "uvicorn.error", "gunicorn.access", "gunicorn.error",
)  # fmt: skip
ATTRIBUTES = ("__class__", "handlers", "filters", "level", "propagate", "parent")


@pytest.fixture(autouse=True)
def _signal_mask() -> Iterator[None]:
    """What a test blocks, the servers of later tests would inherit as blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """Arbiters and workers freeze what there is in their process, and let the collector look less often."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """What a test, or a host that it configures in this process, changes in loggers is put back: a later test
    would find lines that it did not ask for, or not find those that it asks for."""
    known = logging.Logger.manager.loggerDict.values()
    enabled = [each for each in known if isinstance(each, logging.Logger) and not each.disabled]
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [{name: copy(getattr(logger, name)) for name in ATTRIBUTES} for logger in loggers]
    yield
    for logger, values in zip(loggers, before, strict=True):
        for name, value in values.items():
            setattr(logger, name, value)
    for logger in enabled:
        logger.disabled = False
    root = logging.getLogger()
    root.setLevel(root.level)  # all loggers forget which levels they were enabled for
