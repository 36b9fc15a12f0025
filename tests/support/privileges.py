"""Whether another user can run this Python."""

from __future__ import annotations

import stat
from pathlib import Path


def readable_by_all(path: str) -> bool:
    return all(p.stat().st_mode & stat.S_IXOTH for p in [Path(path).resolve(), *Path(path).resolve().parents])
