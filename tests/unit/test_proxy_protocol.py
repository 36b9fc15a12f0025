"""The header of the PROXY protocol, as it arrives: whole, in part, wrong."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from multicore_server.connections.proxy_protocol import (
    LONGEST,
    NO_HEADER,
    SIGNATURE,
    Header,
    HeaderError,
    header_in,
)

BOTH = (1, 2)
FOUR = ("192.0.2.1", 56324), ("192.0.2.11", 443)
SIX = ("2001:db8::1", 1), ("2001:db8::2", 65535)
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def line(*words: str) -> bytes:
    return " ".join(("PROXY", *words)).encode("latin-1") + b"\r\n"


def binary(command: int, kind: int, block: bytes = b"", version: int = 2) -> bytes:
    return SIGNATURE + bytes([version * 16 + command, kind]) + struct.pack("!H", len(block)) + block


def block(family: int, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    hosts = [socket.inet_pton(family, host) for host, _ in (source, destination)]
    return b"".join(hosts) + struct.pack("!HH", source[1], destination[1])


IPV4, IPV6 = block(socket.AF_INET, *FOUR), block(socket.AF_INET6, *SIX)
TLVS = b"\x01\x00\x02h2" + b"\xea\x00\x05aws-1"  # ALPN, and one of a cloud's own

NAMED = {
    "v1 TCP4": (line("TCP4", "192.0.2.1", "192.0.2.11", "56324", "443"), "TCP4", FOUR),
    "v1 TCP6": (line("TCP6", "2001:DB8:0::1", "2001:db8::2", "1", "65535"), "TCP6", SIX),
    "v2 TCP4": (binary(1, 0x11, IPV4), "TCP4", FOUR),
    "v2 TCP6": (binary(1, 0x21, IPV6), "TCP6", SIX),
    "v2 TCP4 with more": (binary(1, 0x11, IPV4 + TLVS), "TCP4", FOUR),
    "v2 at its longest": (binary(1, 0x21, IPV6.ljust(LONGEST - 16, b"\0")), "TCP6", SIX),
}
NAMELESS = {
    "v1 UNKNOWN": line("UNKNOWN"),
    "v1 UNKNOWN with more": line("UNKNOWN", *["ffff:" * 7 + "ffff"] * 2, "65535", "65535"),
    "v2 LOCAL": binary(0, 0x00),
    "v2 LOCAL with addresses": binary(0, 0x11, IPV4),
    "v2 UNSPEC": binary(1, 0x00),
    "v2 UNSPEC with more": binary(1, 0x00, TLVS),
    "v2 UNIX": binary(1, 0x31, b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")),
}
VALID = {name: data for name, (data, _, _) in NAMED.items()} | NAMELESS


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("behind", [b"", REQUEST, b"\x16\x03\x01"])
def test_who_is_named(name: str, behind: bytes) -> None:
    data, protocol, ends = NAMED[name]
    assert header_in(data + behind, BOTH) == Header(len(data), protocol, *ends)


@pytest.mark.parametrize("name", NAMELESS)
def test_nobody_is_named(name: str) -> None:
    data = NAMELESS[name]
    assert header_in(data + REQUEST, BOTH) == Header(len(data))


@pytest.mark.parametrize("name", VALID)
def test_a_part_of_a_header_does_not_tell(name: str) -> None:
    data = VALID[name]
    for end in range(len(data)):
        assert header_in(data[:end], BOTH) is None


@pytest.mark.parametrize(
    "data", [REQUEST, b"\x16\x03\x01", b"\r\nGET / HTTP/1.1", b"PROPFIND / ", b"proxy ", b"X"]
)
def test_what_is_no_header(data: bytes) -> None:
    assert header_in(data, BOTH) is NO_HEADER


@pytest.mark.parametrize(("versions", "name"), [((1,), "v2 TCP4"), ((2,), "v1 TCP4")])
def test_a_version_that_is_not_spoken_is_no_header(versions: tuple[int, ...], name: str) -> None:
    assert header_in(VALID[name], versions) is NO_HEADER
    assert header_in(VALID[name][:1], versions) is NO_HEADER


@pytest.mark.parametrize(
    "data",
    [
        line("TCP4"),
        line("TCP4", "192.0.2.1", "192.0.2.11", "56324"),
        line("TCP4", "192.0.2.1", "192.0.2.11", "56324", "443", ""),
        line("TCP4", "", "192.0.2.1", "192.0.2.11", "56324", "443"),
        line("TCP5", "192.0.2.1", "192.0.2.11", "56324", "443"),
        line("tcp4", "192.0.2.1", "192.0.2.11", "56324", "443"),
        line("TCP4", "2001:db8::1", "2001:db8::2", "1", "2"),
        line("TCP6", "192.0.2.1", "192.0.2.11", "1", "2"),
        line("TCP4", "192.0.2.256", "192.0.2.11", "1", "2"),
        line("TCP4", "192.0.2.1\0", "192.0.2.11", "1", "2"),
        line("TCP6", "fe80::1%lo", "fe80::1", "1", "2"),
        *(line("TCP4", "192.0.2.1", "192.0.2.11", "1", it) for it in ("65536", "-1", "1_0", "\xb2", "")),
        line(""),
        b"PROXY " + b"x" * 101,  # and no end
        b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    ],
)  # fmt: skip
def test_lines_that_are_wrong(data: bytes) -> None:
    with pytest.raises(HeaderError):
        header_in(data, BOTH)


@pytest.mark.parametrize(
    "data",
    [
        binary(1, 0x11, IPV4, version=1),
        binary(1, 0x11, IPV4, version=3),
        binary(2, 0x11, IPV4),
        binary(1, 0x12, IPV4),  # UDP
        binary(1, 0x10, IPV4),
        binary(1, 0x13, IPV4),
        binary(1, 0x41, IPV6),  # a family that nobody knows
        binary(1, 0x11, IPV4[:-1]),
        binary(1, 0x21, IPV6[:-1]),
        binary(1, 0x31, b"/a"),
        binary(1, 0x11, b""),
        binary(1, 0x11, b"\0" * (LONGEST - 15)),
        SIGNATURE + b"\x21\x11\xff\xff",  # refused before it has come
    ],
)
def test_binary_headers_that_are_wrong(data: bytes) -> None:
    with pytest.raises(HeaderError):
        header_in(data, BOTH)


def test_whatever_comes_has_one_of_four_outcomes() -> None:
    """Headers with bytes changed, left out and put in. What is taken never exceeds what is there."""
    chance = random.Random(1)
    seen = set()
    for _ in range(20_000):
        data = bytearray(chance.choice(list(VALID.values()))[:300] + REQUEST)
        for _ in range(chance.randrange(4)):
            place = chance.randrange(len(data))
            data[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        try:
            found = header_in(bytes(data), BOTH)
        except HeaderError:
            seen.add("wrong")
            continue
        seen.add("none" if found is NO_HEADER else "part" if found is None else "whole")
        assert found is None or 0 <= found.size <= min(len(data), LONGEST)
        assert found is None or (found.source is None) == (not found.protocol)
    assert seen == {"wrong", "none", "part", "whole"}
