"""A WSGI app: answers with what it sees of a request, its body counted, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return iter([b"one", b"two"])
    read = 0
    if environ["PATH_INFO"] != "/unread":
        while data := environ["wsgi.input"].read(65536):
            read += len(data)
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"read": read, **seen}).encode()]
