"""Replaces the help of uvicorn's options that have another default or another effect here."""

from __future__ import annotations

import click

OTHER = {
    "reload": "Load new code when a source file changes; the old code serves until then. One worker.",
    "reload_includes": "Files to watch in addition to the modules that the app has imported.",
    "reload_excludes": "Files not to watch.",
    "reload_delay": "Has no effect.",
    "use_colors": "Has no effect.",
    "access_log": "Write an access log, in gunicorn's format.  [default: access-log]",
    "backlog": "Maximum number of connections that wait to be accepted.  [default: 2048]",
    "limit_concurrency": "Maximum number of connections or requests of a worker; beyond it, the worker "
    "answers 503.  [default: none]",
    "limit_max_requests": "Requests after which a worker is replaced; the server keeps running.  "
    "[default: none]",
    "timeout_keep_alive": "Close an idle connection after this time.  [default: 5]",
    "timeout_graceful_shutdown": "Time that a worker has for the requests in progress when it exits, the "
    "same as --graceful-timeout.  [default: 30]",
    "timeout_worker_healthcheck": "Time for which a worker's event loop may be blocked, the same as "
    "--timeout.  [default: 30]",
    "forwarded_allow_ips": "Comma-separated addresses and networks whose proxy headers are trusted; * for "
    "any. Peers on a Unix socket are trusted.  [default: 127.0.0.1,::1, or $FORWARDED_ALLOW_IPS]",
    "ssl_version": "TLS version (see stdlib ssl module's).  [default: the newest that both sides support]",
    "version": "Show the versions of this package, uvicorn and gunicorn, and exit.",
}


def correct(option: click.Parameter) -> None:
    """Give a copy of one of uvicorn's options the help text that is correct here."""
    if isinstance(option, click.Option) and option.name in OTHER:
        option.help = OTHER[option.name]
        option.show_default = False
