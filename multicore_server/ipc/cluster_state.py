"""What the workers share for `multicore_server.cluster`; made once, before the first fork."""

from __future__ import annotations

from typing import NamedTuple

from multicore_server.ipc.mailboxes import Mailboxes
from multicore_server.ipc.once_log import OnceLog
from multicore_server.ipc.primary_lock import PrimaryLock


class ClusterState(NamedTuple):
    primary: PrimaryLock
    once: OnceLog
    mailboxes: Mailboxes

    @classmethod
    def make(cls, rows: int) -> ClusterState:
        """``rows`` is how many processes can be alive. Raises OSError."""
        return cls(PrimaryLock(), OnceLog(), Mailboxes(rows))

    def close(self) -> None:
        """In this process."""
        self.primary.close()
        self.once.close()
        self.mailboxes.close()
