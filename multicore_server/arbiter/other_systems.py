"""macOS, the BSDs, Linux without /proc: the server runs there for development, without some things."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

from multicore_server.ipc import seqpacket
from multicore_server.machine.process import HAS_PROC
from multicore_server.settings.table import Settings


def missing() -> list[str]:
    """What connections are handed over by, and memory is measured by, and this system does not have."""
    has = {
        "memfd_create": hasattr(os, "memfd_create"),
        "SOCK_SEQPACKET": seqpacket.KIND == socket.SOCK_SEQPACKET,
        "/proc": HAS_PROC,
    }
    return [name for name, is_there in has.items() if not is_there]


def adapt(settings: Settings) -> Settings:
    """The settings that this system can be served with."""
    return replace(settings, scheduling="shared", memory_metric="rss") if missing() else settings


def losses() -> Iterator[str]:
    """One line for what the system lacks, one for a Python that is not tested."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        yield "this Python runs without its global lock (free-threaded): not tested; PYTHON_GIL=1 turns it on"
    if names := missing():
        yield (
            f"this system has no {', '.join(names)}: scheduling = shared, memory_metric = rss, connections "
            "stay with their workers, hung processes show no stacks; the server is made and tested on Linux, "
            "and runs elsewhere for development"
        )
