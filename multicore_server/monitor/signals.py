"""The signals that the monitor handles.

The arbiter blocks them around the fork, so that none meets the arbiter's handlers in the child. One that is
to end the monitor ends its boot at once; one to reopen the log waits until there is a handler.
"""

from __future__ import annotations

import signal

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
HANDLED = ENDING | {signal.SIGUSR1}
