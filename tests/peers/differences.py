"""Where this server differs from uvicorn and gunicorn on purpose, by their own tests.

A pattern of a suite (its name and the loop) and one of a test, in which ``*`` is any text, and why.
"""

from __future__ import annotations

from tests.peers.verdict import Difference

DIFFERENCES: tuple[Difference, ...] = ()
