"""What a worker tells its arbiter: that it is ready, that it wants to be replaced, its last words.

A socket pair that keeps message boundaries; the messages are JSON. The arbiter talks back by signals alone.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

# macOS has no SOCK_SEQPACKET for Unix sockets.
KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
MAX_MESSAGE = 65536  # bytes
MAX_WORDS = 2000  # characters of last words
MAX_TRACE = 8000  # characters of a traceback; JSON may write six bytes for one


class Channel:
    """Both ends of one worker's channel, before the fork; each process then closes the other's end."""

    def __init__(self) -> None:
        self.arbiter_end, self.worker_end = socket.socketpair(socket.AF_UNIX, KIND)
        self.arbiter_end.setblocking(False)
        self.worker_end.setblocking(False)
        self.ended = False  # the worker's end is closed: nothing more will come

    def close(self) -> None:
        self.arbiter_end.close()
        self.worker_end.close()

    # --- the worker's side ---

    def ready(self, interface: str) -> None:
        self._send(ready=interface)

    def retire(self, reason: str, *, draining: bool = False) -> None:
        self._send(retire=reason, draining=draining)

    def last_words(self, words: str, trace: str = "") -> None:
        self._send(words=words[:MAX_WORDS], trace=trace[-MAX_TRACE:])

    def _send(self, **message: Any) -> None:
        # If the arbiter is gone or stopped, the lifeline and its own checks take care of that.
        with contextlib.suppress(OSError):
            self.worker_end.send(json.dumps(message).encode())

    # --- the arbiter's side ---

    def received(self) -> Iterator[dict[str, Any]]:
        """The messages that have arrived."""
        while True:
            try:
                data = self.arbiter_end.recv(MAX_MESSAGE)
            except OSError:
                return
            if not data:
                self.ended = True
                return
            yield json.loads(data)
