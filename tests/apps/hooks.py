"""A configuration of gunicorn: each hook notes in ``hooks.log`` that it was called, by whom, for whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def note(hook: str, *what: object) -> None:
    with Path("hooks.log").open("a") as file:
        print(hook, os.getpid(), *what, file=file)


def on_starting(server: Any) -> None:
    note("on_starting")


def when_ready(server: Any) -> None:
    note("when_ready")


def pre_fork(server: Any, worker: Any) -> None:
    note("pre_fork", worker.age, worker.pid)


def post_fork(server: Any, worker: Any) -> None:
    note("post_fork", worker.age, worker.pid)


def post_worker_init(worker: Any) -> None:
    note("post_worker_init", worker.age, worker.pid)


def worker_int(worker: Any) -> None:
    note("worker_int", worker.age, worker.pid)


def worker_abort(worker: Any) -> None:
    note("worker_abort", worker.age, worker.pid)


def worker_exit(server: Any, worker: Any) -> None:
    note("worker_exit", worker.age, worker.pid)


def child_exit(server: Any, worker: Any) -> None:
    note("child_exit", worker.age, worker.pid)


def on_exit(server: Any) -> None:
    note("on_exit")
