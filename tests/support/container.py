"""A container without an engine: a command as PID 1 of its own namespaces, in a read-only root, as nobody."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.dockerfile import Stage
from tests.support.namespaces import GROUPS, Namespaces, remove_groups, root_script, unable
from tests.support.server import Server

INSIDE = """
mount --rbind /dev {root}/dev
mount -t tmpfs -o mode=1777 shm {root}/dev/shm
mkdir -p {root}{directory}
mount --bind {app} {root}{directory}
mount -o remount,bind,ro {root}{directory}
mount -o remount,bind,ro {root}
exec chroot {root} {nobody} {inside} {command}
"""


def nobody(user: str) -> list[str]:
    """What makes a process this user, with no way back."""
    uid, _, gid = user.partition(":")
    options = f"--reuid={uid} --regid={gid} --clear-groups --no-new-privs --bounding-set=-all"
    return ["setpriv", *options.split()]


class Container:
    """What a stage of a Dockerfile describes, with the app of ``server``, whose log it has."""

    namespaces: Namespaces | None = None

    def __init__(
        self, stage: Stage, server: Server, *, tmp: bool = True, environment: Mapping[str, str] | None = None
    ) -> None:
        self.server = server
        self._stage = stage
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        values = {**stage.environment, "PATH": path, **(environment or {})}
        self._inside = ["env", "-i", "-C", stage.directory, *(f"{name}={values[name]}" for name in values)]
        self._mounts = ["mount -t tmpfs -o mode=1777 tmp {root}/tmp"] if tmp else []
        self._groups: list[Path] = []

    # --- limits

    def limit(self, cpus: float, memory: int) -> None:
        """Give it a control group with so many CPUs and bytes; the test is skipped where there is none."""
        unified = (GROUPS / "cgroup.controllers").exists()
        try:
            if unified:
                self._unified(cpus, memory)
            else:
                self._legacy(cpus, memory)
        except OSError as exc:
            unable(f"may not limit a control group: {exc}")

    @property
    def unified(self) -> Path | None:
        """Its directory in a hierarchy of version 2 with the memory controller."""
        return next((group for group in self._groups if (group / "memory.oom.group").exists()), None)

    def _unified(self, cpus: float, memory: int) -> None:
        (GROUPS / "cgroup.subtree_control").write_text("+cpu +memory")
        group = self._group(GROUPS)
        (group / "cpu.max").write_text(f"{cpus * 100_000:.0f} 100000")
        (group / "memory.max").write_text(str(memory))
        self._mounts.append("mount -t cgroup2 -o ro cgroup2 {root}/sys/fs/cgroup")

    def _legacy(self, cpus: float, memory: int) -> None:
        (self._group(GROUPS / "cpu") / "cpu.cfs_quota_us").write_text(f"{cpus * 100_000:.0f}")
        (self._group(GROUPS / "memory") / "memory.limit_in_bytes").write_text(str(memory))
        self._mounts.append("mount -t tmpfs -o mode=755 cgroup {root}/sys/fs/cgroup")
        for controller in ("cpu", "memory"):
            place = f"{{root}}/sys/fs/cgroup/{controller}"
            self._mounts.append(f"mkdir {place} && mount -t cgroup -o ro,{controller} cgroup {place}")

    def _group(self, parent: Path) -> Path:
        group = parent / f"multicore-test-{os.getpid()}"
        group.mkdir()
        self._groups.append(group)
        return group

    # --- life

    def start(self) -> Container:
        """Run its command. The server's process has the command's status."""
        directory = self.server.directory
        directory.chmod(0o755)
        root = directory.with_suffix(".root")
        root.mkdir()
        inside = INSIDE.format(
            root=root, app=directory, directory=self._stage.directory,
            nobody=shlex.join(nobody(self._stage.user)),
            inside=shlex.join(self._inside), command=shlex.join(self._stage.command),
        )  # fmt: skip
        script = root_script(root, "\n".join(self._mounts).format(root=root)) + inside
        self.namespaces = Namespaces(script, self.server.log_path, self._groups)
        self.server.process = self.namespaces.process
        return self

    def pid(self) -> int:
        """The machine's number of its PID 1."""
        assert self.namespaces is not None
        return self.namespaces.pid()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As ``docker exec``: another process of the same user in it."""
        assert self.namespaces is not None
        return self.namespaces.execute(*nobody(self._stage.user), *self._inside, *command)

    def network(self, threads: int = 1) -> ThreadPoolExecutor:
        """Threads of this process that are in its network."""
        assert self.namespaces is not None
        return self.namespaces.network(threads)

    def healthy(self) -> bool:
        """Whether its HEALTHCHECK says so."""
        return self.execute(*self._stage.check).returncode == 0

    def get(self, path: str = "/") -> str:
        """The body of a response, asked for in it."""
        code = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000{path}').read().decode())"
        done = self.execute("python", "-c", code)
        return done.stdout.strip() or done.stderr

    def close(self) -> None:
        """End it, and remove its control groups."""
        if self.namespaces is not None:
            self.namespaces.close()
        remove_groups(self._groups)
