"""The apps that the servers under test run: files of ``tests/apps``, which a server gets copies of."""

from __future__ import annotations

from pathlib import Path

APPS = Path(__file__).parents[1] / "apps"


def source(name: str) -> str:
    """The source of the app in ``tests/apps/NAME.py``."""
    return (APPS / f"{name}.py").read_text()


HELLO = source("hello")  # answers with the pid of its worker
ASK = source("ask")  # answers with the value of the expression in the query (`tests.support.asking`)
SCOPE = source("scope")  # answers with what the server has told it
