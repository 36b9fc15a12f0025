"""The threads in which a WSGI app runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Threads:
    """As a ThreadPoolExecutor of ``number`` threads, whose `submit` is exact where no thread can be started.

    The executor raises then, and leaves the call in its queue: a thread that it has makes the call later, for
    a client that was answered with an error. Here it waits for such a thread, or is never made.
    """

    def __init__(self, number: int) -> None:
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="wsgi")
        self._has_some = False

    def submit(self, call: Callable[..., Any], *given: Any) -> Future[Any]:
        """Have it called. Raises RuntimeError where there is no thread, and none can be started."""
        job: Future[Any] = Future()
        try:
            self._pool.submit(_do, job, call, given)
            self._has_some = True
        except RuntimeError:
            if not self._has_some:
                job.cancel()
                raise
        return job


def _do(job: Future[Any], call: Callable[..., Any], given: tuple[Any, ...]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        job.set_result(call(*given))
    except BaseException as exc:  # noqa: BLE001 - whatever the app raises is for who waits
        job.set_exception(exc)
