"""A configuration of gunicorn that tells where the server keeps the app's metrics.

Of gunicorn's hooks this one is called first.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def nworkers_changed(server: Any, new: int, old: int | None) -> None:
    path = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    assert Path(path).is_dir()
    Path("directory").write_text(path)
