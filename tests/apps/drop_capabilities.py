"""A configuration of gunicorn. Where nobody may not read Python itself, workers keep root's capabilities.

All but those that read and that change the user are taken away here, so that nobody writes where nobody may.
See capset(2).
"""

from __future__ import annotations

import ctypes
from typing import Any


def post_fork(server: Any, worker: Any) -> None:
    kept = 1 << 2 | 1 << 6 | 1 << 7
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(kept, kept)
    assert ctypes.CDLL(None).capset(header, data) == 0
