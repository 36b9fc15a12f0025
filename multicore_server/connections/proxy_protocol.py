"""Parses the header of the PROXY protocol, versions 1 and 2: which client opened a connection to the proxy.

Pure: the standard library alone. Source: "The PROXY protocol", sections 2.1, 2.2 and 3, by HAProxy's author.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from typing import NamedTuple, TypeAlias

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PREFIX = b"PROXY "
LONGEST_LINE = 107  # bytes, with its end
LONGEST = 4096  # bytes of version 2 with what follows its addresses; nginx takes as many

_FIXED = struct.Struct("!12sBBH")
_COMMANDS = (LOCAL, PROXY) = (0, 1)
_TCP = 1
# By family: its name, how its addresses and ports are laid out. Those of Unix sockets name nobody.
_FAMILIES = {
    1: ("TCP4", socket.AF_INET, struct.Struct("!4s4sHH")),
    2: ("TCP6", socket.AF_INET6, struct.Struct("!16s16sHH")),
}
_UNSPECIFIED, _UNIX, _UNIX_SIZE = 0, 3, 216
_BY_NAME = {name: family for name, family, _ in _FAMILIES.values()}
_MOST_PORTS = 65535

Endpoint: TypeAlias = "tuple[str, int]"


class HeaderError(ValueError):
    """It begins as a header, and is none."""


class Header(NamedTuple):
    """``size`` is what it takes in bytes; 0: the connection begins without one."""

    size: int
    protocol: str = ""  # TCP4, TCP6; empty where nobody is named: the connection is the proxy's own
    source: Endpoint | None = None
    destination: Endpoint | None = None


NO_HEADER = Header(0)


def header_in(data: bytes, versions: Collection[int]) -> Header | None:
    """The header that stands first in ``data``; None where more bytes are to tell.

    Of other versions than these it is none. Raises HeaderError.
    """
    if 2 in versions and data.startswith(SIGNATURE):
        return _binary(data)
    if 1 in versions and data.startswith(PREFIX):
        return _line(data)
    may_begin = (2 in versions and SIGNATURE.startswith(data)) or (1 in versions and PREFIX.startswith(data))
    return None if may_begin else NO_HEADER


# --- version 1


def _line(data: bytes) -> Header | None:
    line, end, _ = data[:LONGEST_LINE].partition(b"\r\n")
    if not end:
        if len(data) >= LONGEST_LINE:
            raise HeaderError(f"a line of more than {LONGEST_LINE} bytes")
        return None
    size = len(line) + len(end)
    words = line.decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":  # whatever follows
        return Header(size)
    if len(words) != 6 or words[1] not in _BY_NAME:
        raise HeaderError(f"the line {line!r}")
    _, protocol, source, destination, *ports = words
    family = _BY_NAME[protocol]
    ends = [(_address(family, source), _port(ports[0])), (_address(family, destination), _port(ports[1]))]
    return Header(size, protocol, *ends)


def _address(family: int, text: str) -> str:
    """In the form that the kernel gives addresses in."""
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        raise HeaderError(f"the address {text!r}") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MOST_PORTS):
        raise HeaderError(f"the port {text!r}")
    return int(text)


# --- version 2


def _binary(data: bytes) -> Header | None:
    if len(data) < _FIXED.size:
        return None
    _, version_and_command, kind, length = _FIXED.unpack_from(data)
    version, command = divmod(version_and_command, 16)
    if version != 2 or command not in _COMMANDS:
        raise HeaderError(f"version {version}, command {command}")
    size = _FIXED.size + length
    if size > LONGEST:
        raise HeaderError(f"{size} bytes, more than {LONGEST}")
    if len(data) < size:
        return None
    if command == LOCAL:
        return Header(size)
    return _named(data[_FIXED.size : size], *divmod(kind, 16))


def _named(block: bytes, family: int, transport: int) -> Header:
    """``block`` has the addresses, and behind them what only the proxy and its user know."""
    size = _FIXED.size + len(block)
    if family == _UNSPECIFIED:
        return Header(size)
    if transport != _TCP:
        raise HeaderError(f"transport {transport}, not TCP")
    if family == _UNIX and len(block) >= _UNIX_SIZE:
        return Header(size)
    known = _FAMILIES.get(family)
    if known is None or len(block) < known[2].size:
        raise HeaderError(f"{len(block)} bytes for addresses of family {family}")
    name, kind, layout = known
    source, destination, source_port, destination_port = layout.unpack_from(block)
    ends = [(socket.inet_ntop(kind, source), source_port)]
    ends.append((socket.inet_ntop(kind, destination), destination_port))
    return Header(size, name, *ends)
