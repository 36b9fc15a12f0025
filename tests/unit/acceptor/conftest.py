"""Fixtures of these tests."""

from __future__ import annotations

import logging

import pytest

from tests.unit.acceptor.workplace import Complaints


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Complaints:
    caplog.set_level(logging.WARNING, "gunicorn.error")
    return lambda: caplog.messages
