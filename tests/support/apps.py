"""The apps that the servers under test run: files of ``tests/apps``, which a server gets copies of."""

from __future__ import annotations

from pathlib import Path

APPS = Path(__file__).parents[1] / "apps"
FUTURE = "from __future__ import annotations\n"


def source(name: str, *more: str) -> str:
    """The source of ``tests/apps/NAME.py``, with that of more files behind it."""
    first, *others = [(APPS / f"{each}.py").read_text() for each in (name, *more)]
    return "\n".join([first, *(text.replace(FUTURE, "") for text in others)])


HELLO = source("hello")  # answers with the pid of its worker
ASK = source("ask")  # answers with the value of the expression in the query (`tests.support.asking`)
SCOPE = source("scope")  # answers with what the server has told it
PLAIN = source("plain")  # answers "ok", also as app:wsgi
TROUBLED = source("troubled")  # answers with the pid of its worker, if nothing is in the way
