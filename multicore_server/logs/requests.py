"""Writes the request of an access line as fields of a JSON object. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeAlias

ACCESS, UVICORN_ACCESS = "gunicorn.access", "uvicorn.access"
ABSENT = ("", "-", None)
# Field -> gunicorn's atom; see its documentation of access_log_format.
_ATOMS = {"client": "h", "user": "u", "method": "m", "protocol": "H", "referer": "f", "user_agent": "a"}


class RequestFields(dict[str, Any]):
    """The arguments of an access line's record where nobody needs gunicorn's atoms.

    ``client``, ``method``, ``path`` and ``query`` as they were sent, ``protocol``, ``status``, ``bytes`` of
    the body, ``duration`` in seconds; ``user``, ``referer`` and ``user_agent`` where the client says them.
    """


Atoms: TypeAlias = Mapping[str, Any]


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Those of an access line of ours, gunicorn's or uvicorn's; empty for every other record."""
    args: Any = record.args
    if type(args) is RequestFields:
        return args
    if record.name == ACCESS and isinstance(args, Mapping):
        return of_atoms(args)
    if record.name == UVICORN_ACCESS and isinstance(args, tuple) and len(args) == 5:
        client, method, target, version, status = args
        path, _, query = target.partition("?")
        known = {"client": client, "method": method, "path": path, "query": query}
        return _known({**known, "protocol": f"HTTP/{version}", "status": int(status)})
    return {}


def of_atoms(atoms: Atoms) -> RequestFields:
    """From gunicorn's, in which quotes are escaped."""
    texts = {name: str(atoms[atom]).replace('\\"', '"') for name, atom in _ATOMS.items()}
    target = str(atoms["r"]).replace('\\"', '"').split(" ")[1:2]
    path, _, query = "".join(target).partition("?")
    numbers = {"status": int(atoms["s"]), "bytes": atoms["B"], "duration": atoms["D"] / 1_000_000}
    return _known({**texts, "path": path, "query": query, **numbers})


def _known(fields: dict[str, Any]) -> RequestFields:
    return RequestFields((name, value) for name, value in fields.items() if value not in ABSENT)
