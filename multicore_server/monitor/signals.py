"""The signals that the monitor handles.

The arbiter blocks them around the fork, so that none of them meets the arbiter's handlers in the child. A
signal to exit ends the monitor's boot at once. A signal to reopen the log waits until there is a handler.
"""

from __future__ import annotations

import signal

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
HANDLED = ENDING | {signal.SIGUSR1}
