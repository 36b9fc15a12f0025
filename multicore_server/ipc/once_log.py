"""Stores the results of `multicore_server.cluster.once` for all workers: a log in shared memory.

A record is a head (its length and its checksum) and JSON. If a writer was killed in the middle of a record,
the checksum is wrong: the log ends there, and the next record takes that place.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from multicore_server.ipc.locks import SharedLocks
from multicore_server.ipc.memory_file import memory_file

_HEAD = struct.Struct("II")  # length, checksum
MAX_VALUE = 64 * 1024  # bytes of a result as JSON
MAX_LOG = 1024 * 1024  # bytes, from which on old records are dropped
KEPT = 8  # records of a name that stay then
PATIENCE = 5.0  # seconds for another worker to write its record
_WRITING = 0  # the lock of whoever writes


class Outcome(NamedTuple):
    """Of one call, in one deployment. ``error`` is empty where it succeeded."""

    deployment: int
    name: str
    value: Any
    error: str


class OnceLog:
    """Made before the first fork. Raises OSError where there is no memory or no descriptor for it."""

    def __init__(self) -> None:
        self._locks = SharedLocks("once-locks")
        self._file = memory_file("once")

    def begin(self, deployment: int, name: str) -> bool:
        """Whether this process is the one that calls it now; until `end`, or its own end."""
        return self._locks.take(_number(deployment, name))

    def end(self, deployment: int, name: str) -> None:
        self._locks.free(_number(deployment, name))

    def outcomes(self, deployment: int, name: str) -> list[Outcome]:
        """Oldest first."""
        wanted = (deployment, name)
        return [outcome for outcome, _ in self._records() if (outcome.deployment, outcome.name) == wanted]

    def add(self, outcome: tuple[int, str, Any, str]) -> None:
        """Raises TypeError where the value is no JSON, ValueError where it is too large."""
        text = json.dumps(outcome).encode()
        if len(text) > MAX_VALUE:
            raise ValueError(f"the result of {outcome[1]!r} has {len(text)} bytes; the limit is {MAX_VALUE}")
        deadline = time.monotonic() + PATIENCE
        while not self._locks.take(_WRITING):
            if time.monotonic() > deadline:  # its holder was stopped
                raise TimeoutError(f"the result of {outcome[1]!r} could not be written")
            time.sleep(0.001)
        try:
            self._append(text)
        finally:
            self._locks.free(_WRITING)

    def close(self) -> None:
        """In this process."""
        self._locks.close()
        os.close(self._file)

    def _append(self, text: bytes) -> None:
        end = max((place for _, place in self._records()), default=0)
        if end > MAX_LOG:
            end = self._drop_old()
        os.pwrite(self._file, _HEAD.pack(len(text), zlib.crc32(text)) + text, end)

    def _drop_old(self) -> int:
        """Write the log anew, without old records. Return where it ends."""
        kept: dict[str, list[Outcome]] = {}
        for outcome, _ in self._records():
            kept.setdefault(outcome.name, []).append(outcome)
        texts = [json.dumps(outcome).encode() for some in kept.values() for outcome in some[-KEPT:]]
        log = b"".join(_HEAD.pack(len(text), zlib.crc32(text)) + text for text in texts)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, log, 0)
        return len(log)

    def _records(self) -> Iterator[tuple[Outcome, int]]:
        """Each with the place behind it."""
        log = os.pread(self._file, os.fstat(self._file).st_size, 0)
        place = 0
        while place + _HEAD.size <= len(log):
            length, checksum = _HEAD.unpack_from(log, place)
            place += _HEAD.size + length
            text = log[place - length : place]
            if len(text) != length or not length or zlib.crc32(text) != checksum:
                return
            yield Outcome(*json.loads(text)), place


def _number(deployment: int, name: str) -> int:
    """Of the lock. Two names may have the same one: then their calls wait for each other."""
    return 1 + zlib.crc32(f"{deployment} {name}".encode())
