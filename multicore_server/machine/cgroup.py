"""Reads the limits of this process's control groups, versions 1 and 2.

Sources: cgroups(7), proc(5), and the kernel's Documentation/admin-guide/cgroup-v2.rst,
cgroup-v1/memory.rst and scheduler/sched-bwc.rst. The functions here never raise. If a file is
missing, unreadable or malformed, they return None.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Version 1 writes "no limit" as the largest long, rounded down to a page. Page sizes differ, so the
# bound here is below all of them.
_UNLIMITED = 1 << 62


class _Mount(NamedTuple):
    """A line of mountinfo that mounts a cgroup hierarchy, or a part of it."""

    unified: bool
    root: PurePosixPath  # the group that is mounted at `point`
    point: Path
    controllers: list[str]  # version 1 only; co-mounted controllers share a line


class _Group(NamedTuple):
    directory: Path
    unified: bool


def cpu_quota(proc: Path = Path("/proc")) -> float | None:
    """Return the CPU quota in CPUs, such as 1.5, or None without a limit.

    It is read from `cpu.max` (version 2) or `cpu.cfs_quota_us` and `cpu.cfs_period_us` (version 1).
    It is the lowest limit of the process's own group and its ancestors, as far as they are mounted.
    """
    return _tightest("cpu", _quota, proc)


def memory_limit(proc: Path = Path("/proc")) -> int | None:
    """Return the memory limit in bytes, or None without a limit.

    It is read from `memory.max` (version 2) or `memory.limit_in_bytes` (version 1). It is the lowest
    limit of the process's own group and its ancestors, as far as they are mounted.
    """
    limit = _tightest("memory", _memory, proc)
    return None if limit is None else int(limit)


def oom_kills(proc: Path = Path("/proc")) -> int | None:
    """Return how many processes of this process's own group the kernel's OOM killer has killed so far.

    The number is the `oom_kill` line of `memory.events` (version 2; includes child groups) or of
    `memory.oom_control` (version 1, Linux 4.13 and newer). It is None if unknown.
    """
    for path in _oom_files(proc):
        if found := re.search(r"^oom_kill ([0-9]+)$", _read(path), re.MULTILINE):
            return _number(found[1])
    return None


@functools.cache
def _oom_files(proc: Path) -> tuple[Path, ...]:
    """Found once: the arbiter asks each second, and a server stays in the group that it was started in."""
    groups = [own for own, *_ in _lineages("memory", proc)]
    return tuple(own.directory / ("memory.events" if own.unified else "memory.oom_control") for own in groups)


def oom_group(proc: Path = Path("/proc")) -> bool:
    """Return whether the OOM killer ends all processes of this process's group at once.

    It is read from `memory.oom.group` (version 2) of the group and its ancestors, as far as they are mounted.
    """
    groups = (group for lineage in _lineages("memory", proc) for group in lineage if group.unified)
    return any(_number(_read(group.directory / "memory.oom.group")) == 1 for group in groups)


def _tightest(controller: str, limit: Callable[[_Group], float | None], proc: Path) -> float | None:
    limits = (limit(group) for lineage in _lineages(controller, proc) for group in lineage)
    return min((value for value in limits if value is not None), default=None)


def _quota(group: _Group) -> float | None:
    quota, period = map(_number, _quota_texts(group))
    # A group without a limit has "max" or -1. `_number` reads neither of them.
    return quota / period if quota and period else None


def _quota_texts(group: _Group) -> tuple[str, str]:
    if group.unified:
        quota, _, period = _read(group.directory / "cpu.max").partition(" ")
        return quota, period
    return _read(group.directory / "cpu.cfs_quota_us"), _read(group.directory / "cpu.cfs_period_us")


def _memory(group: _Group) -> int | None:
    limit = _number(_read(group.directory / ("memory.max" if group.unified else "memory.limit_in_bytes")))
    return limit if limit and limit < _UNLIMITED else None


def _lineages(controller: str, proc: Path) -> Iterator[list[_Group]]:
    """Yield for each mount that contains our group: the group, then its ancestors up to the mount."""
    paths = _own_paths(controller, proc)
    for mount in _mounts(proc):
        path = paths.get(mount.unified)
        if path is None or not (mount.unified or controller in mount.controllers):
            continue
        inside = _inside(path, mount.root)
        if inside is not None:
            ancestry = [inside, *inside.parents]
            yield [_Group(mount.point / part, mount.unified) for part in ancestry]


def _own_paths(controller: str, proc: Path) -> dict[bool, PurePosixPath]:
    """Return our group's path in the unified hierarchy (True) and in the controller's own (False).

    A hybrid system has both hierarchies, but a controller's files are in only one of them.
    """
    paths = {}
    for line in _read(proc / "self/cgroup").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")  # the path may contain ":"
        unified = number == "0" and not controllers
        if unified or controller in controllers.split(","):
            paths[unified] = PurePosixPath(path)
    return paths


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in _read(proc / "self/mountinfo").split("\n"):
        left, _, right = line.partition(" - ")
        place, kind = left.split(" "), right.split(" ")
        if len(place) >= 6 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            root, point = PurePosixPath(_unescape(place[3])), Path(_unescape(place[4]))
            yield _Mount(kind[0] == "cgroup2", root, point, kind[2].split(","))


def _inside(path: PurePosixPath, root: PurePosixPath) -> PurePosixPath | None:
    """Return `path` relative to a mount's root, or None if the mount does not contain it.

    In a container without a cgroup namespace, both are paths of the host. With a cgroup namespace, "/.."
    stands for the groups above the namespace. Following it would leave the mount.
    """
    try:
        inside = path.relative_to(root)
    except ValueError:
        return None
    return None if ".." in inside.parts else inside


def _unescape(field: str) -> str:
    r"""Decode mountinfo's octal escapes: a space is written \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,20}\n?", text) else None


def _read(path: Path) -> str:
    """Return the file's text, or an empty string if it cannot be read."""
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return ""
