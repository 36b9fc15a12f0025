"""From gunicorn's settings and uvicorn's environment variables to the uvicorn configuration of a worker.

uvicorn is the one engine, for ASGI and, through the bridge, for WSGI.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, TextIO

import click
from gunicorn import sock
from gunicorn.glogging import Logger
from uvicorn import Config
from uvicorn.config import (
    HTTP_PROTOCOLS,
    LOOP_FACTORIES,
    SSL_PROTOCOL_VERSION,
    WS_PROTOCOLS,
    create_ssl_context,
)
from uvicorn.main import main as uvicorn_command
from uvicorn.middleware.asgi2 import ASGI2Middleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from multicore_server.access import AccessLog
from multicore_server.interface import resolve
from multicore_server.protocol import gentle
from multicore_server.settings import SettingError
from multicore_server.wsgi import WSGIBridge

# uvicorn's options that gunicorn has names for (or that belong to its command line): not read from UVICORN_*.
GUNICORN_HAS = frozenset({
    "app", "host", "port", "uds", "fd", "reload", "reload_dirs", "reload_includes", "reload_excludes",
    "reload_delay", "workers", "env_file", "log_config", "log_level", "access_log", "use_colors", "backlog",
    "limit_max_requests", "limit_max_requests_jitter", "timeout_keep_alive", "timeout_graceful_shutdown",
    "timeout_worker_healthcheck", "forwarded_allow_ips", "ssl_keyfile", "ssl_certfile", "ssl_version",
    "ssl_cert_reqs", "ssl_ca_certs", "ssl_ciphers", "app_dir", "version",
})  # fmt: skip

# uvicorn's name -> gunicorn's, taken where the user has set it: gunicorn's defaults are for its own workers
# (1000 worker_connections would silently cap WebSockets).
WHEN_SET = {
    "loop": "asgi_loop",
    "lifespan": "asgi_lifespan",
    "root_path": "root_path",
    "ws_max_size": "websocket_max_message_size",
    "limit_concurrency": "worker_connections",
}

# The loop that takes uvicorn's place: behind it, and in a worker, it reads as "auto".
PREFORK = frozenset({"multicore_server:prefork", "multicore_server.cli.prefork:prefork"})

# The options that take a name or an import string.
KNOWN: dict[str, Collection[str]] = {"http": HTTP_PROTOCOLS, "ws": WS_PROTOCOLS, "loop": LOOP_FACTORIES}

FORWARDED = frozenset({b"x-forwarded-proto", b"x-forwarded-for"})

_PARSER = "uvicorn's parser has limits of its own"
_PROXY = "uvicorn's --proxy-headers takes this part (X-Forwarded-Proto and X-Forwarded-For)"
_HTTP2 = "gunicorn's HTTP/2 is not used; uvicorn's is UVICORN_HTTP=zttp with UVICORN_HTTP2=1"
NO_EFFECT = {
    "limit_request_line": _PARSER,
    "limit_request_fields": _PARSER,
    "limit_request_field_size": _PARSER,
    "permit_obsolete_folding": _PARSER,
    "strip_header_spaces": _PARSER,
    "permit_unconventional_http_method": _PARSER,
    "permit_unconventional_http_version": _PARSER,
    "casefold_http_method": _PARSER,
    "http_parser": "set UVICORN_HTTP=h11|httptools",
    "secure_scheme_headers": _PROXY,
    "forwarder_headers": _PROXY,
    "proxy_protocol": "uvicorn does not speak the PROXY protocol",
    "protocol": "uvicorn speaks HTTP only",
    "http_protocols": _HTTP2,
    "http2_cleartext": _HTTP2,
    "sendfile": "responses go through the event loop",
    "asgi_disconnect_grace_period": "uvicorn tells the app of a disconnect at once",
    "pre_request": "the hook is not called; use middleware",
    "post_request": "the hook is not called; use middleware",
}


def uvicorn_environment() -> dict[str, Any]:
    """The options that uvicorn's own UVICORN_* variables set, by their names in ``uvicorn.Config``.

    Raises SettingError with one line for a value that uvicorn would refuse.
    """
    context = click.Context(uvicorn_command, auto_envvar_prefix="UVICORN")
    found: dict[str, Any] = {}
    for option in uvicorn_command.params:
        if option.name is None or option.name in GUNICORN_HAS:
            continue
        raw = option.value_from_envvar(context)
        if raw is not None:
            found[option.name] = _converted(option, context, raw)
    if found.get("loop") in PREFORK:
        found["loop"] = "auto"
    separated = "several with a space between them and none within"
    check_uvicorn(found, _variable, "from the environment", separated)
    return found


def _variable(name: str) -> str:
    return f"UVICORN_{name.upper()}"


def check_uvicorn(
    found: dict[str, Any], name_of: Callable[[str], str], source: str = "from run's options", more: str = ""
) -> None:
    """What uvicorn itself would find out in a worker; headers become pairs. Raises SettingError."""
    for name, known in KNOWN.items():
        value = found.get(name)
        if isinstance(value, str) and value not in known and ":" not in value:
            text = f"is not known; give {', '.join(known)} or module:attribute"
            raise SettingError(f"{name_of(name)}: {value!r} ({source}) {text}")
    for header in found.get("headers", ()):
        if isinstance(header, str) and header.find(":") < 1:
            text = "is no header; give name:value" + (f", {more}" if more else "")
            raise SettingError(f"{name_of('headers')}: {header!r} ({source}) {text}")
    if "headers" in found:
        pairs = [header.split(":", 1) if isinstance(header, str) else header for header in found["headers"]]
        # uvicorn would send the space, which h11 refuses.
        found["headers"] = [(name, value.strip()) for name, value in pairs]


def _converted(option: click.Parameter, context: click.Context, raw: Any) -> Any:
    try:
        return option.process_value(context, raw)
    except click.ClickException as exc:
        variable = _variable(str(option.name))
        message = exc.message.rstrip(".")
        raise SettingError(f"{variable}: {message} (from the environment; see uvicorn --help)") from None


def without_effect(cfg: Any) -> Iterator[str]:
    """One line of warning for each gunicorn setting that was set and cannot work here."""
    for name, why in NO_EFFECT.items():
        if is_set(cfg, name):
            yield f"{name} has no effect with multicore_server.Worker: {why}"


def is_set(cfg: Any, name: str) -> bool:
    """Whether a gunicorn setting differs from gunicorn's default; False for one that this version lacks."""
    setting = cfg.settings.get(name)
    return setting is not None and setting.get() != type(setting)().get()


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
    config.http_protocol_class = gentle(protocol)
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
