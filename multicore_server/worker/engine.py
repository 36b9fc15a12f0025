"""The uvicorn configuration of a worker, made of gunicorn's settings and uvicorn's environment variables.

uvicorn serves every app: ASGI apps directly, WSGI apps through the bridge.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TextIO

from gunicorn import sock
from gunicorn.glogging import Logger
from uvicorn import Config
from uvicorn.config import (
    SSL_PROTOCOL_VERSION,
    create_ssl_context,
)
from uvicorn.middleware.asgi2 import ASGI2Middleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from multicore_server.connections.factory import movable
from multicore_server.connections.limits import WHOLE_HEAD
from multicore_server.connections.protocol import MovableProtocol
from multicore_server.hosts import Feature, lacks, proxy_headers_off
from multicore_server.ipc.names import Interface
from multicore_server.settings.gunicorn import is_set, spool_directories
from multicore_server.settings.uvicorn import uvicorn_environment
from multicore_server.worker import meter
from multicore_server.worker.access import AccessLog
from multicore_server.worker.interface import resolve
from multicore_server.worker.request_hooks import RequestHooks
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


class Engine(NamedTuple):
    """A loaded configuration, and how functions of the app are called outside of a request: None is in the
    event loop."""

    config: Config
    interface: Interface
    apart: Callable[[Callable[[], None]], Awaitable[None]] | None


def make_config(
    cfg: Any,
    log: Any,
    app: Any,
    overrides: dict[str, Any],
    surround: Callable[[Any, str], Any],
    head: int = WHOLE_HEAD,
    hooks: RequestHooks | None = None,
) -> Engine:
    """Return the loaded uvicorn configuration of a worker, with the interface of its app.

    Weakest first: gunicorn's settings, UVICORN_* variables, those of gunicorn's that stand for a uvicorn
    option and were set, the flags of ``run``, and ``overrides`` (a worker class's CONFIG_KWARGS).
    ``surround`` is called with the app and the root path and returns the app that uvicorn is given. ``head``
    is the largest head of a request, in bytes; ``hooks`` are called around each. Raises ValueError where the
    app's interface is unclear, SettingError for a bad UVICORN_* variable.
    """
    options = uvicorn_environment()
    options |= {ours: cfg.settings[theirs].get() for ours, theirs in WHEN_SET.items() if is_set(cfg, theirs)}
    options |= getattr(cfg, "uvicorn_options", {}) | overrides
    app, interface = resolve(app, options.pop("interface", "auto"), options.pop("factory", False))
    headers = list(options.pop("headers", None) or [])
    if cfg.keepalive == 0:
        headers.append(("connection", "close"))
    trusted = options.pop("forwarded_allow_ips", cfg.forwarded_allow_ips)
    trusted = trusted if _wants_proxy_headers(options) else None
    password = options.pop("ssl_keyfile_password", None)
    apart = None
    if interface == "wsgi":
        options |= {"lifespan": "off", "ws": "none"}
        app = _bridge(cfg, log, app, options.get("root_path", ""))
        apart = app.between_requests
    elif interface == "asgi2":
        app = ASGI2Middleware(app)
    config = Config(
        surround(_surround(app, cfg, log, trusted, hooks), options.get("root_path", "")),
        interface="asgi3",
        headers=headers,
        **{**_from_gunicorn(cfg, head), **options, **proxy_headers_off(Config)},  # `_surround` sees to these
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
    return Engine(config, interface, apart)


def _wants_proxy_headers(options: dict[str, Any]) -> bool:
    """Take uvicorn's option out of ``options``: a flag, or a choice with another flag against it."""
    wanted, unwanted = options.pop("proxy_headers", True), options.pop("no_proxy_headers", False)
    return bool(wanted) and wanted != "none" and not unwanted


def unknown_protocol(config: Config) -> str:
    """A line for the log where the HTTP protocol is none that this package knows; empty where it is."""
    protocol: Any = config.http_protocol_class
    if issubclass(protocol, MovableProtocol) or lacks(Feature.H11_MOVES) or lacks(Feature.HTTPTOOLS_MOVES):
        return ""
    counted = "are counted" if meter.modules_of(protocol) else "are not counted"
    name = f"{protocol.__module__}.{protocol.__qualname__}"
    return (
        f"the HTTP protocol {name} is not one that multicore_server knows: it is served, its requests "
        f"{counted}, and its connections end with their worker"
    )


def _from_gunicorn(cfg: Any, head: int) -> dict[str, Any]:
    return {
        "log_config": None,
        "access_log": True,  # for an app's own handlers, where gunicorn's is not written
        "timeout_keep_alive": cfg.keepalive,
        "timeout_graceful_shutdown": cfg.graceful_timeout,
        "backlog": cfg.backlog,
        "h11_max_incomplete_event_size": head,
    }


def _bridge(cfg: Any, log: Any, app: Any, root_path: str) -> WSGIBridge:
    errors: Any = _Errors(log.error_log)
    return WSGIBridge(
        app,
        threads=cfg.threads,
        errors=errors,
        script_name="" if root_path else os.environ.get("SCRIPT_NAME", ""),
        header_map=getattr(cfg, "header_map", "drop"),
        spool_dirs=spool_directories(cfg),
    )


def _surround(app: Any, cfg: Any, log: Any, trusted: Any, hooks: RequestHooks | None) -> Any:
    """Wrap the app in the access log, the hooks and the proxy headers.

    ``trusted`` are the addresses whose proxy headers count; None: nobody's count.
    """
    if hooks or wants_access_log(cfg, log):
        app = AccessLog(app, log, hooks)
    if trusted is None:
        return _plain(app)
    return _Proxied(app, trusted)


def wants_access_log(cfg: Any, log: Any) -> bool:
    """Whether gunicorn's logger writes an access log with this configuration."""
    to_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
    configured = cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json
    return bool(configured or to_syslog) or type(log).access is not Logger.access


class _Errors(io.TextIOBase):
    """``wsgi.errors``: a stream that writes to the error log, also after it was reopened."""

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
    """uvicorn's proxy headers middleware; as in gunicorn, the peer of a unix socket is trusted.

    That trust is for the nearest hop alone: the addresses that it names are judged by the list. A request
    without these headers does not pay for the middleware.
    """

    def __init__(self, app: Any, trusted: Any) -> None:
        self.app = app
        self.by_address = ProxyHeadersMiddleware(app, trusted)
        self.by_unix_socket = ProxyHeadersMiddleware(app, trusted)
        trusted_hosts: Any = _AnyPeer(self.by_unix_socket.trusted_hosts)
        self.by_unix_socket.trusted_hosts = trusted_hosts

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        for name, _ in scope.get("headers", ()):
            if name in FORWARDED:
                through = self.by_unix_socket if scope["client"] is None else self.by_address
                return through(scope, receive, send)
        return self.app(scope, receive, send)


class _AnyPeer:
    """uvicorn's list of trusted hosts, for the middleware's question about its peer: any is trusted."""

    def __init__(self, hosts: Any) -> None:
        self._hosts = hosts

    def __contains__(self, host: object) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hosts, name)  # what walks the chain asks the list itself


def _plain(app: Any) -> Any:
    """Wrap the app in a function of three arguments, so that uvicorn does not take it for a factory."""

    def asgi(scope: Any, receive: Any, send: Any) -> Any:
        return app(scope, receive, send)

    return asgi


def _ssl_context(cfg: Any, password: str | None) -> Any:
    """gunicorn's TLS context, with its ``ssl_context`` hook; uvicorn's for a key with a password."""
    if password is None:
        return sock.ssl_context(cfg)
    return create_ssl_context(
        cfg.certfile, cfg.keyfile, password, SSL_PROTOCOL_VERSION, cfg.cert_reqs, cfg.ca_certs, cfg.ciphers
    )
