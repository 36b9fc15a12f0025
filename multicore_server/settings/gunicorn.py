"""Reads gunicorn's settings: which are set, which have no effect here, where large files go."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gunicorn.config import make_settings

from multicore_server.machine.directories import SHARED_MEMORY
from multicore_server.settings.quantities import boolean
from multicore_server.settings.sources import Given, in_config_file
from multicore_server.settings.table import PREFIX, TABLE, SettingError

_PARSER = "uvicorn's parser has its own limits"


_HTTP2 = "gunicorn's HTTP/2 is not used; uvicorn's is UVICORN_HTTP=zttp with UVICORN_HTTP2=1"


NO_EFFECT = {
    "permit_obsolete_folding": _PARSER,
    "strip_header_spaces": _PARSER,
    "permit_unconventional_http_method": _PARSER,
    "permit_unconventional_http_version": _PARSER,
    "casefold_http_method": _PARSER,
    "http_parser": "set UVICORN_HTTP=h11|httptools",
    "protocol": "uvicorn speaks HTTP only",
    "http_protocols": _HTTP2,
    "http2_cleartext": _HTTP2,
    "sendfile": "responses go through the event loop",
    "asgi_disconnect_grace_period": "uvicorn tells the app of a disconnect at once",
}


# Whole seconds, to gunicorn; with a unit, too, where this package reads them.
DURATIONS = frozenset({
    "timeout", "graceful_timeout", "keepalive", "asgi_disconnect_grace_period", "dirty_timeout",
    "dirty_graceful_timeout",
})  # fmt: skip
# Not read from the environment: other ways to name the app, and what is the environment itself.
ELSEWHERE = frozenset({"wsgi_app", "paste", "raw_paste_global_conf", "raw_env", "print_config"})


def log_files(cfg: Any) -> dict[str, str]:
    """Return the files of gunicorn's logs, by their settings; a log that is no file is left out."""
    named = {name: getattr(cfg, name) for name in ("errorlog", "accesslog")}
    return {name: path for name, path in named.items() if path and path != "-"}


def worker_class(cfg: Any) -> type:
    """The class that the setting names. Raises TypeError, and RuntimeError with a traceback in its text."""
    found = cfg.worker_class
    if not isinstance(found, type):  # gunicorn gives the name itself where the module has no such class
        raise TypeError(f"{cfg.settings['worker_class'].get()!r} is not a class")
    return found


def variables() -> dict[str, str]:
    """Return gunicorn's settings that have an option, by their environment variables."""
    names = (name for name, setting in make_settings().items() if setting.cli)
    return {PREFIX + name.upper(): name for name in names if name not in ELSEWHERE and name not in TABLE}


def from_environment(environ: Mapping[str, str]) -> dict[str, Given]:
    """Return the gunicorn settings in MULTICORE_* variables, by name. Raises SettingError."""
    found: dict[str, Given] = {}
    settings = make_settings()
    for variable, name in variables().items():
        if variable in environ:
            given = Given(environ[variable], f"from the environment, {variable}")
            found[name] = given._replace(value=_value(settings[name], given))
    return found


def _value(setting: Any, given: Given) -> object:
    """Return the value in the form that gunicorn's own check of this setting accepts."""
    text = str(given.value)
    if setting.action == "append":
        return [each.strip() for each in text.split(",") if each.strip()]
    if str(setting.action).startswith("store_"):
        try:
            return boolean(text)
        except ValueError as exc:
            raise SettingError(f"{given.of(setting.name)} {exc}; give true or false") from None
    return text or None


def without_effect(cfg: Any) -> Iterator[str]:
    """Yield one warning line for each gunicorn setting that is set and has no effect here."""
    for name, why in NO_EFFECT.items():
        if is_set(cfg, name):
            yield f"{name} has no effect with multicore_server.Worker: {why}"


def is_set(cfg: Any, name: str) -> bool:
    """Return whether a setting differs from gunicorn's default. False if this gunicorn does not have it."""
    setting = cfg.settings.get(name)
    return setting is not None and setting.get() != type(setting)().get()


def is_given(cfg: Any, name: str) -> bool:
    """Return whether the user has set a setting, also to its default. It cannot detect that an embedding
    application sets the default."""
    if is_set(cfg, name):
        return True
    flags = cfg.settings[name].cli or ()
    arguments = [*sys.argv[1:], *cfg.get_cmd_args_from_env()]
    of_run = getattr(cfg, "given", ())
    on_command_line = any(argument.partition("=")[0] in flags for argument in arguments)
    return name in of_run or on_command_line or bool(in_config_file(cfg, [name]))


def log_configuration(cfg: Any) -> str:
    """The name of the setting that configures the logs in place of gunicorn's own settings; or empty."""
    return next((name for name in ("logconfig_dict", "logconfig_json", "logconfig") if is_set(cfg, name)), "")


def spool_directories(cfg: Any) -> list[str | None]:
    """Return the directories for request bodies and responses that do not fit into memory, for
    `temporary_file`."""
    if cfg.tmp_upload_dir:
        return [cfg.tmp_upload_dir]
    return [
        None,
        cfg.worker_tmp_dir or str(SHARED_MEMORY),
    ]  # a container may have one writable directory alone


def reference() -> str:
    """Return the table of settings without effect in Markdown, for the docs."""
    rows = [f"| `{name}` | {why} |".replace("h11|", "h11\\|") for name, why in NO_EFFECT.items()]
    return "\n".join(["| setting | why, and what to use |", "| --- | --- |", *rows])
