"""The signals that the monitor handles.

The arbiter blocks them around the fork, and the monitor unblocks them when its handlers are set: one that
comes while it boots waits, and ends nothing.
"""

from __future__ import annotations

import signal

HANDLED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1})
