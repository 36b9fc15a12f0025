"""Finds where the output of a server goes that `start` has started, unless its table sets it."""

from __future__ import annotations

import os
from pathlib import Path

from multicore_server.cli.servers import Trouble

SUFFIX = ".log"


def directory() -> Path:
    """``$XDG_STATE_HOME/multicore``; without that variable /var/log/multicore for root, and
    ~/.local/state/multicore for others."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):  # noqa: PTH117 - as it is given
        return Path(state) / "multicore"
    if os.geteuid() == 0:
        return Path("/var/log/multicore")
    return home() / ".local/state/multicore"


def home() -> Path:
    """Raises Trouble where it is not known."""
    found = os.path.expanduser("~")  # noqa: PTH111 - that raises
    if not os.path.isabs(found):  # noqa: PTH117
        raise Trouble("this user has no home directory; set HOME, or XDG_STATE_HOME and XDG_CONFIG_HOME")
    return Path(found)


def default_path(name: str) -> Path:
    """The log of the server with this name."""
    return directory() / (name.replace("/", "_") + SUFFIX)


def remember(name: str, file: Path) -> None:
    """Leave a link there to a log that is elsewhere: so it is found when the server has ended. Raises
    OSError."""
    link = default_path(name)
    if link == file or (link.exists() and not link.is_symlink()):
        return
    make_directory(link)
    link.unlink(missing_ok=True)
    link.symlink_to(file.absolute())


def make_directory(file: Path) -> None:
    """That of a log. Raises OSError."""
    private = file.parent == directory() and os.geteuid() != 0
    file.parent.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)


def names() -> list[str]:
    """Of the servers that have a log there."""
    return sorted(path.name.removesuffix(SUFFIX) for path in directory().glob(f"*{SUFFIX}"))
