"""Reads the requests in progress from /status, which has them only over the command socket."""

from __future__ import annotations

from multicore_server.ipc.report import RequestReport, Status


class Running(RequestReport):
    instance: int


def running(status: Status, instances: list[int] | None) -> list[Running]:
    """Return the requests of these instances (None: of all), the oldest first."""
    found: list[Running] = [
        {"instance": worker["instance"], **request}
        for worker in status["workers"]
        if instances is None or worker["instance"] in instances
        for request in worker.get("running") or ()
    ]
    return sorted(found, key=lambda it: -it["seconds"])


def in_progress(status: Status, instances: list[int] | None) -> int:
    """Return how many requests there are, including those that no worker has noted."""
    return sum(
        worker["requests"]["in_progress"]
        for worker in status["workers"]
        if instances is None or worker["instance"] in instances
    )


def asked(request: RequestReport) -> str:
    return f"{request['method']} {request['path']}"
