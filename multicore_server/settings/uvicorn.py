"""uvicorn's own options: reads ``UVICORN_*``, and checks early what uvicorn checks later, in a worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from uvicorn.config import (
    HTTP_PROTOCOLS,
    LOOP_FACTORIES,
    WS_PROTOCOLS,
)
from uvicorn.main import main as uvicorn_command

from multicore_server.hosts import PREFORK
from multicore_server.settings.table import SettingError

# Not read from UVICORN_*: options that gunicorn has its own names for, and options of uvicorn's command line.
GUNICORN_HAS = frozenset({
    "app", "host", "port", "uds", "fd", "reload", "reload_dirs", "reload_includes", "reload_excludes",
    "reload_delay", "workers", "env_file", "log_config", "log_level", "access_log", "use_colors", "backlog",
    "limit_max_requests", "limit_max_requests_jitter", "timeout_keep_alive", "timeout_graceful_shutdown",
    "timeout_worker_healthcheck", "forwarded_allow_ips", "ssl_keyfile", "ssl_certfile", "ssl_version",
    "ssl_cert_reqs", "ssl_ca_certs", "ssl_ciphers", "app_dir", "version",
})  # fmt: skip


# The options that take a name or an import string, with where uvicorn has what it knows by name.
KNOWN: dict[str, Mapping[str, str | None]] = {
    "http": HTTP_PROTOCOLS,
    "ws": WS_PROTOCOLS,
    "loop": LOOP_FACTORIES,
}


def uvicorn_environment() -> dict[str, Any]:
    """Return the options that UVICORN_* variables set, by their names in ``uvicorn.Config``.

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
    separated = "several separated by spaces, without spaces inside"
    check_uvicorn(found, _variable, "from the environment", separated)
    return found


def _variable(name: str) -> str:
    return f"UVICORN_{name.upper()}"


def check_uvicorn(
    found: dict[str, Any], name_of: Callable[[str], str], source: str = "from run's options", more: str = ""
) -> None:
    """Check what uvicorn checks only in a worker, and turn the headers into pairs. Raises SettingError."""
    for name, known in KNOWN.items():
        value = found.get(name)
        if isinstance(value, str) and value not in known and ":" not in value:
            text = f"is not known; give {', '.join(known)} or module:attribute"
            raise SettingError(f"{name_of(name)}: {value!r} ({source}) {text}")
    for header in found.get("headers", ()):
        if isinstance(header, str) and header.find(":") < 1:
            text = "is not a header; give name:value" + (f", {more}" if more else "")
            raise SettingError(f"{name_of('headers')}: {header!r} ({source}) {text}")
    if "headers" in found:
        pairs = [header.split(":", 1) if isinstance(header, str) else header for header in found["headers"]]
        # Strip the value: uvicorn would send the space after the colon, and h11 refuses it.
        found["headers"] = [(name, value.strip()) for name, value in pairs]


def _converted(option: click.Parameter, context: click.Context, raw: Any) -> Any:
    try:
        return option.process_value(context, raw)
    except click.ClickException as exc:
        variable = _variable(str(option.name))
        message = exc.message.rstrip(".")
        raise SettingError(f"{variable}: {message} (from the environment; see uvicorn --help)") from None
