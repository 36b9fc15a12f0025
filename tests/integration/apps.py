"""Apps that the servers under test run."""

# Answers with what the server has told it, and about itself, as JSON.
SCOPE = """
import asyncio, json, os, sys

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    engine = type(send.__self__).__mro__[1]  # uvicorn's, which ours is derived from
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": engine.__name__ + message["text"]})
        await send({"type": "websocket.close"})
        return
    if scope["path"] == "/raise":
        raise RuntimeError("the app's mistake")
    if scope["path"] == "/print":
        print("said by the app", flush=True)
    seen = {
        "pid": os.getpid(),
        "loop": type(asyncio.get_running_loop()).__module__,
        "http": engine.__module__,
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        **{name: scope[name] for name in ("scheme", "client", "server", "root_path", "path", "http_version")},
        "asgi": scope["asgi"]["version"],
    }
    if scope["path"] == "/wait":
        while not os.path.exists("release"):
            await asyncio.sleep(0.01)
    body = json.dumps(seen).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
