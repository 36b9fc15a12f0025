"""Finds places for files: for temporary ones, and for those that somebody names. Pure."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there has a name of its own and mode 0700


def temporary_directory() -> Path:
    """Python's own, or /dev/shm where that is the only place to write: a container with a read-only root.

    Raises FileNotFoundError where there is none.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
            return SHARED_MEMORY
        raise


def adopt_shared_memory() -> None:
    """Where nothing else can be written, let /dev/shm be Python's directory for temporary files: gunicorn
    makes one for each worker, and the app may."""
    with contextlib.suppress(FileNotFoundError):
        tempfile.tempdir = str(temporary_directory())


def temporary_file(directories: Sequence[str | None]) -> BinaryIO:
    """A file without a name, in the first of the directories that takes one; None is Python's own choice.

    Raises OSError where none of them does.
    """
    for directory in directories[:-1]:
        with contextlib.suppress(OSError):
            return cast("BinaryIO", tempfile.TemporaryFile(dir=directory))
    return cast("BinaryIO", tempfile.TemporaryFile(dir=directories[-1]))


def remove_with_directory(file: Path) -> None:
    """Remove a file, if it is there, and the directory that it was alone in. An error is ignored.

    Unlike `shutil.rmtree`, this needs no descriptor: there may be none left.
    """
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def check_makable(path: Path) -> None:
    """Raise OSError where a file of this name could not be made; nothing is made."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"the directory {path.parent} is not writable")


def check_appendable(path: Path) -> None:
    """Raise OSError where this file could not be opened, or made, to append to it; nothing is made."""
    if not path.exists():
        check_makable(path)
    elif path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a directory")
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is not writable")
