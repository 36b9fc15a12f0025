"""gunicorn's hooks around each request: ``pre_request`` and ``post_request``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multicore_server.settings.gunicorn import is_set


class RequestHooks:
    """Called in the event loop's thread, with the worker and what `AccessLog` makes of a request.

    As in gunicorn, a request ends with 500 where ``pre_request`` raises, and what ``post_request`` raises is
    logged.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._pre: Callable[..., Any] | None = _hook(worker.cfg, "pre_request")
        self._post: Callable[..., Any] | None = _hook(worker.cfg, "post_request")

    def __bool__(self) -> bool:
        return self._pre is not None or self._post is not None

    def before(self, request: Any) -> None:
        if self._pre is not None:
            self._pre(self._worker, request)

    def after(self, request: Any, environ: dict[str, Any], response: Any) -> None:
        if self._post is None:
            return
        try:
            self._post(self._worker, request, environ, response)
        except Exception:
            self._worker.log.exception("the post_request hook failed; continuing without it")


def _hook(cfg: Any, name: str) -> Callable[..., Any] | None:
    return getattr(cfg, name) if is_set(cfg, name) else None
