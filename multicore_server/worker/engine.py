"""From gunicorn's settings and uvicorn's environment variables to the uvicorn configuration of a worker.

uvicorn is the one engine, for ASGI and, through the bridge, for WSGI.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from gunicorn import sock
from gunicorn.glogging import Logger
from uvicorn import Config
from uvicorn.config import (
    SSL_PROTOCOL_VERSION,
    create_ssl_context,
)
from uvicorn.middleware.asgi2 import ASGI2Middleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from multicore_server.connections.protocol import movable
from multicore_server.settings.gunicorn import is_set
from multicore_server.settings.uvicorn import uvicorn_environment
from multicore_server.worker.access import AccessLog
from multicore_server.worker.interface import resolve
from multicore_server.wsgi.bridge import WSGIBridge

# uvicorn's name -> gunicorn's, taken where the user has set it: gunicorn's defaults are for its own workers
# (1000 worker_connections would silently cap WebSockets).
WHEN_SET = {
    "loop": "asgi_loop",
    "lifespan": "asgi_lifespan",
    "root_path": "root_path",
    "ws_max_size": "websocket_max_message_size",
    "limit_concurrency": "worker_connections",
}


FORWARDED = frozenset({b"x-forwarded-proto", b"x-forwarded-for"})


def make_config(
    cfg: Any, log: Any, app: Any, overrides: dict[str, Any], surround: Callable[[Any, str], Any]
) -> tuple[Config, str]:
    """The uvicorn configuration of a worker, loaded, and the interface of its app.

    Weakest first: gunicorn's settings, UVICORN_* variables, those of gunicorn's that stand for a uvicorn
    option and were set, the flags of ``run``, and ``overrides`` (a worker class's CONFIG_KWARGS).
    ``surround`` makes the outermost app of the inner one and the root path. Raises ValueError where the
    app's interface cannot be told.
    """
    options = uvicorn_environment()
    options |= {ours: cfg.settings[theirs].get() for ours, theirs in WHEN_SET.items() if is_set(cfg, theirs)}
    options |= getattr(cfg, "uvicorn_options", {}) | overrides
    app, interface = resolve(app, options.pop("interface", "auto"), options.pop("factory", False))
    headers = list(options.pop("headers", None) or [])
    if cfg.keepalive == 0:
        headers.append(("connection", "close"))
    trusted = options.pop("forwarded_allow_ips", cfg.forwarded_allow_ips)
    trusted = trusted if options.pop("proxy_headers", True) else None
    password = options.pop("ssl_keyfile_password", None)
    if interface == "wsgi":
        options |= {"lifespan": "off", "ws": "none"}
        app = _bridge(cfg, log, app, options.get("root_path", ""))
    elif interface == "asgi2":
        app = ASGI2Middleware(app)
    config = Config(
        surround(_surround(app, cfg, log, trusted), options.get("root_path", "")),
        interface="asgi3",
        proxy_headers=False,  # `_surround` sees to it: unix sockets are trusted, as gunicorn trusts them
        headers=headers,
        **{**_from_gunicorn(cfg), **options},
    )
    config.load()
    if interface == "asgi2":
        config.interface = "asgi2"  # for scope["asgi"]["version"]; the app is adapted already
    protocol: Any = config.http_protocol_class
    config.http_protocol_class = movable(protocol)
    if cfg.is_ssl:
        config.ssl = _ssl_context(cfg, password)
        if alpn := getattr(config.http_protocol_class, "alpn_protocols", None):  # uvicorn's HTTP/2
            config.ssl.set_alpn_protocols(alpn)
    return config, interface


def _from_gunicorn(cfg: Any) -> dict[str, Any]:
    return {
        "log_config": None,
        "access_log": False,  # gunicorn's own is written instead
        "timeout_keep_alive": cfg.keepalive,
        "timeout_graceful_shutdown": cfg.graceful_timeout,
        "backlog": cfg.backlog,
    }


def _bridge(cfg: Any, log: Any, app: Any, root_path: str) -> WSGIBridge:
    errors: Any = _Errors(log.error_log)
    return WSGIBridge(
        app,
        threads=cfg.threads,
        errors=errors,
        script_name="" if root_path else os.environ.get("SCRIPT_NAME", ""),
        drop_underscores=getattr(cfg, "header_map", "drop") != "dangerous",
        spool_dir=cfg.tmp_upload_dir,
    )


def _surround(app: Any, cfg: Any, log: Any, trusted: Any) -> Any:
    """The app inside what it needs; ``trusted`` is whose proxy headers count, None for nobody's."""
    if wants_access_log(cfg, log):
        app = AccessLog(app, log)
    if trusted is None:
        return _plain(app)
    return _Proxied(app, trusted)


def wants_access_log(cfg: Any, log: Any) -> bool:
    """Whether gunicorn's logger does anything with an access."""
    to_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
    configured = cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json
    return bool(configured or to_syslog) or type(log).access is not Logger.access


class _Errors(io.TextIOBase):
    """``wsgi.errors``: where the error log goes, also after it was reopened."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for stream in self._streams():
            stream.write(text)
            stream.flush()
        return len(text)

    def _streams(self) -> list[TextIO]:
        handlers = [
            handler for handler in self._logger.handlers if isinstance(handler, logging.StreamHandler)
        ]
        return [handler.stream for handler in handlers] or [sys.stderr]


class _Proxied:
    """uvicorn's proxy headers from the trusted addresses and, as in gunicorn, from every unix socket.

    A request without them, most often one that came through no proxy, does not pay for the middleware.
    """

    def __init__(self, app: Any, trusted: Any) -> None:
        self.app = app
        self.by_address = ProxyHeadersMiddleware(app, trusted)
        self.always = ProxyHeadersMiddleware(app, "*")

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        for name, _ in scope.get("headers", ()):
            if name in FORWARDED:
                through = self.always if scope["client"] is None else self.by_address
                return through(scope, receive, send)
        return self.app(scope, receive, send)


def _plain(app: Any) -> Any:
    """A plain function: uvicorn calls an app without arguments to see whether it is a factory."""

    def asgi(scope: Any, receive: Any, send: Any) -> Any:
        return app(scope, receive, send)

    return asgi


def _ssl_context(cfg: Any, password: str | None) -> Any:
    """gunicorn's context, with its ``ssl_context`` hook; only a key with a password needs uvicorn's."""
    if password is None:
        return sock.ssl_context(cfg)
    return create_ssl_context(
        cfg.certfile, cfg.keyfile, password, SSL_PROTOCOL_VERSION, cfg.cert_reqs, cfg.ca_certs, cfg.ciphers
    )
