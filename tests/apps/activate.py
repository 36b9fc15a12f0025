"""A program: ``activate.py PATH COMMAND...`` runs a Python command with a listener, as systemd does."""

from __future__ import annotations

import os
import socket
import sys

path = sys.argv.pop(1)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
