"""What is found to be wrong with gunicorn's settings before anything is bound."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from gunicorn.config import Config

from multicore_server.settings.checks import PASSWORD, check
from multicore_server.settings.table import SettingError


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = {name: str(directory / name) for name in ("cert", "key", "other", "secret", "junk", "ca")}
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    authority.issue_cert("localhost").private_key_pem.write_to_path(files["other"])
    authority.cert_pem.write_to_path(files["ca"])
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
    Path(files["secret"]).write_bytes(secret)
    Path(files["junk"]).write_text("no PEM\n")
    return files


def config(**settings: Any) -> Config:
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def refusal(**settings: Any) -> str:
    with pytest.raises(SettingError) as info:
        check(config(**settings))
    text = str(info.value)
    assert "\n" not in text
    return text


def test_the_defaults_are_fine() -> None:
    check(config())


def test_a_worker_tmp_dir_that_is_none_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert refusal(worker_tmp_dir=missing) == (
        f"worker_tmp_dir: {missing!r} is not a directory; create it or give another one"
    )


def test_a_worker_tmp_dir_that_is_not_writable_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    assert refusal(worker_tmp_dir=str(tmp_path)) == (
        f"worker_tmp_dir: {str(tmp_path)!r} is not writable; give another one"
    )


def test_a_certificate_with_its_key_is_fine(tls: dict[str, str]) -> None:
    check(config(certfile=tls["cert"], keyfile=tls["key"], ca_certs=tls["ca"], ciphers="ECDHE+AESGCM"))


def test_a_file_that_cannot_be_read_is_refused(tls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refusal(certfile=tls["cert"]) == f"certfile: {tls['cert']!r} cannot be read (permission denied)"


def test_a_file_that_is_gone_is_refused(tls: dict[str, str], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pem")
    cfg = config(certfile=tls["cert"], keyfile=tls["key"])
    cfg.settings["keyfile"].value = gone  # gunicorn itself refuses it, where it is given at the start
    with pytest.raises(SettingError, match="does not exist or is not a file"):
        check(cfg)


def test_a_key_without_its_certificate_is_refused(tls: dict[str, str]) -> None:
    assert "is given without its certificate" in refusal(keyfile=tls["key"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"certfile": "junk"}, "cannot be used"),
        (
            {"certfile": "cert", "keyfile": "other"},
            "KEY_VALUES_MISMATCH; give PEM files, and the key of this",
        ),
        ({"certfile": "cert", "keyfile": "key", "ca_certs": "junk"}, "give a PEM file"),
        ({"certfile": "cert", "keyfile": "secret"}, f"the key has a password, set {PASSWORD}"),
    ],
)
def test_files_that_openssl_refuses_are_refused(
    settings: dict[str, str], text: str, tls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    assert text in refusal(**{name: tls[file] for name, file in settings.items()})


def test_ciphers_that_do_not_exist_are_refused(tls: dict[str, str]) -> None:
    said = refusal(certfile=tls["cert"], keyfile=tls["key"], ciphers="NONE-SUCH")
    assert "`openssl ciphers` lists them" in said


def test_a_key_with_its_password_is_fine(tls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "open sesame")
    check(config(certfile=tls["cert"], keyfile=tls["secret"]))


def test_a_context_of_the_users_own_is_not_looked_into(tls: dict[str, str]) -> None:
    def ssl_context(_: Any, default: Any) -> ssl.SSLContext:
        raise AssertionError("it is the workers' to call")

    check(config(certfile=tls["junk"], ssl_context=ssl_context))
