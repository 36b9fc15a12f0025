"""The test suites of the installed uvicorn and gunicorn, from their sdists on the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

# Not the package itself: what is tested is the one that is installed.
WANTED = ("tests", "pyproject.toml")


def suite_of(name: str) -> Path:
    """The folder with the tests of the installed version of a package; fetched where it is not kept yet.

    Raises subprocess.CalledProcessError where the index has no such sdist.
    """
    release = f"{name}-{version(name)}"
    kept = cache() / release
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            unpack(download(name, Path(directory)), Path(directory)).rename(kept)
    return kept


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "multicore_server" / "peers"


def download(name: str, into: Path) -> Path:
    """The archive of the installed version's sources, by pip: it knows which index is meant."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name,
         "--dest", str(into), f"{name}=={version(name)}"],
        check=True,
    )  # fmt: skip
    return next(into.glob("*.tar.gz"))


def unpack(archive: Path, into: Path) -> Path:
    """The folder in which the wanted part of the archive lies."""
    root = into / archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        members = [it for it in tar if it.name.split("/")[1:2] and it.name.split("/")[1] in WANTED]
        tar.extractall(into, members, filter="data")
    return root


def copy_of(name: str, into: Path) -> Path:
    """A copy that a run may write to: its tests leave caches and certificates beside themselves."""
    return Path(shutil.copytree(suite_of(name), into / name))
