"""For every test."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

# tox sets it, so that these tests import the installed wheel. The servers that they start are run as a user
# would run them.
os.environ.pop("PYTHONSAFEPATH", None)

LOGGERS = (
    "", "asyncio", "uvicorn", "uvicorn.access", "uvicorn.error", "gunicorn.access", "gunicorn.error",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _signal_mask() -> Iterator[None]:
    """What a test blocks, the servers of later tests would inherit as blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """uvicorn sets levels in the process in which it is configured: a later test would find lines that it did
    not ask for, or not find those that it asks for."""
    before = [(logger, logger.level, logger.propagate) for logger in map(logging.getLogger, LOGGERS)]
    yield
    for logger, level, propagate in before:
        logger.propagate = propagate
        if logger.level != level:
            logger.setLevel(level)
