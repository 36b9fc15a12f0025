"""The names that the monitor answers to, so that no web page can read it through a visitor's browser.

A page of evil.example can point its name to 127.0.0.1 after it was loaded (DNS rebinding). The browser then
takes the monitor's answers for its own. But such a request cannot hide the name in its Host header.

Pure.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable

# Names that nobody can own in the public DNS: RFC 6761 and 6762, ICANN's choice for private use, Kubernetes.
_PRIVATE = (".localhost", ".local", ".internal", ".svc")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:]*)(:\d*)?", re.ASCII)


class AllowedHosts:
    """``allowed`` are names, ``*.example.com`` for all names below one, or ``*`` for any."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        names = {name.lower().rstrip(".") for name in (*allowed, os.uname().nodename)}
        self._any = "*" in names
        self._below = tuple(name[1:] for name in names if name.startswith("*."))
        self._names = frozenset(names)

    def accept(self, host: str) -> bool:
        """Whether a Host header names this server: by an IP address, which no page can forge; by a name that
        is local or private; or by one that is allowed."""
        match = _HOST.fullmatch(host.strip())
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        return (
            self._any
            or "." not in name
            or name in self._names
            or name.endswith(_PRIVATE)
            or name.endswith(self._below)
            or _is_address(name)
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
