"""A log file and its rotated files: FILE, FILE.1, FILE.2 and so on, the newest first.

Pure, except for the files.
"""

from __future__ import annotations

import contextlib
from pathlib import Path


def shift(path: Path, keep: int) -> None:
    """Rename FILE to FILE.1, what was FILE.1 to FILE.2 and so on, and keep so many. Raises OSError."""
    beyond = keep + 1  # `keep` may have been larger
    with contextlib.suppress(FileNotFoundError):
        while True:
            numbered(path, beyond).unlink()
            beyond += 1
    for number in range(keep, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            numbered(path, number - 1).replace(numbered(path, number))


def numbered(path: Path, number: int) -> Path:
    """``FILE.2``; number 0 is the file itself."""
    return path.with_name(f"{path.name}.{number}") if number else path
