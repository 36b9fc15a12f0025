"""Dependencies point one way: the pure modules import the standard library and each other."""

from __future__ import annotations

import json
import subprocess
import sys

PURE = [
    "bulletin",
    "cgroup",
    "cpu",
    "endings",
    "events",
    "fleet",
    "metrics.collection",
    "metrics.definitions",
    "metrics.exposition",
    "metrics.family",
    "monitor.address",
    "policy",
    "quantities",
    "report",
    "rollout",
    "scoreboard",
    "settings",
    "shutdown",
    "slots",
]
HEAVY = {"gunicorn", "uvicorn", "uvloop", "asyncio", "starlette", "prometheus_client", "psutil"}

SCRIPT = """
import importlib, json, sys
heavy = json.loads(sys.argv[2])
for name in json.loads(sys.argv[1]):
    importlib.import_module(f"multicore_server.{name}")
    found = sorted(set(heavy) & sys.modules.keys())
    if found:
        sys.exit(f"multicore_server.{name} imports {', '.join(found)}")
"""


def test_pure_modules_import_no_server() -> None:
    arguments = [json.dumps(PURE), json.dumps(sorted(HEAVY))]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
