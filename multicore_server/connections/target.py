"""The four forms of a request target, and which methods may use which form: RFC 9112 3.2."""

from __future__ import annotations

import re

SLASH = ord("/")  # what the target of nearly every request begins with
_HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@]+)"
_AUTHORITY = re.compile(_HOST + rb":[0-9]+")
_ABSOLUTE = re.compile(
    rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\[\]/?#@]*@)?" + _HOST + rb"(?::[0-9]*)?(?:[/?#].*)?"
)


def is_target(method: str, target: bytes) -> bool:
    """Return whether a request with this method may have this target."""
    if method == "CONNECT":
        return _AUTHORITY.fullmatch(target) is not None
    if target == b"*":
        return method == "OPTIONS"
    return target.startswith(b"/") or _ABSOLUTE.fullmatch(target) is not None
