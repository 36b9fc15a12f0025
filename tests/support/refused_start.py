"""A server that is to refuse its start."""

from __future__ import annotations

from tests.support.processes import processes_in
from tests.support.server import Server

BAD_SETTING, NO_BOOT = 1, 3  # the exit statuses of docs/exit-status.md


class Refused:
    """A server that is to refuse its start, with a pidfile and a unix socket that it could leave behind."""

    def __init__(self, server: Server, *options: str, bind: str = "unix:s.sock", **more: object) -> None:
        self.server = server
        self.before = self.files()
        server.start("-w", "2", "-p", "server.pid", *options, bind=bind, **more)  # type: ignore[arg-type]

    def files(self) -> set[str]:
        found = {path.name for path in self.server.directory.iterdir()}
        return found - {self.server.log_path.name, "__pycache__"}

    def check(self, status: int, *lines: str) -> None:
        """It ended with this status, and said each of these on a line of its own."""
        assert self.server.wait_exit() == status
        for text in lines:
            assert len([line for line in self.server.log.splitlines() if text in line]) == 1, text
        assert self.files() == self.before
        assert processes_in(self.server.directory) == []

    def check_settings(self, *lines: str) -> None:
        """One line, in the arbiter's error log, before anything was started."""
        self.check(BAD_SETTING, *lines)
        assert len(self.server.logged(r"\[ERROR\]")) == 1
        assert self.server.logged("Traceback|instance=|Listening") == []
