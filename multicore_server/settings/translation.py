"""Translates uvicorn's options into gunicorn's settings and into options of the workers' uvicorn."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Mapping
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from pathlib import Path
from typing import Any, NamedTuple

from uvicorn.config import SSL_PROTOCOL_VERSION, create_ssl_context

from multicore_server.hosts import PREFORK
from multicore_server.settings.checks import PASSWORD
from multicore_server.settings.table import SettingError
from multicore_server.settings.uvicorn import check_uvicorn

HOST, PORT = "127.0.0.1", 8000

# The name of a uvicorn option -> the name of the gunicorn setting that does the same.
RENAMED = {
    "backlog": "backlog",
    "limit_max_requests": "max_requests",
    "limit_max_requests_jitter": "max_requests_jitter",
    "reload": "reload",
    "ssl_ca_certs": "ca_certs",
    "ssl_cert_reqs": "cert_reqs",
    "ssl_certfile": "certfile",
    "ssl_ciphers": "ciphers",
    "ssl_keyfile": "keyfile",
    "timeout_graceful_shutdown": "graceful_timeout",
    "timeout_keep_alive": "keepalive",
    "timeout_worker_healthcheck": "timeout",
}

# uvicorn's defaults where gunicorn's differ. A config file can override them.
DEFAULTS: dict[str, Any] = {"bind": f"{HOST}:{PORT}", "keepalive": 5, "accesslog": "-"}

ADDRESS = ("host", "port", "uds", "fd")
RELOAD = ("reload_dirs", "reload_includes", "reload_excludes", "reload_delay")
LOGGING = ("log_config", "log_level", "access_log", "use_colors")
# Options that have no effect, and why.
IDLE = {
    "use_colors": "log lines have gunicorn's form",
    "reload_delay": "gunicorn's reloader has no delay",
}
# Options of the process that starts the server: it has applied them already, or they do not apply here.
STARTER = frozenset({"app", "env_file", "app_dir", "version", "workers"})


class Translation(NamedTuple):
    """``gunicorn``: gunicorn's settings by name. ``uvicorn``: options of the workers' ``uvicorn.Config``."""

    gunicorn: dict[str, Any]
    uvicorn: dict[str, Any]


def translate(given: Mapping[str, Any], name_of: Callable[[str], str] = str) -> Translation:
    """Translate ``given``, the uvicorn options that were given, by name.

    ``name_of`` returns an option's name as the user wrote it, for messages. Sets UVICORN_SSL_KEYFILE_PASSWORD
    in the environment if that password is given. Raises SettingError for values that the workers cannot use.
    """
    found = Translation({}, {})
    _address(given, found, name_of)
    _tls(given, found)
    _reloading(given, found)
    _logging(given, found, name_of)
    found.gunicorn.update((RENAMED[name], value) for name, value in given.items() if name in RENAMED)
    elsewhere = {*STARTER, *RENAMED, *ADDRESS, *RELOAD, *LOGGING, "ssl_version", "ssl_keyfile_password"}
    found.uvicorn.update((name, value) for name, value in given.items() if name not in elsewhere)
    if found.uvicorn.get("loop") in PREFORK:
        found.uvicorn["loop"] = "auto"
    check_uvicorn(found.uvicorn, name_of)
    return found


def _address(given: Mapping[str, Any], found: Translation, name_of: Callable[[str], str]) -> None:
    """Return the address. As in uvicorn, a socket or a descriptor overrides host and port (UVICORN_PORT in an
    image)."""
    uds, fd = given.get("uds"), given.get("fd")
    if uds is not None and fd is not None:
        raise SettingError(f"{name_of('fd')} and {name_of('uds')} are two addresses; give one of them")
    if uds is not None:
        found.gunicorn["bind"] = f"unix:{uds}"
    elif fd is not None:
        found.gunicorn["bind"] = f"fd://{fd}"
    elif "host" in given or "port" in given:
        host, port = given.get("host", HOST) or "0.0.0.0", given.get("port", PORT)
        found.gunicorn["bind"] = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls(given: Mapping[str, Any], found: Translation) -> None:
    if given.get("ssl_keyfile_password") is not None:
        os.environ[PASSWORD] = given["ssl_keyfile_password"]
    version = given.get("ssl_version", SSL_PROTOCOL_VERSION)
    if version != SSL_PROTOCOL_VERSION:
        found.gunicorn["ssl_context"] = _context_of(version)


def _context_of(version: int) -> Callable[[Any, Any], Any]:
    def ssl_context(config: Any, _: Any) -> Any:
        """Create the TLS context; this is gunicorn's hook of the same name."""
        return create_ssl_context(
            config.certfile, config.keyfile, os.environ.get(PASSWORD), version,
            config.cert_reqs, config.ca_certs, config.ciphers,
        )  # fmt: skip

    return ssl_context


# -- reload


def _reloading(given: Mapping[str, Any], found: Translation) -> None:
    """Set the files that gunicorn's reloader watches in addition to the modules that the app imported."""
    if given.get("reload") and (given.get("reload_dirs") or given.get("reload_includes")):
        found.gunicorn["reload_extra_files"] = sorted(_watched(given))


def _watched(given: Mapping[str, Any]) -> set[str]:
    directories = given.get("reload_dirs") or (".",)
    included = ("*.py", *(given.get("reload_includes") or ()))
    excluded = given.get("reload_excludes") or ()
    matching = (path for each in directories for name in included for path in _files(Path(each), name))
    return {str(path.absolute()) for path in matching if not _matches(path, excluded)}


def _files(directory: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern, or all files in the directory that it names."""
    inside = Path(pattern)
    paths = inside.rglob("*") if inside.is_dir() else directory.rglob(pattern)
    return [path for path in paths if path.is_file()]


def _matches(path: Path, patterns: Any) -> bool:
    parts = (path.name, str(path), *map(str, path.parents))
    return any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns)


# -- logging


def _logging(given: Mapping[str, Any], found: Translation, name_of: Callable[[str], str]) -> None:
    level = given.get("log_level")
    if level is not None:
        found.gunicorn["loglevel"] = "debug" if level == "trace" else level
    if given.get("access_log") is False:
        found.gunicorn["accesslog"] = None
    path = given.get("log_config")
    if path is None:
        return
    if not str(path).endswith((".json", ".yaml", ".yml")):
        found.gunicorn["logconfig"] = str(path)
        loggers = _ini(str(path), name_of("log_config"))
    else:
        found.gunicorn["logconfig_dict"] = _adopted(_loaded(str(path), name_of("log_config")), level)
        loggers = " ".join(map(str, found.gunicorn["logconfig_dict"]["loggers"]))
    # Without this logger, the file's access format is for uvicorn's formatter, which cannot format gunicorn's
    # records. So uvicorn writes the access log.
    if "gunicorn.access" not in loggers:
        found.gunicorn["accesslog"] = None
        found.uvicorn["access_log"] = given.get("access_log", True)


def _ini(path: str, option: str) -> str:
    parser = RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (OSError, ValueError, ConfigParserError) as exc:
        raise SettingError(f"{option}: {path!r} cannot be read: {' '.join(str(exc).split())}") from exc
    missing = [name for name in ("loggers", "handlers", "formatters") if not parser.has_section(name)]
    if missing:
        raise SettingError(f"{option}: {path!r} has no section [{missing[0]}]")
    return " ".join(parser.get(section, "qualname", fallback="") for section in parser.sections())


def _loaded(path: str, option: str) -> dict[str, Any]:
    try:
        with Path(path).open(encoding="utf-8") as file:
            if path.endswith(".json"):
                loaded = json.load(file)
            else:
                import yaml  # type: ignore[import-untyped,unused-ignore]

                loaded = yaml.safe_load(file)
    except Exception as exc:
        said = " ".join(str(exc).split())
        raise SettingError(f"{option}: {path!r} cannot be read: {said}") from exc
    if not isinstance(loaded, dict):
        raise SettingError(f"{option}: {path!r} is not a mapping for logging's dictConfig")
    return loaded


def _adopted(config: dict[str, Any], level: str | None) -> dict[str, Any]:
    """Send the lines of the arbiter and of the workers where the file sends uvicorn's lines."""
    loggers = dict(config.get("loggers") or {})
    like = {**(loggers.get("uvicorn") or {}), **(loggers.get("uvicorn.error") or {})}
    if "gunicorn.error" not in loggers and like:
        loggers["gunicorn.error"] = {**like, **({"level": level.upper()} if level else {})}
    # gunicorn fills missing keys with its defaults, and its default root logger needs gunicorn's handler.
    return {"root": {}, **config, "loggers": loggers}
