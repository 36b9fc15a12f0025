"""For the end of an app: notes in ``imports`` what the process is that imports it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

with Path("imports").open("a") as file:
    flags = [sys.dont_write_bytecode, sys.flags.optimize]
    told = {"flags": flags, "pid": os.getpid(), "argv": sys.orig_argv, "mine": os.environ.get("MINE")}
    file.write(json.dumps(told) + "\n")
