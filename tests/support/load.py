"""A strict client: a request that was sent and not answered in full has failed; nothing is tried again."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, final
from urllib.parse import quote

from tests.support.addresses import LOCAL
from tests.support.server import Server
from tests.support.waiting import wait_for

THREADS = 4
PATIENCE = 10.0  # seconds


@final
class Load:
    """Requests from several threads, a connection each, while the ``with`` block runs. ``answers`` counts
    the values of ``expression`` in the app of ``tests/apps/ask.py``. A request that takes longer than
    ``patience`` has failed, too."""

    def __init__(
        self, address: tuple[str, int] | Path, expression: str = "os.getpid()", patience: float = PATIENCE
    ) -> None:
        self.address = address
        self.patience = patience
        self.request = f"GET /?{quote(expression)} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        self.answers: Counter[Any] = Counter()
        self.failures: list[str] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            assert self.failures == []
            assert sum(self.answers.values()) > 0

    def wait_for(self, value: Any) -> None:
        wait_for(lambda: self.answers[value], f"an answer {value!r}")

    def _work(self) -> None:
        while not self._stopped.is_set():
            self._try()

    def _try(self) -> None:
        try:
            self.answers[self._ask()] += 1
        except (OSError, ValueError, AssertionError) as exc:
            self.failures.append(repr(exc))

    def _ask(self) -> Any:
        with self._connect() as connection:
            connection.settimeout(self.patience)
            connection.sendall(self.request)
            with connection.makefile("rb") as reply:
                head, _, body = reply.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        assert f"content-length: {len(body)}".encode() in head.lower(), (head, body)
        return json.loads(body)

    def _connect(self) -> socket.socket:
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address, self.patience)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.address))
        return connection


def load(server: Server, expression: str = "os.getpid()") -> Load:
    return Load((LOCAL, server.port), expression)
