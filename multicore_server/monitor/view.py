"""What the arbiter has published, parsed once for each change and shared by all readers."""

from __future__ import annotations

import contextlib
import json

from multicore_server.ipc.report import Report
from multicore_server.ipc.shared_report import SharedReport


class ReportView:
    def __init__(self, shared_report: SharedReport) -> None:
        self._shared_report = shared_report
        self._seen: tuple[int, Report | None] = (-1, None)  # one item: two threads read it

    @property
    def report(self) -> Report | None:
        """The report; None before there is one. Nobody changes it: others have the same object."""
        changes = self._shared_report.changes
        seen, report = self._seen
        if changes != seen and (text := self._read()):
            # A process that shares the memory may have overwritten it.
            with contextlib.suppress(ValueError, RecursionError):
                report = json.loads(text)
            self._seen = (changes, report)
        return report

    def _read(self) -> bytes:
        try:
            return self._shared_report.read()
        except RuntimeError:  # its writer was stopped in the middle: what was there before is still true
            return b""
