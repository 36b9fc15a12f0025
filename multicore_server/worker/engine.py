"""Makes the uvicorn configuration of a worker from gunicorn's settings and uvicorn's environment variables.

uvicorn serves every app: ASGI apps directly, WSGI apps through the bridge.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple

from gunicorn import sock
from gunicorn.glogging import Logger
from uvicorn import Config
from uvicorn.config import (
    SSL_PROTOCOL_VERSION,
    create_ssl_context,
)
from uvicorn.middleware.asgi2 import ASGI2Middleware

from multicore_server.connections.factory import is_movable, movable
from multicore_server.connections.limits import WHOLE_HEAD
from multicore_server.hosts import Feature, lacks, proxy_headers_off
from multicore_server.ipc.names import Interface
from multicore_server.settings.gunicorn import is_set, spool_directories
from multicore_server.settings.uvicorn import KNOWN, uvicorn_environment
from multicore_server.worker import meter
from multicore_server.worker.access import AccessLog
from multicore_server.worker.interface import Detected, detect, resolve
from multicore_server.worker.loggers import writes_json
from multicore_server.worker.metrics_path import MetricsPath
from multicore_server.worker.proxied import Proxied, Rules
from multicore_server.worker.request_hooks import RequestHooks
from multicore_server.worker.unlogged import NOTHING, Unlogged
from multicore_server.worker.wsgi_errors import WsgiErrors
from multicore_server.wsgi.bridge import WSGIBridge
from multicore_server.wsgi.direct import Direct

# uvicorn's name -> gunicorn's, taken where the user has set it: gunicorn's defaults are for its own workers
# (1000 worker_connections would silently cap WebSockets).
WHEN_SET = {
    "loop": "asgi_loop",
    "lifespan": "asgi_lifespan",
    "root_path": "root_path",
    "ws_max_size": "websocket_max_message_size",
    "limit_concurrency": "worker_connections",
}


class Engine(NamedTuple):
    """A loaded configuration, and how functions of the app are called outside of a request: None is in the
    event loop."""

    config: Config
    interface: Interface
    apart: Callable[[Callable[[], None]], Awaitable[None]] | None
    direct: Callable[[Any], Direct] | None = None  # made with the server's state, in a running loop
    proxied: Proxied | None = None  # what learns of a proxy who the client is


def make_config(
    cfg: Any,
    log: Any,
    app: Any,
    overrides: dict[str, Any],
    surround: Callable[[Any, str], Any],
    head: int = WHOLE_HEAD,
    hooks: RequestHooks | None = None,
    unlogged: Unlogged = NOTHING,
) -> Engine:
    """Return the loaded uvicorn configuration of a worker, with the interface of its app.

    Weakest first: gunicorn's settings, UVICORN_* variables, those of gunicorn's that stand for a uvicorn
    option and were set, the flags of ``run``, and ``overrides`` (a worker class's CONFIG_KWARGS).
    ``surround`` is called with the app and the root path and returns the app that uvicorn is given. ``head``
    is the largest head of a request, in bytes; ``hooks`` are called around each; ``unlogged`` ones get no
    line in the access log. Raises ValueError where the app's interface is unclear, SettingError for a bad
    UVICORN_* variable.
    """
    options = _options(cfg, overrides)
    app, interface = resolve(app, options.pop("interface", "auto"), options.pop("factory", False))
    headers = list(options.pop("headers", None) or [])
    if cfg.keepalive == 0:
        headers.append(("connection", "close"))
    trusted = options.pop("forwarded_allow_ips", cfg.forwarded_allow_ips)
    trusted = trusted if _wants_proxy_headers(options) else None
    password = options.pop("ssl_keyfile_password", None)
    bridge = None
    if interface == "wsgi":
        options |= {"lifespan": "off", "ws": "none"}
        app = bridge = _bridge(cfg, log, app, options.get("root_path", ""))
    elif interface == "asgi2":
        app = ASGI2Middleware(app)
    logged = hooks or wants_access_log(cfg, log)
    if logged:
        app = _logging(app, cfg, log, hooks, unlogged)
    inner = _believing(app, trusted, Rules.of(cfg, wsgi=interface == "wsgi"))
    outer = surround(inner, options.get("root_path", ""))
    config = Config(
        outer,
        interface="asgi3",
        headers=headers,
        **{**_from_gunicorn(cfg, head), **options, **proxy_headers_off(Config)},  # `_believing` sees to these
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
    proxied = inner if isinstance(inner, Proxied) else None
    if bridge is None:
        return Engine(config, interface, None, proxied=proxied)
    # With trace logs, uvicorn wraps the app once more.
    is_direct = bridge.is_direct and config.loaded_app is outer and not logged
    detours = _detours(inner, outer) if is_direct else _always
    direct = partial(Direct, bridge, detours) if bridge.is_inline else None
    return Engine(config, interface, bridge.between_requests, direct, proxied)


def _always(_: object) -> bool:
    return True


def _detours(inner: Any, outer: Any) -> Callable[[Any], bool]:
    """Return what tells which requests of a WSGI app are not for the app alone; it does what is to be done
    for the others."""
    apply = inner.apply if isinstance(inner, Proxied) else None
    takes = outer.takes if isinstance(outer, MetricsPath) else None

    def detours(scope: Any) -> bool:
        if takes is not None and takes(scope):
            return True
        return apply is not None and apply(scope) is not None

    return detours


def _options(cfg: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    """Those of uvicorn's that were set, by their names in ``uvicorn.Config``; see `make_config`."""
    options = uvicorn_environment()
    options |= {ours: cfg.settings[theirs].get() for ours, theirs in WHEN_SET.items() if is_set(cfg, theirs)}
    return options | getattr(cfg, "uvicorn_options", {}) | overrides


def interface_of(cfg: Any, app: Any) -> Detected:
    """How a worker with this configuration would call the app. It is not called, nor a factory of one.
    Raises as `make_config`."""
    options = _options(cfg, cfg.worker_class.CONFIG_KWARGS)
    named: Detected | Literal["auto"] = options.get("interface", "auto")
    if options.get("factory", False):
        return "factory"
    return detect(app) if named == "auto" else named


def import_ahead(cfg: Any, overrides: dict[str, Any]) -> None:
    """Import the loop and the protocols of uvicorn's that this configuration names.

    To be called in the arbiter before its first fork, so that the workers share the memory. What the user
    has named by an import string is left alone: a reload would find it loaded already. What cannot be
    imported is the worker's to say.
    """
    options = _options(cfg, overrides)
    for name, known in KNOWN.items():
        with contextlib.suppress(Exception):
            if place := known.get(options.get(name, "auto")):
                found = resolve_name(place)
                if name == "loop":
                    found(use_subprocess=False)  # imports the loop, and returns its class


def _wants_proxy_headers(options: dict[str, Any]) -> bool:
    """Take uvicorn's option out of ``options``: a flag, or a choice with another flag against it."""
    wanted, unwanted = options.pop("proxy_headers", True), options.pop("no_proxy_headers", False)
    return bool(wanted) and wanted != "none" and not unwanted


def about_protocol(config: Config) -> str:
    """A line for the log where the HTTP protocol does not do all that others do; empty where it does."""
    protocol: Any = config.http_protocol_class
    if getattr(config, "http2", False) and is_movable(protocol):
        return (
            "HTTP/2 connections end with their worker (GOAWAY); HTTP/1.1 connections move to other workers. "
            "body_timeout does not apply to HTTP/2, and WebSockets over HTTP/2 do not work"
        )
    if is_movable(protocol) or lacks(Feature.H11_MOVES) or lacks(Feature.HTTPTOOLS_MOVES):
        return ""
    counted = "are counted" if meter.modules_of(protocol) else "are not counted"
    name = f"{protocol.__module__}.{getattr(protocol, '__qualname__', protocol)}"
    return (
        f"multicore_server does not know the HTTP protocol {name}: it is served, its requests {counted}, "
        "and its connections end with their worker"
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
    errors: Any = WsgiErrors(log.error_log)
    return WSGIBridge(
        app,
        threads=cfg.threads,
        errors=errors,
        script_name="" if root_path else os.environ.get("SCRIPT_NAME", ""),
        header_map=getattr(cfg, "header_map", "drop"),
        spool_dirs=spool_directories(cfg),
    )


def _logging(app: Any, cfg: Any, log: Any, hooks: RequestHooks | None, unlogged: Unlogged) -> Any:
    """Wrap the app in the access log and the hooks."""
    as_fields = writes_json(log) and not is_set(cfg, "access_log_format")
    return AccessLog(app, log, hooks, unlogged, as_fields=as_fields)


def _believing(app: Any, trusted: Any, rules: Rules) -> Any:
    """Wrap the app in the proxy headers.

    ``trusted`` are the addresses whose proxy headers count; None: nobody's count.
    """
    if trusted is None and rules.header_map == "dangerous":
        return _plain(app)
    return Proxied(app, trusted, rules)


def wants_access_log(cfg: Any, log: Any) -> bool:
    """Whether gunicorn's logger writes an access log with this configuration."""
    to_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
    configured = cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json
    return bool(configured or to_syslog) or type(log).access is not Logger.access


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
