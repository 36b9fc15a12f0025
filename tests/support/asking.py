"""How to ask the app of ``tests/apps/ask.py``, which answers with the value of an expression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.support.server import Server


def ask(server: Server, expression: str) -> Any:
    return json.loads(server.get(f"/?{quote(expression)}").content)


def ask_over(path: Path, expression: str) -> Any:
    """Ask over a unix socket."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return json.loads(client.get(f"http://localhost/?{quote(expression)}").content)
