"""The rule for apps that run inline, in the event loop's thread, one request at a time.

The app's request in progress, or its next one, may take long, and nobody knows how long. Until its response
is complete, the worker takes no connection. Connections that nobody has read from go to inboxes, where
siblings can take them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol


class Connection(Protocol):
    """What the rule needs of a connection."""

    @property
    def is_awaited(self) -> bool:
        """Whether a request has arrived in whole and its response is not complete."""
        ...

    def set_aside(self) -> None:
        """Go where siblings can take it, if there are any."""

    def announce_end(self) -> None:
        """Let its response say that it is the last."""


class OpenGate:
    """The null form, for apps that do not run inline: connections come at any time and nothing is noted."""

    inline = False
    is_open = True  # whether a connection may be taken
    leaving: Collection[Connection] = ()  # gone to siblings, their descriptors here still open
    awaited: Collection[Connection] = ()  # whose requests the app has or gets next
    # Called when something has arrived or a response is complete. None: requests pay for no call.
    progressed: Callable[[Connection], None] | None = None

    def makes_wait(self, more: int) -> bool:
        """Whether so many more connections that are new would have to wait here for long."""
        return False

    def came(self, connection: Connection) -> None:
        """A new connection: nothing of it has been read."""

    def was_read(self, connection: Connection) -> None:
        """Its first request has begun to arrive, or it has gone without one."""

    def leaves(self, connection: Connection) -> None:
        """It is another worker's; the descriptor here is closed soon."""

    def went(self, connection: Connection) -> None:
        """The connection is lost, or its descriptor is closed."""


class InlineGate(OpenGate):
    """``is_quick`` says whether so many connections are answered sooner than a sibling could take them."""

    inline = True

    def __init__(self, is_quick: Callable[[int], bool]) -> None:
        self._is_quick = is_quick
        self._unread: set[Connection] = set()
        self.awaited: set[Connection] = set()
        self.leaving: set[Connection] = set()
        self.progressed = self._progressed

    @property
    def is_open(self) -> bool:  # type: ignore[override]  # the null form's never changes
        return not self.awaited

    def makes_wait(self, more: int) -> bool:
        return bool(self.awaited) and not self._is_quick(len(self._unread) + more)

    def came(self, connection: Connection) -> None:
        self._unread.add(connection)
        if self.makes_wait(0):
            connection.set_aside()

    def was_read(self, connection: Connection) -> None:
        self._unread.discard(connection)

    def leaves(self, connection: Connection) -> None:
        self.leaving.add(connection)

    def went(self, connection: Connection) -> None:
        self.leaving.discard(connection)
        self.awaited.discard(connection)

    def _progressed(self, connection: Connection) -> None:
        if not connection.is_awaited:
            self.awaited.discard(connection)
        elif connection not in self.awaited:
            self.awaited.add(connection)
            for unread in list(self._unread):
                if self.makes_wait(0):
                    unread.set_aside()
