"""A system that is not Linux, for the processes of a server: the environment that makes one."""

from __future__ import annotations

from pathlib import Path

ELSEWHERE = {"PYTHONPATH": str(Path(__file__).parent)}
