"""A configuration of gunicorn with every hook that it has: each notes where it is called, and with what."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

workers = 2
threads = 2
timeout = 60
graceful_timeout = 20
accesslog = "access.log"
raw_env = ["STAGE=test"]
certfile, keyfile = "../cert.pem", "../key.pem"


def note(hook: str, *arguments: Any, worker: Any = None, server: Any = None, **more: Any) -> None:
    if worker is not None:
        own = worker.pid == os.getpid()
        of_arbiter = worker.ppid == os.getpid()
        more |= {
            "age": worker.age,
            "pid": "own" if own else "booting" if worker.pid == "[booting]" else "other",
        }
        more |= {"booted": worker.booted, "child": of_arbiter, "app": hasattr(worker, "wsgi")}
    if server is not None:
        more |= {"arbiter": getattr(server, "pid", 0) == os.getpid(), "listeners": len(server.LISTENERS)}
    if server is not None and worker is not None:
        more["known"] = worker.pid in server.WORKERS
    line = [hook, os.getpid(), len(arguments), more]
    with Path("hooks.log").open("a") as file:
        file.write(json.dumps(line) + "\n")


def on_starting(server: Any) -> None:
    note("on_starting", server, server=server)


def on_reload(server: Any) -> None:
    note("on_reload", server, server=server)


def when_ready(server: Any) -> None:
    note("when_ready", server, server=server)


def pre_fork(server: Any, worker: Any) -> None:
    note("pre_fork", server, worker, server=server, worker=worker)


def post_fork(server: Any, worker: Any) -> None:
    note("post_fork", server, worker, server=server, worker=worker)


def post_worker_init(worker: Any) -> None:
    note("post_worker_init", worker, worker=worker)


def worker_int(worker: Any) -> None:
    note("worker_int", worker, worker=worker)


def worker_abort(worker: Any) -> None:
    note("worker_abort", worker, worker=worker)


def pre_exec(server: Any) -> None:
    note("pre_exec", server, server=server)


def pre_request(worker: Any, req: Any) -> None:
    note("pre_request", worker, req, worker=worker, what=[req.method, req.path, req.query, list(req.version)])


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    what = [req.uri, environ["PATH_INFO"], environ["wsgi.url_scheme"], resp.status, resp.status_code]
    note("post_request", worker, req, environ, resp, worker=worker, what=what)


def child_exit(server: Any, worker: Any) -> None:
    note("child_exit", server, worker, server=server, worker=worker)


def worker_exit(server: Any, worker: Any) -> None:
    note("worker_exit", server, worker, server=server, worker=worker)


def nworkers_changed(server: Any, new_value: Any, old_value: Any) -> None:
    note("nworkers_changed", server, new_value, old_value, server=server, what=[new_value, old_value])


def on_exit(server: Any) -> None:
    note("on_exit", server, server=server)


def ssl_context(conf: Any, default_ssl_context_factory: Any) -> Any:
    note(
        "ssl_context",
        conf,
        default_ssl_context_factory,
        what=[conf.certfile, callable(default_ssl_context_factory)],
    )
    return default_ssl_context_factory()
