"""Checks gunicorn's settings before anything is bound or forked; one line reports a mistake."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multicore_server.settings.table import SettingError

TLS_FILES = ("certfile", "keyfile", "ca_certs")
PASSWORD = "UVICORN_SSL_KEYFILE_PASSWORD"  # noqa: S105 - the variable's name


def check(cfg: Any) -> None:
    """Raise SettingError for a setting of gunicorn with a value that the workers cannot use."""
    _check_worker_tmp_dir(cfg.worker_tmp_dir)
    if cfg.is_ssl:
        _check_tls_files(cfg)
        if cfg.settings["ssl_context"].get() is cfg.settings["ssl_context"].default:
            _check_tls_content(cfg)


def _check_worker_tmp_dir(directory: str | None) -> None:
    if directory and not Path(directory).is_dir():
        raise SettingError(f"worker_tmp_dir: {directory!r} is not a directory; create it or give another one")
    if directory and not os.access(directory, os.W_OK | os.X_OK):
        raise SettingError(f"worker_tmp_dir: {directory!r} is not writable; give another one")


def _check_tls_files(cfg: Any) -> None:
    for name in TLS_FILES:
        path = cfg.settings[name].get()
        if not path:
            continue
        if not Path(path).is_file():
            raise SettingError(f"{name}: {path!r} does not exist or is not a file")
        if not os.access(path, os.R_OK):
            raise SettingError(f"{name}: {path!r} cannot be read (permission denied)")


def _check_tls_content(cfg: Any) -> None:
    if not cfg.certfile:
        raise SettingError(f"keyfile: {cfg.keyfile!r} is given without its certificate; give certfile too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = f"certfile: {cfg.certfile!r}" + (f" with keyfile {cfg.keyfile!r}" if cfg.keyfile else "")
    advice = "give PEM files, and the key of this certificate"
    _try(certificate, lambda: context.load_cert_chain(cfg.certfile, cfg.keyfile, _password), advice)
    if cfg.ca_certs:
        what = f"ca_certs: {cfg.ca_certs!r}"
        _try(what, lambda: context.load_verify_locations(cfg.ca_certs), "give a PEM file")
    if cfg.ciphers:
        what = f"ciphers: {cfg.ciphers!r}"
        _try(what, lambda: context.set_ciphers(cfg.ciphers), "`openssl ciphers` lists them")


def _try(what: str, use: Callable[[], None], advice: str) -> None:
    try:
        use()
    except (OSError, ValueError) as exc:  # SSLError is an OSError
        reason = getattr(exc, "reason", None) or str(exc)
        raise SettingError(f"{what} cannot be used: {reason}; {advice}") from None


def _password() -> str:
    """The key's password. Without this callback, OpenSSL asks for it on the terminal and the start waits."""
    if PASSWORD not in os.environ:
        raise ValueError(f"the key has a password, set {PASSWORD}")
    return os.environ[PASSWORD]
