"""Litestar."""

# No `from __future__ import annotations`: litestar reads them.
from litestar import Litestar, get


@get("/", media_type="text/plain")
async def hello() -> str:
    return "hello"


app = Litestar([hello])
