"""What the arbiter has published, parsed once for each change and shared by all who ask."""

from __future__ import annotations

import json
from typing import Any

from multicore_server.ipc.shared_report import SharedReport


class ReportView:
    def __init__(self, shared_report: SharedReport) -> None:
        self._bulletin = shared_report
        self._seen: tuple[int, dict[str, Any] | None] = (-1, None)  # one item: two threads read it

    @property
    def state(self) -> dict[str, Any] | None:
        """The report; None before there is one. Nobody changes it: others have the same object."""
        changes = self._bulletin.changes
        seen, state = self._seen
        if changes != seen and (text := self._read()):
            state = json.loads(text)
            self._seen = (changes, state)
        return state

    def _read(self) -> bytes:
        try:
            return self._bulletin.read()
        except RuntimeError:  # its writer was stopped in the middle: what was there before is still true
            return b""
