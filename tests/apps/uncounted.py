"""A worker class that does not count requests: what counting costs is seen beside it."""

from __future__ import annotations

from typing import Any

from multicore_server import Worker


class Uncounted(Worker):
    def count_requests(self, config: Any, proxied: Any = None) -> None:
        pass
