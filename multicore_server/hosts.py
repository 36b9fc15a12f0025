"""The contract with the hosts: what this package uses of gunicorn and uvicorn beyond their documentation.

`CONTRACT` names every such member once. `check` refuses to start if a member is missing that the server
needs. `lacks` tells code that needs a member for only one feature to work without this feature.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import logging
import platform
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from importlib import import_module
from typing import Any, NamedTuple

# The oldest and the newest release that all tests have passed on.
TESTED = {"gunicorn": ("25.0", "27.0.1"), "uvicorn": ("0.36", "0.54")}

# The names of our loop factory. Behind it, and in a worker, it means "auto".
PREFORK = frozenset({"multicore_server:prefork", "multicore_server.cli.prefork:prefork"})


class HostError(RuntimeError):
    """A host lacks what the server needs: one line. gunicorn prints a RuntimeError of a start as one line."""


class Feature(Enum):
    """What the server does without where a member is missing; the value is what the log says."""

    TITLES = "processes keep the titles that the hosts give them"
    RELOADER = "with --reload a worker exits before its replacement is ready"
    HTTPTOOLS_MOVES = "httptools connections are uvicorn's own: not placed, not moved, without our limits"
    HTTPTOOLS_JOINS = "the head and the body of a response are two packets, as under uvicorn"
    HTTPTOOLS_COUNTS = "requests on httptools connections are not counted in the metrics"
    H11_MOVES = "h11 connections are uvicorn's own: not placed, not moved, without our limits"
    H11_COUNTS = "requests on h11 connections are not counted in the metrics"
    PREFORK_CHILDREN = "--loop multicore_server:prefork cannot tell uvicorn's own child processes"


class Row(NamedTuple):
    """``owner`` is ``module`` or ``module:Class``, ``names`` its members, ``where`` our files that use them.

    ``set_by`` is the method that sets the names on instances, for those that are no members of the class.
    ``since`` is the first release that has them, where that is newer than the oldest that is supported.
    ``feature`` is what is lost without them; None: the server cannot start.
    """

    owner: str
    names: tuple[str, ...]
    where: str
    why: str
    set_by: str = ""
    since: str = ""
    feature: Feature | None = None

    @property
    def host(self) -> str:
        return self.owner.partition(".")[0].partition(":")[0]


class Missing(NamedTuple):
    row: Row
    name: str

    def __str__(self) -> str:
        """``uvicorn's Server.on_tick``."""
        module, _, owner = self.row.owner.partition(":")
        return f"{self.row.host}'s {owner or module}.{self.name}"


def _row(owner: str, names: str, where: str, why: str, **rest: Any) -> Row:
    return Row(owner, tuple(names.split()), where, why, **rest)


_ARBITER = "gunicorn.arbiter:Arbiter"
_WORKER = "gunicorn.workers.base:Worker"
_LOGGER = "gunicorn.glogging:Logger"
_SERVER = "uvicorn.server:Server"
_HTTPTOOLS = "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol"
_HTTPTOOLS_CYCLE = "uvicorn.protocols.http.httptools_impl:RequestResponseCycle"
_H11 = "uvicorn.protocols.http.h11_impl:H11Protocol"
_H11_CYCLE = "uvicorn.protocols.http.h11_impl:RequestResponseCycle"
_MOVES = "connections/protocol.py"
_CHECKED, _CHECKED_EVENTS = "connections/strict_httptools.py", "connections/strict_events.py"

CONTRACT: tuple[Row, ...] = (
    # --- gunicorn
    _row("gunicorn", "SERVER_SOFTWARE", "wsgi/bridge.py", "the WSGI environ names it"),
    _row(_ARBITER, "run start setup init_signals halt stop", "arbiter/arbiter.py, arbiter/takeover.py",
         "the frame of the arbiter's life; start is wrapped to let ours take over"),
    _row(_ARBITER, "wait_for_signals murder_workers manage_workers reap_workers",
         "arbiter/arbiter.py, arbiter/parent.py", "run() calls them in its loop; ours take their place"),
    _row(_ARBITER, "signal signal_chld handle_hup handle_usr1 handle_usr2 handle_term handle_int handle_quit "
         "handle_ttin handle_ttou handle_winch", "arbiter/arbiter.py", "run() calls them for signals"),
    _row(_ARBITER, "reexec maybe_promote_master manage_dirty_arbiter kill_dirty_arbiter kill_worker "
         "kill_workers", "arbiter/arbiter.py, arbiter/signals.py",
         "USR2 and gunicorn's dirty workers are its own"),
    _row(_ARBITER, "num_workers _get_num_workers _set_num_workers", "arbiter/arbiter.py, arbiter/takeover.py",
         "the first hook, nworkers_changed, is called through the setter"),
    _row(_ARBITER, "START_CTX LISTENERS WORKERS SIGNALS SIG_NAMES WAKEUP_REQUEST WORKER_BOOT_ERROR",
         "arbiter/arbiter.py, arbiter/systemd.py, arbiter/takeover.py, worker/worker.py",
         "what run(), stop() and reexec() work on"),
    _row(_ARBITER, "SIG_QUEUE _num_workers pidfile systemd worker_age reexec_pid master_pid master_name "
         "dirty_arbiter_pid dirty_arbiter", "arbiter/", "the arbiter's state", set_by="__init__"),
    _row(_ARBITER, "app cfg log worker_class proc_name", "arbiter/", "what the arbiter runs", set_by="setup"),
    _row(_ARBITER, "pid", "arbiter/arbiter.py", "the arbiter's own pid, in children too", set_by="start"),
    _row("gunicorn.sock:BaseSocket", "set_options", "arbiter/listeners.py", "what cannot be bound is closed"),
    _row("gunicorn.sock", "_sock_type create_sockets close_sockets ssl_context",
         "arbiter/listeners.py, worker/engine.py", "listeners are bound one by one"),
    _row("gunicorn.util", "_setproctitle", "arbiter/", "titles of processes", feature=Feature.TITLES),
    _row("gunicorn.util", "set_owner_process getcwd import_app", "arbiter/monitor_process.py, application.py",
         "the monitor gives up its rights as a worker does; apps are found as gunicorn finds them"),
    _row("gunicorn.pidfile:Pidfile", "create unlink", "arbiter/reloader.py", "a reload may move it"),
    _row("gunicorn.systemd", "SD_LISTEN_FDS_START", "arbiter/systemd.py", "systemd's sockets at USR2"),
    _row("gunicorn.errors", "HaltServer AppImportError ConfigError",
         "arbiter/arbiter.py, worker/failures.py, application.py", "its ways to end a start"),
    _row("gunicorn.app.base:BaseApplication", "do_load_config run wsgi load",
         "arbiter/deployment.py, arbiter/takeover.py, application.py", "a reload loads the configuration"),
    _row("gunicorn.app.base:Application", "chdir load_config load_config_from_file", "application.py",
         "run() from Python is an application of gunicorn's"),
    _row("gunicorn.app.wsgiapp", "WSGIApplication", "cli/check.py", "its command line is checked, too"),
    _row("gunicorn.app.base:BaseApplication", "load_default_config", "application.py",
         "its configuration is ours, with durations"),
    _row("gunicorn.app.base:BaseApplication", "usage prog", "application.py",
         "what a configuration is made with", set_by="__init__"),
    _row("gunicorn.app.base:BaseApplication", "cfg callable", "arbiter/deployment.py", "what was loaded",
         set_by="__init__"),
    _row("gunicorn.config", "Setting validate_callable", "settings/hooks.py", "hooks of ours"),
    _row("gunicorn.config", "make_settings",
         "application.py, cli/run.py", "the names, flags and defaults of its settings"),
    _row("gunicorn.config:Config", "set parser get_cmd_args_from_env is_ssl env address worker_class "
         "worker_class_str uid gid", "arbiter/, settings/, worker/engine.py", "values that it works out"),
    _row("gunicorn.config:Config", "settings env_orig", "arbiter/deployment.py, settings/",
         "a setting's own value and default; the environment before raw_env", set_by="__init__"),
    _row(_WORKER, "init_process init_signals load_wsgi run handle_usr1 handle_abort SIGNALS PIPE",
         "worker/worker.py", "the frame of a worker's life"),
    _row(_WORKER, "app cfg log sockets tmp alive pid reloader max_requests", "worker/, arbiter/",
         "what a worker is made of", set_by="__init__"),
    _row("gunicorn.reloader:Reloader", "_callback", "worker/worker.py",
         "the worker goes on watching after the first change", set_by="__init__", feature=Feature.RELOADER),
    _row("gunicorn.glogging", "os", "arbiter/logs.py", "its chown follows links; ours does not"),
    _row(_LOGGER, "access atoms setup reopen_files", "worker/access.py, worker/loggers.py, arbiter/logs.py",
         "both logs, written by gunicorn's logger or the user's subclass"),
    _row(_LOGGER, "cfg error_log", "arbiter/, worker/", "where errors go", set_by="__init__"),
    # --- uvicorn
    _row("uvicorn", "Config Server", "worker/, monitor/process.py", "public, for completeness"),
    _row("uvicorn.config", "HTTP_PROTOCOLS WS_PROTOCOLS LOOP_FACTORIES", "settings/uvicorn.py",
         "bad names are refused before anything is bound"),
    _row("uvicorn.config", "SSL_PROTOCOL_VERSION create_ssl_context",
         "settings/translation.py, worker/engine.py", "keys with a password"),
    _row("uvicorn.config:Config", "load get_loop_factory", "worker/", "a worker's configuration"),
    _row("uvicorn.config:Config", "http_protocol_class ws_protocol_class ssl loaded", "worker/engine.py",
         "ours take the place of uvicorn's protocols", set_by="load"),
    _row("uvicorn.config:Config", "interface backlog timeout_graceful_shutdown", "worker/",
         "a worker's configuration", set_by="__init__"),
    _row("uvicorn.main", "main", "settings/uvicorn.py, cli/, application.py", "its options and types"),
    _row(_SERVER, "serve startup shutdown main_loop on_tick capture_signals",
         "worker/server.py, monitor/process.py", "serve() calls them; ours take their place"),
    _row(_SERVER, "handle_exit", "worker/server.py", "libraries replace it to hear of the end"),
    _row(_SERVER, "config server_state started should_exit force_exit",
         "worker/server.py, monitor/process.py", "the server's state", set_by="__init__"),
    _row(_SERVER, "lifespan", "worker/server.py", "the app's startup and shutdown", set_by="_serve"),
    _row(_SERVER, "servers", "worker/server.py, monitor/process.py", "what accepts", set_by="startup"),
    _row("uvicorn.lifespan.on:LifespanOn", "startup shutdown", "worker/server.py",
         "a worker listens only when the app is ready"),
    _row("uvicorn.lifespan.on:LifespanOn", "should_exit state", "worker/server.py", "its outcome",
         set_by="__init__"),
    _row("uvicorn.server:ServerState", "connections tasks default_headers total_requests",
         "connections/, worker/server.py, monitor/", "what the connections share", set_by="__init__"),
    _row("uvicorn.middleware.asgi2", "ASGI2Middleware", "worker/engine.py", "ASGI 2 apps"),
    _row("uvicorn.middleware.proxy_headers", "ProxyHeadersMiddleware", "worker/proxied.py",
         "the client that a proxy names"),
    _row("uvicorn.middleware.proxy_headers:ProxyHeadersMiddleware", "trusted_hosts", "worker/proxied.py",
         "the peer of a unix socket is trusted, and no more than it", set_by="__init__"),
    _row("uvicorn.protocols.utils", "get_client_addr get_path_with_query_string", "worker/loggers.py",
         "the arguments of its access log's records"),
    _row("uvicorn._subprocess", "subprocess_started", "cli/prefork.py", "found in the frames above ours",
         feature=Feature.PREFORK_CHILDREN),
    _row("uvicorn.protocols.http.httptools_impl", "HttpToolsProtocol", _MOVES, "the class itself",
         feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "connection_made connection_lost data_received eof_received on_response_complete "
         "on_message_begin handle_websocket_upgrade timeout_keep_alive_handler _unset_keepalive_if_required",
         _MOVES, "wrapped, or called when a connection moves", feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "transport connections cycle loop pipeline scope server_state timeout_keep_alive "
         "timeout_keep_alive_task", _MOVES, "whether a connection is idle", set_by="__init__",
         feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "on_header on_headers_complete on_body on_message_complete _should_upgrade "
         "_unsupported_upgrade_warning send_400_response", _CHECKED, "requests are checked as they arrive",
         feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "parser headers flow logger expect_100_continue", _CHECKED,
         "requests are checked as they arrive", set_by="__init__", feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "url", _CHECKED, "the length of the request line", set_by="on_url",
         feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS_CYCLE, "keep_alive chunked_encoding expected_content_length", _CHECKED,
         "responses to HTTP/1.0", set_by="__init__", feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "pause_writing resume_writing", "connections/spool.py", "the pace of WSGI apps",
         feature=Feature.HTTPTOOLS_MOVES),
    _row(_H11, "pause_writing resume_writing", "connections/spool.py", "the pace of WSGI apps",
         feature=Feature.H11_MOVES),
    _row("uvicorn.protocols.http.flow_control:FlowControl", "pause_writing resume_writing",
         "connections/spool.py", "the pace of WSGI apps"),
    _row("uvicorn.protocols.http.flow_control:FlowControl", "_transport read_paused write_paused "
         "_is_writable_event", "connections/flow.py", "back-pressure", set_by="__init__",
         feature=Feature.HTTPTOOLS_MOVES),
    _row(_H11, "handle_events _should_upgrade", _CHECKED_EVENTS,
         "requests are checked as they arrive", feature=Feature.H11_MOVES),
    _row(_H11, "headers flow root_path", _CHECKED_EVENTS, "requests are checked as they arrive",
         set_by="__init__", feature=Feature.H11_MOVES),
    _row(_HTTPTOOLS_CYCLE, "scope more_body disconnected response_started response_complete default_headers",
         _MOVES,
         "whether a response is complete", set_by="__init__", feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS_CYCLE, "run_asgi send", "worker/meter.py", "requests are counted as they pass",
         feature=Feature.HTTPTOOLS_COUNTS),
    _row(_HTTPTOOLS_CYCLE, "scope disconnected", "worker/meter.py, worker/access.py",
         "whether the client left", set_by="__init__", feature=Feature.HTTPTOOLS_COUNTS),
    _row("uvicorn.protocols.http.httptools_impl", "HEADER_RE HEADER_VALUE_RE STATUS_LINE", "worker/heads.py",
         "what a head may have", feature=Feature.HTTPTOOLS_JOINS),
    _row(_HTTPTOOLS, "server client scheme", "connections/lean.py", "where a connection came to and from",
         set_by="__init__", feature=Feature.HTTPTOOLS_MOVES),
    _row(_HTTPTOOLS, "ws_protocol_class", "connections/announcements.py", "clients that a proxy announces",
         set_by="__init__", feature=Feature.HTTPTOOLS_MOVES),
    _row(_H11, "client ws_protocol_class", "connections/announcements.py", "clients that a proxy announces",
         set_by="__init__", feature=Feature.H11_MOVES),
    _row(_HTTPTOOLS, "app access_logger access_log root_path limit_concurrency config tasks",
         "connections/begin.py", "a request begins", set_by="__init__", feature=Feature.HTTPTOOLS_MOVES),
    _row("uvicorn.protocols.http.httptools_impl", "RequestResponseCycle",
         "connections/cycles.py, worker/cycle.py", "a request begins", feature=Feature.HTTPTOOLS_MOVES),
    _row("uvicorn.logging", "TRACE_LOG_LEVEL", "connections/lean.py", "whether connections are logged"),
    _row(_HTTPTOOLS_CYCLE, "run_asgi send receive", "worker/cycle.py", "ours take their place",
         feature=Feature.HTTPTOOLS_JOINS),
    _row(_HTTPTOOLS_CYCLE, "scope disconnected transport flow default_headers access_log message_event "
         "on_response keep_alive waiting_for_100_continue response_started response_complete "
         "chunked_encoding expected_content_length", "worker/cycle.py", "a response in progress",
         set_by="__init__", feature=Feature.HTTPTOOLS_JOINS),
    _row("uvicorn.protocols.http.h11_impl", "H11Protocol", "monitor/guard.py, connections/protocol.py",
         "the monitor's protocol, and a worker's"),
    _row(_H11, "connection_made connection_lost data_received on_response_complete send_400_response "
         "pause_writing resume_writing", "monitor/guard.py, connections/protocol.py", "wrapped"),
    _row(_H11, "transport connections cycle conn loop server_state timeout_keep_alive_task",
         "monitor/guard.py, connections/protocol.py", "whether a connection is idle", set_by="__init__"),
    _row(_H11, "eof_received handle_websocket_upgrade timeout_keep_alive_handler "
         "_unset_keepalive_if_required", _MOVES, "wrapped, or called when a connection moves",
         feature=Feature.H11_MOVES),
    _row(_H11, "timeout_keep_alive scope", _MOVES, "an adopted connection is idle", set_by="__init__",
         feature=Feature.H11_MOVES),
    _row(_H11_CYCLE, "scope more_body disconnected response_started response_complete default_headers",
         _MOVES,
         "whether a response is complete", set_by="__init__", feature=Feature.H11_MOVES),
    _row(_H11_CYCLE, "run_asgi send", "worker/meter.py", "requests are counted as they pass",
         feature=Feature.H11_COUNTS),
    _row(_H11_CYCLE, "scope disconnected", "worker/meter.py, worker/access.py", "whether the client left",
         set_by="__init__", feature=Feature.H11_COUNTS),
)  # fmt: skip


_ZTTP = "uvicorn.protocols.http.zttp_impl:ZttpProtocol"
_HTTP2 = "uvicorn.protocols.http.zttp_h2_impl:ZttpH2Protocol"
_SNIFFING = "uvicorn.protocols.http.auto_zttp_impl:AutoZttpProtocol"

# Checked where zttp is chosen: it is a package of its own. Without these, its protocols are uvicorn's own.
ZTTP: tuple[Row, ...] = (
    _row(_ZTTP, "connection_made connection_lost data_received eof_received on_response_complete "
         "handle_websocket_upgrade timeout_keep_alive_handler pause_writing resume_writing "
         "_unset_keepalive_if_required", _MOVES, "wrapped, or called when a connection moves"),
    _row(_ZTTP, "handle_events _should_upgrade send_400_response", "connections/zttp.py",
         "requests are checked as they arrive"),
    _row(_ZTTP, "transport connections cycle conn loop scope headers flow root_path server_state "
         "timeout_keep_alive timeout_keep_alive_task", "connections/zttp.py", "whether a connection is idle",
         set_by="__init__"),
    _row("uvicorn.protocols.http.zttp_impl:RequestResponseCycle",
         "scope more_body disconnected response_started response_complete default_headers", _MOVES,
         "whether a response is complete", set_by="__init__"),
    _row(_HTTP2, "connection_made connection_lost data_received on_response_complete handle_request events "
         "flush timeout_keep_alive_handler _unset_keepalive_if_required _close_connection",
         "connections/http2.py", "wrapped, or called at the end of a connection"),
    _row(_HTTP2, "transport connections conn cycles app loop server_state timeout_keep_alive "
         "timeout_keep_alive_task", "connections/http2.py", "requests in progress", set_by="__init__"),
    _row("uvicorn.protocols.http.zttp_h2_impl:RequestResponseCycle", "abort_stream", "connections/http2.py",
         "bodies that are too long"),
    _row("uvicorn.protocols.http.zttp_h2_impl:RequestResponseCycle",
         "scope more_body disconnected response_complete message_event", "connections/http2.py",
         "which request is awaited", set_by="__init__"),
    _row(_SNIFFING, "buffer config app_state loop server_state connections transport", "connections/http2.py",
         "what has come before the protocol is known", set_by="__init__"),
)  # fmt: skip


# --- what is missing


def missing(rows: Iterable[Row] = CONTRACT) -> Iterator[Missing]:
    """Every member of the contract that the installed hosts lack."""
    for row in rows:
        owner = _owner(row)
        if owner is None:
            yield from (Missing(row, name) for name in row.names)
        else:
            yield from (Missing(row, name) for name in row.names if not _has(owner, name, row.set_by))


def _owner(row: Row) -> Any:
    module, _, name = row.owner.partition(":")
    try:
        found = import_module(module)
    except ImportError:
        return None
    return getattr(found, name, None) if name else found


def _has(owner: Any, name: str, set_by: str) -> bool:
    """An attribute of instances is known by the names in the code of the method that sets it."""
    if hasattr(owner, name):
        return True
    method = getattr(owner, set_by, None)
    code = getattr(inspect.unwrap(method), "__code__", None) if method else None  # Arbiter.start is wrapped
    return code is not None and name in code.co_names


@functools.cache
def _lost() -> frozenset[Feature]:
    return frozenset(each.row.feature for each in missing() if each.row.feature is not None)


def lacks(feature: Feature) -> bool:
    """Whether the server does without ``feature``."""
    return feature in _lost()


def check() -> None:
    """Raises HostError where the server cannot run with the installed hosts."""
    for each in missing():
        if each.row.feature is None:
            raise HostError(
                f"multicore_server needs {each}, which {_installed(each.row.host)} lacks; {_tested()}"
            )


def losses() -> Iterator[str]:
    """One line for each feature that the server does without."""
    for feature in Feature:
        if lacks(feature):
            gone = [each for each in missing() if each.row.feature is feature]
            what, host = ", ".join(map(str, gone)), _installed(gone[0].row.host)
            yield f"{feature.value}: {host} lacks {what}; {_tested()}"


def _installed(host: str) -> str:
    return f"{host} {importlib.metadata.version(host)}"


def _tested() -> str:
    ranges = (f"{host} {oldest} to {newest}" for host, (oldest, newest) in TESTED.items())
    return f"tested with {' and '.join(ranges)}"


# --- what differs between releases


def set_title(title: str) -> None:
    """Give this process a title, where gunicorn can (with setproctitle installed)."""
    set_process_title = getattr(import_module("gunicorn.util"), "_setproctitle", None)
    if set_process_title is not None:
        set_process_title(title)


def versions(own: str) -> str:
    """``own`` is this package's."""
    installed = ", ".join(f"{host} {importlib.metadata.version(host)}" for host in TESTED)
    return f"multicore_server {own}, {installed}, Python {platform.python_version()}"


def proxy_headers_off(config: Callable[..., Any]) -> dict[str, Any]:
    """The options that keep ``uvicorn.Config`` from adding its own proxy headers middleware."""
    if "no_proxy_headers" in inspect.signature(config).parameters:
        return {"no_proxy_headers": True}
    return {"proxy_headers": False}


def uvicorn_loggers() -> set[str]:
    """The names of the loggers to which uvicorn writes errors."""
    logger = getattr(import_module("uvicorn.server"), "logger", None)
    return {"uvicorn.error"} | ({logger.name} if isinstance(logger, logging.Logger) else set())
