"""Imports point down only, and the pure modules import the standard library and each other.

The house: a folder for each process, and one for each thing that the processes share or obey.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import multicore_server

PACKAGE = Path(multicore_server.__file__).parent

# Top first. What stands in one row never imports another part of that row.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("application",),
    ("plugin", "check"),
    ("arbiter",),
    ("worker", "monitor"),
    ("metrics",),
    ("connections", "fleet"),
    ("wsgi", "settings"),
    ("ipc", "logs", "machine", "cluster", "version", "hosts"),
)
DEPTH = {part: depth for depth, parts in enumerate(LAYERS) for part in parts}
# The public names of the package load lazily, from wherever they live.
LAZY = {"__init__"}

PURE = (
    "fleet",
    "ipc",
    "logs",
    "machine",
    "metrics.collection",
    "metrics.definitions",
    "metrics.exposition",
    "metrics.family",
    "metrics.quantile",
    "monitor.address",
    "settings.quantities",
    "settings.sources",
    "settings.table",
)
HEAVY = {"gunicorn", "uvicorn", "uvloop", "asyncio", "starlette", "prometheus_client", "psutil"}


def part_of(path: Path) -> str:
    """The folder of a file, or its own name at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every part that a file imports, for types and inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"{PACKAGE.name}."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            yield from (name[1] for name in names if name[0] == PACKAGE.name and len(name) > 1)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {found}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (part := part_of(path)) not in LAZY
        for found in imported(path)
        if found != part and not DEPTH.get(found, -1) > DEPTH[part]
    ]
    assert wrong == []


def test_every_part_has_its_layer() -> None:
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")} - LAZY
    assert parts == DEPTH.keys()


SCRIPT = """
import importlib, json, sys
heavy = json.loads(sys.argv[2])
for name in json.loads(sys.argv[1]):
    importlib.import_module(f"multicore_server.{name}")
    found = sorted(set(heavy) & sys.modules.keys())
    if found:
        sys.exit(f"multicore_server.{name} imports {', '.join(found)}")
"""


def pure_modules() -> list[str]:
    folders = [PACKAGE / name for name in PURE if (PACKAGE / name).is_dir()]
    inside = [f"{folder.name}.{path.stem}" for folder in folders for path in sorted(folder.glob("*.py"))]
    return [name for name in PURE if not (PACKAGE / name).is_dir()] + inside


def test_pure_modules_import_no_server() -> None:
    arguments = [json.dumps(pure_modules()), json.dumps(sorted(HEAVY))]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- circles ---


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports() -> dict[str, set[str]]:
    """Which modules of the package each of them imports, wherever in its file."""
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= (inside & files.keys()) or {node.module}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[module] = (named & files.keys()) - {module, PACKAGE.name}
    return found


def test_nothing_imports_what_imports_it() -> None:
    left = imports()
    # Take away what imports nothing that is left, again and again: a circle is what stays.
    while leaves := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in leaves}
    assert sorted(left) == []
