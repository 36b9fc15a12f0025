"""The HTTP implementations of the installed uvicorn that our protocols are made for."""

from __future__ import annotations

from importlib.util import find_spec

from uvicorn.config import HTTP_PROTOCOLS

HAS_ZTTP = "zttp" in HTTP_PROTOCOLS and find_spec("zttp") is not None
PARSERS = ("httptools", "h11", *(("zttp",) if HAS_ZTTP else ()))
