"""File descriptors: how many this process may open.

Pure: the standard library alone.
"""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Every connection and every worker's channel takes a descriptor; the soft limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
