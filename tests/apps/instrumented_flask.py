"""Flask with prometheus-flask-exporter."""

from __future__ import annotations

import os

from flask import Flask, Response, jsonify
from prometheus_flask_exporter import PrometheusMetrics

app = Flask(__name__)
metrics = PrometheusMetrics(app)


@app.get("/")
def who() -> Response:
    return jsonify(int(os.environ["MULTICORE_INSTANCE"]))


@app.get("/items/<int:number>")
@metrics.counter("items", "Items.")
@metrics.histogram("item_seconds", "Items.")
def item(number: int) -> Response:
    return jsonify(number)
