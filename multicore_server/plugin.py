"""The worker class for gunicorn: ``gunicorn -k multicore_server.Worker app:app``."""

from __future__ import annotations

from multicore_server.arbiter import takeover
from multicore_server.worker.worker import Worker as ServingWorker


class Worker(ServingWorker):
    """Runs ASGI and WSGI apps on uvicorn, supervised by the fleet.

    Set ``CONFIG_KWARGS`` in a subclass to give ``uvicorn.Config`` what neither gunicorn's settings nor
    ``UVICORN_*`` variables say, as with uvicorn-worker.
    """

    @classmethod
    def setup(cls) -> None:
        """Install our arbiter. gunicorn calls this first: before the app is preloaded, before anything is
        bound."""
        takeover.install()
