"""Files without a name, which processes that are forked later share. Pure: the standard library alone."""

from __future__ import annotations

import os


def memory_file(name: str) -> int:
    """A descriptor of an empty one, in memory where the system has memfd_create(2): there it is listed by
    ``name``. Elsewhere it is a temporary file. Raises OSError."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile  # here alone: Linux does not need it

    with tempfile.TemporaryFile(prefix=name) as file:
        return os.dup(file.fileno())
