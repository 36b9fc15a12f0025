"""Pairs the addresses of a configuration with listeners that are open already.

USR2's arbiter has the listeners of its predecessor, whatever its own configuration says, so positions tell
nothing. A listener belongs to the address that it was bound for, or that it is bound to.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def pair(addresses: Collection[Any], listeners: Iterable[Any], resolved: Mapping[str, str]) -> dict[Any, Any]:
    """The listeners by address, as far as there are any. ``resolved`` are IP addresses by name."""
    places = [(listener, _places(listener)) for listener in listeners]
    found: dict[Any, Any] = {}
    for fits in (_is_exact, _is_any_port):  # in this order: what fits exactly is nobody else's
        for address in addresses:
            place = _place(address, resolved)
            free = (
                listener
                for listener, its in places
                if listener not in found.values() and fits(address, place, its)
            )
            if address not in found and (listener := next(free, None)) is not None:
                found[address] = listener
    return found


def _is_exact(address: Any, place: Any, places: set[Any]) -> bool:
    return not places.isdisjoint((address, place))


def _is_any_port(_: Any, place: Any, places: set[Any]) -> bool:
    """The kernel has chosen its port."""
    return isinstance(place, tuple) and place[1] == 0 and any(place[0] == other[0] for other in places)


def _places(listener: Any) -> set[Any]:
    """What it was bound for, where that is known, and what it is bound to, where it is open."""
    places = {getattr(listener, "configured", None)} - {None}
    with contextlib.suppress(OSError, AttributeError):  # gunicorn's, closed, has no socket
        places.add(_place(listener.getsockname(), {}))
    return places


def _place(address: Any, resolved: Mapping[str, str]) -> Any:
    """As a socket says it, of the kinds of spelling the same one."""
    if isinstance(address, bytes):  # an abstract unix socket
        return os.fsdecode(address)
    if not isinstance(address, tuple):
        return address
    host = resolved.get(address[0], address[0]) or "0.0.0.0"
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return host, address[1]
