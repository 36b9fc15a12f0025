"""The smallest ASGI app: ``gunicorn -k multicore_server.Worker examples.hello:app``."""

import os


async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = f"Hello from worker {os.environ.get('MULTICORE_INSTANCE', '?')}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
