"""Logs with uvicorn's loggers, and does to them what apps do: the code in CHANGE, at import."""

from __future__ import annotations

import logging
import os
from typing import Any

logging.getLogger("uvicorn.error").info("MINE at import")


class Health(logging.Filter):
    """As in uvicorn's discussions and a hundred blogs."""

    def filter(self, record: logging.LogRecord) -> bool:
        assert isinstance(record.args, tuple)
        _client, _method, path, _version, _status = record.args
        return path != "/health"


access = logging.getLogger("uvicorn.access")
exec(os.environ.get("CHANGE", ""))


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            logging.getLogger("uvicorn").info("MINE in %s", message["type"])
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    logging.getLogger("uvicorn.error").info("MINE in a request")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
