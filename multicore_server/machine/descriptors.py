"""Raises the limit of open file descriptors.

Pure: it imports only the standard library.
"""

from __future__ import annotations

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one.

    Every connection and every worker's channel needs a descriptor, and the soft limit is often 1024.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses "unlimited"
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
