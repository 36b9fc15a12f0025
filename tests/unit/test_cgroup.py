from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from multicore_server.machine.cgroup import cpu_quota, memory_limit, oom_kills

UNLIMITED_V1 = str(0x7FFFFFFFFFFFF000)


class Case(NamedTuple):
    """A fake machine. Mounts are (fstype, options, root, mount point below tmp_path)."""

    cgroup: str
    mounts: list[tuple[str, str, str, str]]
    files: dict[str, str]
    quota: float | None = None
    limit: int | None = None
    kills: int | None = None


V2 = ("cgroup2", "rw,nsdelegate", "/", "cg")
V1_CPU = ("cgroup", "rw,cpu,cpuacct", "/", "cg/cpu,cpuacct")
V1_MEMORY = ("cgroup", "rw,memory", "/", "cg/memory")

CASES = {
    "v2 namespaced container": Case(
        "0::/\n",
        [V2],
        {
            "cg/cpu.max": "150000 100000",
            "cg/memory.max": "536870912",
            "cg/memory.events": "oom 3\noom_kill 2",
        },
        quota=1.5,
        limit=512 << 20,
        kills=2,
    ),
    "v2 no limit": Case(
        "0::/a\n",
        [V2],
        {"cg/a/cpu.max": "max 100000", "cg/a/memory.max": "max", "cg/a/memory.events": "oom 0\noom_kill 0"},
        kills=0,
    ),
    "v2 root has no files": Case("0::/\n", [V2], {}),
    "v2 tighter parent": Case(
        "0::/a/b/c\n",
        [V2],
        {
            "cg/a/b/c/cpu.max": "400000 100000",
            "cg/a/b/c/memory.max": "3000",
            "cg/a/b/c/memory.events": "oom_kill 1",
            "cg/a/b/cpu.max": "max 100000",
            "cg/a/cpu.max": "25000 50000",
            "cg/a/memory.max": "1000",
            "cg/a/memory.events": "oom_kill 9",
            "cg/memory.max": "2000",
        },
        quota=0.5,
        limit=1000,
        kills=1,
    ),
    "v2 docker without a cgroup namespace": Case(
        "0::/system.slice/docker-1f.scope/app\n",
        [("cgroup2", "rw", "/system.slice/docker-1f.scope", "cg")],
        {"cg/app/memory.max": "max", "cg/memory.max": "700", "cg/cpu.max": "200000 100000"},
        quota=2.0,
        limit=700,
    ),
    "a group of which another's name is a prefix": Case(
        "0::/docker/1ff\n", [("cgroup2", "rw", "/docker/1f", "cg")], {"cg/memory.max": "700"}
    ),
    "the host's mount seen from a namespace": Case(
        "0::/\n",
        [("cgroup2", "rw", "/../..", "host"), V2],
        {"host/memory.max": "5", "host/memory.events": "oom_kill 5", "cg/memory.max": "700"},
        limit=700,
    ),
    "moved out of its namespace": Case(
        "0::/../other\n", [V2], {"other/memory.max": "5", "cg/memory.max": "700"}
    ),
    "two mounts of the same hierarchy": Case(
        "0::/a/b\n",
        [("cgroup2", "rw", "/a/b", "own"), V2],
        {"own/memory.max": "700", "own/memory.events": "oom_kill 4", "cg/a/memory.max": "600"},
        limit=600,
        kills=4,
    ),
    "v1 co-mounted": Case(
        "11:memory:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c\n",
        [("cgroup", "rw,name=systemd", "/", "cg/systemd"), V1_CPU, V1_MEMORY],
        {
            "cg/cpu,cpuacct/b/cpu.cfs_quota_us": "250000",
            "cg/cpu,cpuacct/b/cpu.cfs_period_us": "100000",
            "cg/memory/a/memory.limit_in_bytes": "1048576",
            "cg/memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7",
            "cg/systemd/c/memory.limit_in_bytes": "5",
        },
        quota=2.5,
        limit=1 << 20,
        kills=7,
    ),
    "v1 no limit, before Linux 4.13": Case(
        "11:memory:/\n4:cpu,cpuacct:/\n",
        [V1_CPU, V1_MEMORY],
        {
            "cg/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cg/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "cg/memory/memory.limit_in_bytes": UNLIMITED_V1,
            "cg/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0",
        },
    ),
    "v1 no limit, pages of 64 KiB": Case(
        "11:memory:/\n", [V1_MEMORY], {"cg/memory/memory.limit_in_bytes": str(0x7FFFFFFFFFFF0000)}
    ),
    "v1 tighter parent": Case(
        "11:memory:/a/b\n4:cpu,cpuacct:/a\n",
        [V1_CPU, V1_MEMORY],
        {
            "cg/cpu,cpuacct/a/cpu.cfs_quota_us": "-1",
            "cg/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "cg/cpu,cpuacct/cpu.cfs_quota_us": "300000",
            "cg/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "cg/memory/a/b/memory.limit_in_bytes": UNLIMITED_V1,
            "cg/memory/a/memory.limit_in_bytes": "4096",
        },
        quota=3.0,
        limit=4096,
    ),
    "v1 docker without a cgroup namespace": Case(
        "11:memory:/docker/1f\n4:cpu,cpuacct:/docker/1f\n",
        [
            ("cgroup", "ro,cpu,cpuacct", "/docker/1f", "cg/cpu,cpuacct"),
            ("cgroup", "ro,memory", "/docker/1f", "cg/memory"),
        ],
        {
            "cg/cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "cg/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "cg/memory/memory.limit_in_bytes": "4096",
            "cg/memory/memory.oom_control": "oom_kill 1",
        },
        quota=0.5,
        limit=4096,
        kills=1,
    ),
    "hybrid, controllers in v1": Case(
        "11:memory:/a\n0::/user.slice\n",
        [("cgroup2", "rw", "/", "cg/unified"), V1_MEMORY],
        {
            "cg/unified/user.slice/cgroup.procs": "1",
            "cg/memory/a/memory.limit_in_bytes": "4096",
            "cg/memory/a/memory.oom_control": "oom_kill 6",
        },
        limit=4096,
        kills=6,
    ),
    "hybrid, the memory controller in v2": Case(
        "4:cpu,cpuacct:/a\n0::/u\n",
        [V1_CPU, ("cgroup2", "rw", "/", "cg/unified")],
        {
            "cg/unified/u/memory.max": "4096",
            "cg/cpu,cpuacct/a/cpu.cfs_quota_us": "100000",
            "cg/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        },
        quota=1.0,
        limit=4096,
    ),
    "escapes, a colon, a dash": Case(
        "0::/a b/c:d\\e/-\n",
        [("cgroup2", "rw", "/a b", "my cg\\\t#")],
        {"my cg\\\t#/c:d\\e/-/memory.max": "4096"},
        limit=4096,
    ),
    "a path that is not mounted here": Case(
        "0::/elsewhere\n", [V2], {"cg/memory.max": "4096", "cg/memory.events": "oom_kill 1"}, limit=4096
    ),
    "not mounted at all": Case("11:memory:/\n0::/\n", [], {}),
    "odd contents": Case(
        "0::/\n11:memory:/\n4:cpu,cpuacct:/\nrubbish\n::\n5:cpu\n",
        [V2, V1_CPU, V1_MEMORY],
        {
            "cg/cpu.max": "100000",
            "cg/memory.max": "-5",
            "cg/memory.events": "oom_kill many\noom_kill_x 3",
            "cg/cpu,cpuacct/cpu.cfs_quota_us": "100000",
            "cg/cpu,cpuacct/cpu.cfs_period_us": "0",
            "cg/memory/memory.limit_in_bytes": "9" * 5000,
        },
    ),
}


def escape(path: str) -> str:
    return re.sub(r"[ \t\n\\#]", lambda found: f"\\{ord(found[0]):03o}", path)


def build(tmp_path: Path, case: Case) -> Path:
    proc = tmp_path / "proc"
    lines = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw", "odd line"]
    for fstype, options, root, point in case.mounts:
        place = f"{escape(root)} {escape(str(tmp_path / point))}"
        # The optional fields before the dash come in any number.
        lines.append(f"31 23 0:28 {place} rw,nosuid shared:9 master:4 - {fstype} {fstype} {options}")
    files = {"proc/self/cgroup": case.cgroup, "proc/self/mountinfo": "\n".join(lines), **case.files}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.rstrip("\n") + "\n")
    return proc


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_limits(tmp_path: Path, case: Case) -> None:
    proc = build(tmp_path, case)
    assert (cpu_quota(proc), memory_limit(proc), oom_kills(proc)) == (case.quota, case.limit, case.kills)


def test_files_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    proc = build(tmp_path, CASES["v2 tighter parent"])
    # A directory cannot be read by anyone, root included; a mode of 0 stops only the others.
    for name in ("cpu.max", "memory.max", "memory.events"):
        (tmp_path / "cg/a/b/c" / name).unlink()
        (tmp_path / "cg/a/b/c" / name).mkdir()
    assert (cpu_quota(proc), memory_limit(proc), oom_kills(proc)) == (0.5, 1000, None)


@pytest.mark.parametrize("name", ["cgroup", "mountinfo"])
def test_a_proc_without_the_file_says_nothing(tmp_path: Path, name: str) -> None:
    proc = build(tmp_path, CASES["v2 namespaced container"])
    (proc / "self" / name).unlink()
    assert (cpu_quota(proc), memory_limit(proc), oom_kills(proc)) == (None, None, None)


def test_a_group_whose_name_is_not_utf8(tmp_path: Path) -> None:
    proc = build(tmp_path, CASES["v2 namespaced container"])
    (proc / "self/cgroup").write_bytes(b"0::/\xff\n")
    group = tmp_path / "cg" / os.fsdecode(b"\xff")
    group.mkdir()
    (group / "memory.max").write_text("700\n")
    assert (cpu_quota(proc), memory_limit(proc), oom_kills(proc)) == (1.5, 700, None)


def test_a_mount_point_with_a_nul_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "self/mountinfo").write_text("1 2 0:1 / /a\\000b rw - cgroup2 none rw\n")
    assert (cpu_quota(tmp_path), memory_limit(tmp_path), oom_kills(tmp_path)) == (None, None, None)


def test_this_machine_can_be_asked() -> None:
    assert (cpu_quota() or 1) > 0
    assert (memory_limit() or 1) > 0
    assert (oom_kills() or 0) >= 0
