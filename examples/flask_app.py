"""Flask on every CPU: ``gunicorn -k multicore_server.Worker examples.flask_app:app``.

With ``--threads 8`` each worker answers eight requests at a time. Use threads for views that wait.
"""

import asyncio

from flask import Flask, request

from multicore_server import cluster

app = Flask(__name__)


@app.get("/")
def hello():
    return {"text": f"Hello, {request.args.get('name', 'world')}", "worker": cluster.instance}


@app.get("/async")  # needs flask[async]
async def hello_async():
    await asyncio.sleep(0.01)
    return {"text": "Hello from an async view", "worker": cluster.instance}
