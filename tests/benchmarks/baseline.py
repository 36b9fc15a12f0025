"""Counts of an earlier run, in a file: by version of Python, by cell, by server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from tests.benchmarks.callgrind import Counts

MORE = 1.02  # times its baseline that a cell may have
MORE_CALLS = 0.75  # system calls a request, where that is more: they are few, and vary by some tenths

Cells = dict[str, dict[str, dict[str, float]]]  # by cell, server and name in `Counts`


class Baseline(TypedDict):
    """Of one version of Python."""

    versions: dict[str, str]
    cells: Cells


Baselines = dict[str, Baseline]


def read(path: Path) -> Baselines:
    """Nothing where there is no such file."""
    found: Baselines = json.loads(path.read_text()) if path.exists() else {}
    return found


def dumps(baselines: Baselines) -> str:
    return json.dumps(baselines, indent=1, sort_keys=True) + "\n"


def note(cells: Cells, cell: str, server: str, counts: Counts) -> None:
    rounded = {"instructions": round(counts.instructions), "calls": round(counts.calls, 2)}
    cells.setdefault(cell, {})[server] = rounded


def find(baseline: Baseline | None, cell: str, server: str) -> Counts | None:
    found = baseline["cells"].get(cell, {}).get(server) if baseline else None
    return Counts(**found) if found else None


def merged(before: Baseline | None, now: Baseline) -> Baseline:
    """Cells that were not measured again stay, if they are of the same versions."""
    cells: Cells = {}
    if before is not None and before["versions"] == now["versions"]:
        cells = {cell: dict(servers) for cell, servers in before["cells"].items()}
    for cell, servers in now["cells"].items():
        cells.setdefault(cell, {}).update(servers)
    return {"versions": now["versions"], "cells": cells}


def differences(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} {before.get(name, 'none')}, now {now.get(name, 'none')}"


def change(before: Counts, now: Counts) -> float:
    """Percent of instructions."""
    return (now.instructions / before.instructions - 1) * 100


def has_more_instructions(before: Counts, now: Counts) -> bool:
    return now.instructions > before.instructions * MORE


def has_more_calls(before: Counts, now: Counts) -> bool:
    return now.calls > max(before.calls * MORE, before.calls + MORE_CALLS)


def is_worse(before: Counts | None, now: Counts) -> bool:
    """Whether that is a regression."""
    return before is not None and (has_more_instructions(before, now) or has_more_calls(before, now))


def row(cell: str, server: str, before: Counts | None, now: Counts) -> str:
    """Of a table in Markdown; what is worse stands out."""
    if before is None:
        return f"| {cell} | {server} | | {now.instructions:,.0f} | new | | {now.calls:.1f} |"
    moved, calls = f"{change(before, now):+.1f} %", f"{now.calls:.1f}"
    if has_more_instructions(before, now):
        moved = f"**{moved}**"
    if has_more_calls(before, now):
        calls = f"**{calls}**"
    return (
        f"| {cell} | {server} | {before.instructions:,.0f} | {now.instructions:,.0f} | {moved} "
        f"| {before.calls:.1f} | {calls} |"
    )
