"""For every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# tox sets it, so that these tests import the installed wheel. The servers that they start are run as a user
# would run them.
os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture(autouse=True)
def _signal_mask() -> Iterator[None]:
    """What a test blocks, the servers of later tests would inherit as blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
