"""What holds for every answer of the monitor, in front of its app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
CLOSE = (b"connection", b"close")
_REFUSAL = b"a body is not accepted here\n"
_PLAIN = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(_REFUSAL))]


class Gate:
    """Refuses a body where none has a place: with every method but POST. Only a command's has one, and it
    alone is read; after any other the connection ends, so that nobody waits for the rest of it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        has_body = _has_body(scope)
        headers = [*HEADERS, CLOSE] if has_body else HEADERS

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        if has_body and scope["method"] in ("GET", "HEAD"):
            await answer({"type": "http.response.start", "status": 413, "headers": _PLAIN})
            await answer({"type": "http.response.body", "body": _REFUSAL})
        else:
            await self._app(scope, receive, answer)


def _has_body(scope: Message) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")):
            return True
    return False
