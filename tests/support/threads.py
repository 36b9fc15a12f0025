"""Threads beside a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def running(*works: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Each of ``works`` runs in a thread of its own while the block does; ``end`` tells them to return."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        end()
        for thread in threads:
            thread.join()
