"""Reserves room for the attributes of many instances of a class."""

from __future__ import annotations

from collections.abc import Iterable


def make_room(first: object, names: Iterable[str]) -> None:
    """Set attributes on an instance that is thrown away.

    Python makes room in all instances for those attributes that it has seen on the first 30 or so, up to 30
    names. An instance that is given another one later gets a dictionary of its own, which takes a kilobyte
    and is slower. A burst of connections makes more than 30 before any of them is used.
    """
    for name in names:
        setattr(first, name, None)
