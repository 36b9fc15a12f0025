"""The help of uvicorn's options where it would be wrong here: another default, or another effect."""

from __future__ import annotations

import click

OTHER = {
    "reload": "Serve new code when a source file has changed, the old code until then. One worker.",
    "reload_includes": "Files to watch besides the modules that the app has imported.",
    "reload_excludes": "Files not to watch.",
    "reload_delay": "Has no effect.",
    "use_colors": "Has no effect.",
    "access_log": "Write an access log, in gunicorn's format.  [default: access-log]",
    "backlog": "Connections that wait to be accepted, at most.  [default: 2048]",
    "limit_concurrency": "Connections or requests of a worker, beyond which it answers 503.  [default: none]",
    "limit_max_requests": "Requests after which a worker is replaced; the server goes on.  [default: none]",
    "timeout_keep_alive": "Close an idle connection after this time.  [default: 5]",
    "timeout_graceful_shutdown": "Time for the requests in hand at the end of a worker, the same as "
    "--graceful-timeout.  [default: 30]",
    "timeout_worker_healthcheck": "Time for which a worker's event loop may stand still, the same as "
    "--timeout.  [default: 30]",
    "forwarded_allow_ips": "Addresses and networks, with commas between them, whose proxy headers are "
    "trusted; * for any. A Unix socket's peer is.  [default: 127.0.0.1,::1, or $FORWARDED_ALLOW_IPS]",
    "ssl_version": "TLS version (see stdlib ssl module's).  [default: the newest that both sides have]",
    "version": "Show the versions of this package, uvicorn and gunicorn, and exit.",
}


def correct(option: click.Parameter) -> None:
    """Give a copy of one of uvicorn's options the help that is right here."""
    if isinstance(option, click.Option) and option.name in OTHER:
        option.help = OTHER[option.name]
        option.show_default = False
