"""Runs slow code of the user's in a forked child, so that the arbiter's loop does not wait for it.

Config files and name lookups are the user's: they may take a minute, never return, or end the process.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from multicore_server.arbiter.context import ArbiterContext

LIMIT = 5.0  # seconds that an answer may take
MAX_ANSWER = 4096  # bytes: a pipe takes so many at once or none (PIPE_BUF, pipe(7))
YES, NO = b"+", b"-"


class ForkedCall:
    """``answer`` runs in the child: it returns a text or raises. ``done`` is called once, in the arbiter's
    loop, when the child has ended: with True and the text, or with False and what is wrong. ``become`` makes
    the child fit: it closes what is not the child's.

    Raises OSError if there is no child.
    """

    def __init__(
        self,
        context: ArbiterContext,
        answer: Callable[[], str],
        done: Callable[[bool, str], None],
        become: Callable[[], None],
    ) -> None:
        self._context = context
        self._done = done
        self._found: bytes | None = None
        self._has_ended = False
        system = context.system
        self.due = system.monotonic() + LIMIT
        self._reader, writer = system.pipe()
        context.in_child.append(self._close)
        try:
            context.listen_to(self._reader, self._hear)
            self._pid = system.fork()
        except OSError:
            self._hang_up()
            system.close(writer)
            raise
        if self._pid == 0:
            self._run_child(writer, answer, become)
        context.helpers[self._pid] = self._reaped
        system.close(writer)

    def _run_child(self, writer: int, answer: Callable[[], str], become: Callable[[], None]) -> NoReturn:
        # The kernel ends it if the arbiter is gone by then.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(LIMIT) + 1)
        said, found = io.StringIO(), NO
        try:
            self._context.leave_behind()
            become()
            # What a config file prints is printed when the arbiter loads it, or now if that comes not to be.
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                found = YES + answer().encode(errors="replace")
        except BaseException as exc:  # noqa: BLE001 - the frames above are the arbiter's
            found = NO + (str(exc) or type(exc).__name__).encode(errors="replace")
            sys.stderr.write(said.getvalue())
            sys.stderr.flush()
        finally:
            try:
                os.write(writer, found[:MAX_ANSWER])
            finally:  # nobody reads it where the arbiter is gone; whatever happens, the child ends here
                self._context.system.exit(0)

    def _hear(self) -> None:
        self._found = os.read(self._reader, MAX_ANSWER)
        self._hang_up()
        self._conclude()

    def _reaped(self) -> None:
        self._has_ended = True
        self._conclude()

    def _conclude(self) -> None:
        """Not before its end: the signal that tells of it would come in the middle of what follows."""
        found = self._found
        if found is None or not self._has_ended:
            return
        if found:
            self._done(found[:1] == YES, found[1:].decode(errors="replace"))
        else:
            self._done(False, "the process that tries it has exited")

    def tick(self, now: float) -> None:
        """Give up when the time is over."""
        if now >= self.due:
            self.cancel()
            self._done(False, f"it takes longer than {LIMIT:g} s")

    def cancel(self) -> None:
        """Nobody wants the answer any more; ``done`` is not called."""
        with contextlib.suppress(OSError):  # it has ended
            self._context.system.kill(self._pid, signal.SIGKILL)
        if not self._has_ended:
            self._context.helpers[self._pid] = _nothing
        if self._found is None:
            self._hang_up()

    def _hang_up(self) -> None:
        self._context.stop_listening_to(self._reader)
        self._context.in_child.remove(self._close)
        self._close()

    def _close(self) -> None:
        self._context.system.close(self._reader)


def _nothing() -> None:
    """Nobody waits for this child any more."""
